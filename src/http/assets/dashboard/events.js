// The view of the event log: newest first, with filters and a pause.
import { ago, clock, count, includes, some } from "./format.js";
import { Grid } from "./grid.js";
import { Component, html } from "./html.js";
import { Clear, Name, Summary, Tools, cached } from "./parts.js";
import { MAX_LOG, familyOf } from "./store.js";

const TYPES = [
  ["instance", "Instances"],
  ["claim", "Claims"],
  ["tenant", "Tenants"],
  ["pool", "Pools"],
  ["stream", "Connection and API server"],
  ["other", "Telemetry and others"],
];

const FILTERS = ["q", "types"];

/** Words for the reasons of a new state and of the end of a stream (docs/protocol.md). */
const REASONS = {
  connect: "the stream starts",
  expired: "the changes since the last connection are no longer available",
  foreign: "the bridge has another history than before",
  filter: "what this page may see has changed",
  lagged: "this page was too slow",
  "slow consumer": "this page was too slow",
  draining: "the bridge is shutting down",
  "not ready": "the bridge is still reading the cluster",
};
const plain = (reason) => (Object.hasOwn(REASONS, reason) ? REASONS[reason] : reason);

/** What an event says, in a few words. `isOfTenant`: the reader knows the tenant. */
export function summary(event, isOfTenant = false) {
  const { type } = event;
  const from = event.previousPhase ? `${event.previousPhase} → ` : "";
  const owner = event.tenantId && !isOfTenant ? `tenant ${event.tenantId}` : "";
  const words = (...parts) => parts.filter(Boolean).join(", ");
  switch (type) {
    case "instance.state":
    case "claim.state":
      return words(`${from}${event.phase}`, owner, event.cause === "filtered" && "no longer visible");
    case "pool.instance.ready":
      return words("ready to claim", event.workloadRef);
    case "tenant.claimed":
      return words(owner, event.workloadRef, event.source && `obtained: ${event.source}`);
    case "tenant.released":
      return owner;
    case "pool.depth":
      return `${event.ready} ready, ${event.warming} warming, ${event.acquired} acquired`;
    case "telemetry":
      return words(`${event.metrics?.opn} open connections`, `${event.metrics?.requests} requests`, event.region);
    case "mqtt.message":
      return JSON.stringify(event.payload);
    case "state.initial":
      return `the whole state (${plain(event.reason)}): ${event.instances} instances, ${event.claims} claims`;
    case "page.connected":
      return "this page is connected";
    case "page.disconnected":
      return [
        event.wasOpen ? "this page lost its connection." : "this page cannot connect.",
        event.failedAttempts > 0 && `${count(event.failedAttempts, "attempt")} failed.`,
        event.reason,
      ]
        .filter(Boolean)
        .join(" ");
    default:
      return words(event.resource, plain(event.reason), event.expiresAt && `at ${clock(event.expiresAt)}`);
  }
}

export const nameOf = (event) => event.name ?? event.workloadRef ?? event.tunnelId ?? event.topic ?? "";

export class Events extends Component {
  #rows = cached();

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

  render({ store, address, status, gridRef, paused, onPause }) {
    const { params } = address.current;
    const { log, version } = paused ?? { log: store.log, version: store.logVersion };
    // The pause is an input, so that the rows of its moment are shown at once.
    const rows = this.#rows(version, [params.q, params.types, paused], () => this.#find(log, params));
    const now = store.now();
    const columns = [
      { key: "time", title: "Time", class: "time", render: ({ time }) => html`${clock(time)} <span class="ago">${ago(time, now)}</span>` },
      { key: "type", title: "Type", class: "wide type", render: ({ event }) => event.type },
      { key: "name", title: "Name", isHeader: true, class: "subject", render: ({ event }) => html`<${Name} value=${nameOf(event) || "–"} />` },
      {
        key: "what", title: "What", class: "what",
        // A narrow window has no column for the type.
        render: ({ event }) => {
          const text = summary(event);
          return html`<span class="narrow">${event.type}</span><span title=${text}>${text}</span>`;
        },
      },
    ];
    const found = `${some(rows.length, Math.min(log.length, MAX_LOG), "event")}, newest first`;
    const pause = paused && `Paused at ${clock(paused.at)}. ${store.logNumber - paused.number} new since then`;
    const text = pause ? `${pause}. ${found}` : found;
    return html`<section aria-label="Events" class="log">
      <${Tools} address=${address} names=${FILTERS} search="type, name, tenant">
        ${this.#chips(address)}
        <button type="button" aria-pressed=${Boolean(paused)} onClick=${onPause}>${paused ? "Continue" : "Pause"}</button>
      </>
      <${Summary} text=${text} status=${status} store=${store}>
        ${log.length >= MAX_LOG && html`<span>The page keeps the last ${MAX_LOG}.</span>`}
        <${Clear} address=${address} names=${FILTERS} />
      </>
      <div role="log" aria-live="off" aria-label="Event log">
        <${Grid}
          handle=${gridRef} label="Events" rows=${rows} columns=${columns} sort=${{}} anchor=${true} place=${paused?.place}
          rowKey=${({ number }) => number} rowProps=${({ event }) => ({ "data-type": familyOf(event.type) })}
          onOpen=${({ key }) => address.show("event", key)}
          empty=${log.length === 0 ? "No event yet. Events appear here as they happen." : "No event matches the filters."}
        />
      </div>
    </section>`;
  }
}
