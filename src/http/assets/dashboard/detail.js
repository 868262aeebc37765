// The detail of one object in a dialog: all its fields, its labels, what belongs to it and what happened to it.
import { nameOf, summary } from "./events.js";
import { age, clock } from "./format.js";
import { Component, createRef, html } from "./html.js";
import { Phase } from "./parts.js";
import { MAX_LOG } from "./store.js";

/** Rows of the event list of one object, and of the lists of a tenant. */
const MAX_EVENTS = 20;
const MAX_RELATED = 100;

const TITLES = {
  phase: "Phase",
  tenantId: "Tenant",
  workloadRef: "Workload",
  poolStatus: "Pool status",
  instanceId: "Instance",
  endpoint: "Endpoint",
  source: "How obtained",
  claimedAt: "Claimed",
  createdAt: "Created",
  lastActivity: "Last activity",
  ip: "IP address",
  detail: "Detail",
  name: "Name",
  uid: "Uid",
};
const TIMES = new Set(["createdAt", "claimedAt", "lastActivity"]);

const Link = ({ onClick, children }) =>
  html`<button type="button" class="link" onClick=${onClick}>${children}</button>`;

/** The value of one field. Fields of later releases are shown as JSON. */
function Value({ name, value, address, now }) {
  if (name === "tenantId" && value) return html`<${Link} onClick=${() => address.show("tenant", value)}>${value}</>`;
  if (name === "instanceId") return html`<${Link} onClick=${() => address.show("instance", value)}>${value}</>`;
  if (name === "workloadRef" && value) {
    return html`<${Link} onClick=${() => address.go("instances", { workload: value })}>${value}</>`;
  }
  if (name === "phase" || name === "poolStatus") return html`<${Phase} value=${value} />`;
  if (name === "endpoint") return `${value?.host}:${value?.port}`;
  if (TIMES.has(name)) return `${value} (${age(value, now)} ago)`;
  return typeof value === "string" ? value : JSON.stringify(value);
}

function Fields({ object, address, now }) {
  const known = Object.keys(TITLES).filter((name) => object[name] !== undefined);
  const others = Object.keys(object).filter((name) => !Object.hasOwn(TITLES, name) && name !== "labels");
  return html`<dl class="fields">
    ${[...known, ...others].map(
      (name) => html`<div key=${name}>
      <dt>${TITLES[name] ?? name}</dt>
      <dd><${Value} name=${name} value=${object[name]} address=${address} now=${now} /></dd>
    </div>`,
    )}
  </dl>`;
}

