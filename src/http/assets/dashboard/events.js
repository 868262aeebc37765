// The view of the event log: newest first, with filters and a pause.
import { clock, includes } from "./format.js";
import { Grid } from "./grid.js";
import { Component, html } from "./html.js";
import { Search, Summary, cached } from "./parts.js";
import { MAX_LOG, familyOf } from "./store.js";

const TYPES = [
  ["instance", "Instances"],
  ["claim", "Claims"],
  ["tenant", "Tenants"],
  ["pool", "Pools"],
  ["stream", "Stream"],
  ["other", "Other"],
];

/** What an event says, in a few words. */
export function summary(event) {
  const { type } = event;
  const from = event.previousPhase ? `${event.previousPhase} → ` : "";
  const owner = event.tenantId ? `tenant ${event.tenantId}` : "";
  const words = (...parts) => parts.filter(Boolean).join(", ");
  switch (type) {
    case "instance.state":
    case "claim.state":
      return words(`${from}${event.phase}`, owner, event.cause === "filtered" && "no longer visible");
    case "pool.instance.ready":
      return words("ready to claim", event.workloadRef);
    case "tenant.claimed":
      return words(owner, event.workloadRef, event.source && `from ${event.source}`);
    case "tenant.released":
      return owner;
    case "pool.depth":
      return `${event.ready} ready, ${event.warming} warming, ${event.acquired} acquired`;
    case "telemetry":
      return words(`${event.metrics?.opn} open connections`, `${event.metrics?.requests} requests`, event.region);
    case "mqtt.message":
      return JSON.stringify(event.payload);
    case "state.initial":
      return `the whole state (${event.reason}): ${event.instances} instances, ${event.claims} claims`;
    case "page.connected":
      return "this page is connected";
    case "page.disconnected":
      return words("this page lost its connection", event.reason);
    default:
      return words(event.resource, event.reason, event.expiresAt && `at ${clock(event.expiresAt)}`);
  }
}

const nameOf = (event) => event.name ?? event.workloadRef ?? event.tunnelId ?? event.topic ?? "";

export class Events extends Component {
  #rows = cached();
  /** The log at the moment of the pause. */
  #paused;

  #find(log, { q = "", types }) {
    const text = q.trim().toLowerCase();
    const chosen = types && new Set(types.split(","));
    const found = [];
    for (let index = log.length - 1; index >= 0 && found.length < MAX_LOG; index--) {
      const { event } = log[index];
      if (chosen && !chosen.has(familyOf(event.type))) continue;
      if (text && !includes(text, event.type, nameOf(event), summary(event))) continue;
      found.push(log[index]);
    }
    return found;
  }

  #chips(address) {
    const chosen = new Set((address.current.params.types || TYPES.map(([key]) => key).join(",")).split(","));
    const toggle = (key) => {
      if (!chosen.delete(key)) chosen.add(key);
      const isAll = TYPES.every(([type]) => chosen.has(type));
      address.set({ types: isAll ? "" : [...chosen].join(",") || "none" });
    };
    return html`<fieldset class="chips">
      <legend>Types</legend>
      ${TYPES.map(
        ([key, title]) => html`<label key=${key}>
        <input type="checkbox" checked=${chosen.has(key)} onChange=${() => toggle(key)} /> ${title}
      </label>`,
      )}
    </fieldset>`;
  }

  render({ store, address, status, gridRef, isPaused, onPause }) {
    const { params } = address.current;
    if (isPaused && !this.#paused) this.#paused = { log: store.log.slice(), number: store.logNumber };
    if (!isPaused) this.#paused = undefined;
    const { log, number } = this.#paused ?? { log: store.log, number: store.logNumber };
    const rows = this.#rows(number, [params.q, params.types], () => this.#find(log, params));
    const columns = [
      { key: "time", title: "Time", class: "time", render: ({ event }) => clock(event.time) },
      { key: "type", title: "Type", class: "wide type", render: ({ event }) => event.type },
      { key: "name", title: "Name", isHeader: true, class: "subject", render: ({ event }) => nameOf(event) || "–" },
      { key: "what", title: "What", class: "what", render: ({ event }) => summary(event) },
    ];
    const waiting = store.logNumber - number;
    const text = isPaused ? `Paused. ${waiting} new since then` : `${rows.length} events, newest first`;
    return html`<section aria-label="Events" class="log">
      <div class="tools">
        <${Search} address=${address} label="Search" placeholder="type, name, tenant" />
        ${this.#chips(address)}
        <button type="button" aria-pressed=${isPaused} onClick=${onPause}>${isPaused ? "Continue" : "Pause"}</button>
      </div>
      <${Summary} text=${text} status=${status} store=${store}>
        ${log.length >= MAX_LOG && html`<span>The page keeps the last ${MAX_LOG}.</span>`}
      </>
      <div role="log" aria-live="off" aria-label="Event log">
        <${Grid}
          handle=${gridRef} label="Events" rows=${rows} columns=${columns} sort=${{}} anchor=${true}
          rowKey=${({ number }) => number} rowProps=${({ event }) => ({ "data-type": familyOf(event.type) })}
          onOpen=${({ number }) => address.show("event", String(number))}
          empty=${log.length === 0 ? "No event yet. Events appear here as they happen." : "No event matches the filters."}
        />
      </div>
    </section>`;
  }
}
