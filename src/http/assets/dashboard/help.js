// The help: what the words mean, and the keys.
import { Component, createRef, html } from "./html.js";

const KEYS = [
  ["1 2 3 4", "instances, tenants, pools, events"],
  ["/", "to the search field"],
  ["↑ ↓ Page Home End", "move in a list"],
  ["Enter", "open the detail of a row"],
  ["Esc", "close a dialog, leave a field"],
  ["p", "pause the event log, or continue"],
  ["?", "this help"],
];

const ENDPOINTS = ["api/v1/instances", "api/v1/tenants", "api/v1/pools", "api/v1/stats", "metrics", "readyz?verbose"];

export class Help extends Component {
  dialog = createRef();

  componentDidMount() {
    this.dialog.current.showModal();
  }

  render({ onClose, hasKeys, onKeys }) {
    return html`<dialog
      ref=${this.dialog} class="help" aria-labelledby="help-title" onClose=${onClose}
      onClick=${({ target }) => target === this.dialog.current && onClose()}
    >
      <div class="content">
        <header><h2 id="help-title">Help</h2><button type="button" onClick=${onClose} aria-label="Close">✕</button></header>
        <p>
          This page shows what a Boilerhouse platform does, as it happens. It only reads.
        </p>
        <dl class="fields">
          <div><dt>Instance</dt><dd>a Pod that runs one workload</dd></div>
          <div><dt>Workload</dt><dd>what an instance runs, such as a browser</dd></div>
          <div><dt>Tenant</dt><dd>who uses instances. To look one up: view Tenants, then /</dd></div>
          <div><dt>Claim</dt><dd>the request of a tenant for an instance. Active: the tenant has it</dd></div>
          <div><dt>Pool</dt><dd>the instances of a workload, counted by pool status: warming, then ready, then acquired</dd></div>
          <div>
            <dt>Ready</dt>
            <dd>a tenant can get it: pool status ready and phase Running. With another phase it is not usable. A pool is low at 1 and empty at 0</dd>
          </div>
          <div>
            <dt>Acquired</dt>
            <dd>taken for a tenant. It stays acquired after its claim was released, so more instances can be acquired than claims are Active</dd>
          </div>
          <div>
            <dt>How obtained</dt>
            <dd>existing: the tenant had the instance. cold: started for the claim. pool: a ready instance. +data: with the tenant's data</dd>
          </div>
          <div><dt>API server</dt><dd>of Kubernetes: the bridge reads the instances and claims from it</dd></div>
          <div>
            <dt>Events</dt>
            <dd>The page keeps the last 1000 since it was opened. The address of an event works on pages that have received it</dd>
          </div>
          <div><dt>Live</dt><dd>what you see is current. Otherwise the page says so, and marks the lists</dd></div>
        </dl>
        <h3>Keys</h3>
        <dl class="fields keys">
          ${KEYS.map(([key, text]) => html`<div key=${key}><dt><kbd>${key}</kbd></dt><dd>${text}</dd></div>`)}
        </dl>
        <h3>Endpoints</h3>
        <p class="endpoints">
          The same data for programs: ${ENDPOINTS.map((path) => html`<a key=${path} href=${path}>${path}</a> `)}
          Streams: <code>api/websocket</code> and <code>api/sse</code>. JavaScript: <a href="client.js">client.js</a>.
        </p>
        <label><input type="checkbox" checked=${hasKeys} onChange=${({ target }) => onKeys(target.checked)} /> Shortcuts of one key (1 to 4, /, p, ?)</label>
      </div>
    </dialog>`;
  }
}