function Labels({ labels }) {
  const entries = Object.entries(labels ?? {});
  if (entries.length === 0) return html`<p>No labels.</p>`;
  return html`<dl class="fields labels">
    ${entries.map(([key, value]) => html`<div key=${key}><dt>${key}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

function Related({ title, kind, objects, address }) {
  if (objects.length === 0) return false;
  return html`<h3>${title}</h3>
    <ul class="related">
      ${objects.slice(0, MAX_RELATED).map(
        ({ uid, name, phase }) => html`<li key=${uid}>
        <${Link} onClick=${() => address.show(kind, name)}>${name}</> <${Phase} value=${phase} />
      </li>`,
      )}
      ${objects.length > MAX_RELATED && html`<li>${objects.length - MAX_RELATED} more</li>`}
    </ul>`;
}

/** The claims that name an instance. An acquired instance without one is left from a claim that was released. */
function Claim({ instance: { name, poolStatus }, store, address }) {
  const claims = [...store.client.state.claims.values()].filter(({ instanceId }) => instanceId === name);
  const none = poolStatus === "acquired" ? "none: released" : "none";
  return html`<dl class="fields"><div>
    <dt>Claim</dt>
    <dd>
      ${claims.length === 0 && none}
      ${claims.slice(0, MAX_RELATED).map(
        (claim) => html`<p key=${claim.uid}>
        <${Link} onClick=${() => address.show("claim", claim.name)}>${claim.name}</> <${Phase} value=${claim.phase} />
      </p>`,
      )}
    </dd>
  </div></dl>`;
}

function History({ store, matches, isOfTenant = false }) {
  const { isCut, time: start } = store.logStart;
  const found = [];
  for (let index = store.log.length - 1; index >= 0 && found.length < MAX_EVENTS; index--) {
    if (matches(store.log[index].event)) found.push(store.log[index]);
  }
  const why = isCut ? `. The page keeps the last ${MAX_LOG} events.` : ", when this page was opened.";
  return html`<h3>Events</h3>
    ${found.length === 0 && html`<p>Nothing since ${clock(start)}${why}</p>`}
    <ul class="history">
      ${found.map(
        ({ number, time, event }) => html`<li key=${number}>
        <time>${clock(time)}</time> <span>${event.type}</span>
        ${isOfTenant && html` <b>${nameOf(event)}</b>`} <span>${summary(event, isOfTenant)}</span>
      </li>`,
      )}
    </ul>`;
}

/** What only the GET of an instance has (docs/protocol.md#instance). */
class Activity extends Component {
  state = { text: "…" };

  async componentDidMount() {
    const { store, name } = this.props;
    try {
      // A filter, because the path of an instance that has just gone is a 404, which the console shows as an error.
      const url = new URL("api/v1/instances", store.base);
      url.searchParams.set("params", JSON.stringify({ instances: { name } }));
      const response = await fetch(url, { cache: "no-store" });
      const [{ lastActivity } = {}] = response.ok ? await response.json() : [];
      this.setState({ text: lastActivity ? `${lastActivity} (${age(lastActivity, store.now())} ago)` : "not known" });
    } catch {
      this.setState({ text: "not known, because the bridge cannot be reached" });
    }
  }

  render(_, { text }) {
    return html`<dl class="fields"><div><dt>Last activity</dt><dd>${text}</dd></div></dl>`;
  }
}

/** What an event says, and links to its objects. */
function Sentence({ event, address }) {
  const { type, name, tenantId, instance, claim } = event;
  const kind = instance || type === "pool.instance.ready" ? "instance" : claim || type.startsWith("tenant.") ? "claim" : "";
  const related = claim?.instanceId;
  const links = [
    kind && name && [kind, name],
    related && ["instance", related],
    tenantId && ["tenant", tenantId],
  ].filter(Boolean);
  return html`<p>${nameOf(event)}${nameOf(event) && ": "}${summary(event)}</p>
    <ul class="related">
      ${links.map(([kind, name]) => html`<li key=${kind}>${kind} <${Link} onClick=${() => address.show(kind, name)}>${name}</></li>`)}
    </ul>`;
}

function missing(kind, last) {
  if (kind === "event") {
    const limit = `A page keeps the last ${MAX_LOG} events since it was opened.`;
    return last
      ? `This event is no longer in the log. ${limit}`
      : `This page does not have this event. ${limit} The address of an event works on pages that have received it.`;
  }
  return last ? `This ${kind} no longer exists. This is its last state.` : `There is no ${kind} with this name now.`;
}

export class Detail extends Component {
  dialog = createRef();
  /** The last view of the object, which stays when the object goes. */
  #last;

  componentDidMount() {
    this.dialog.current.showModal();
  }

  #find(kind, name) {
    const { state } = this.props.store.client;
    if (kind === "instance") return state.instance(name);
    if (kind === "claim") return state.claim(name);
    if (kind === "event") {
      const { store, paused } = this.props;
      const isIt = ({ key }) => key === name;
      return (store.log.find(isIt) ?? paused?.log.find(isIt))?.event;
    }
    const claims = [...state.claims.values()].filter(({ tenantId }) => tenantId === name);
    const instances = [...state.instances.values()].filter(({ tenantId }) => tenantId === name);
    return claims.length || instances.length ? { name, claims, instances } : undefined;
  }

  #body(kind, name, object) {
    const { store, address } = this.props;
    const now = store.now();
    if (kind === "event") return html`
      <${Sentence} event=${object} address=${address} />
      <pre tabindex="0">${JSON.stringify(object, null, 2)}</pre>`;
    if (kind === "tenant") {
      return html`
        <${Related} title="Claims" kind="claim" objects=${object.claims} address=${address} />
        <${Related} title="Instances" kind="instance" objects=${object.instances} address=${address} />
        <${History} store=${store} matches=${(event) => event.tenantId === name} isOfTenant />`;
    }
    const uid = (event) => event.instance?.uid ?? event.claim?.uid ?? event.uid;
    return html`
      <${Fields} object=${object} address=${address} now=${now} />
      ${kind === "instance" && html`<${Claim} instance=${object} store=${store} address=${address} />`}
      ${kind === "instance" && html`<${Activity} key=${name} name=${name} store=${store} />`}
      <h3>Labels</h3>
      <${Labels} labels=${object.labels} />
      <${History} store=${store} matches=${(event) => uid(event) === object.uid} />`;
  }

  render({ store, address, status, target: { kind, name } }) {
    const found = this.#find(kind, name);
    if (found) this.#last = { kind, name, object: found };
    const last = this.#last?.kind === kind && this.#last.name === name ? this.#last.object : undefined;
    const close = () => address.hide();
    const title = kind === "event" ? `Event: ${last?.type ?? name}` : name;
    return html`<dialog
      ref=${this.dialog} class="detail" aria-labelledby="detail-title" onClose=${close}
      onClick=${({ target }) => target === this.dialog.current && close()}
    >
      <div class="content">
        <header>
          <p class="kind">${kind}</p>
          <h2 id="detail-title" tabindex="-1">${title}</h2>
          <button type="button" onClick=${close} aria-label="Close">✕</button>
        </header>
        ${!status.isLive && html`<p class="old">Not live: this may be old.</p>`}
        ${
          !found &&
          store.client.state.isComplete &&
          html`<p class="old">
          ${missing(kind, last)}
        </p>`
        }
        ${last && this.#body(kind, name, last)}
      </div>
    </dialog>`;
  }
}
