// The dashboard: views, dialogs and keys. It starts itself.
import { Detail } from "./detail.js";
import { Events } from "./events.js";
import { Banners, Header } from "./header.js";
import { Help } from "./help.js";
import { Component, createRef, html, render } from "./html.js";
import { Instances } from "./instances.js";
import { Address, VIEWS, shown } from "./location.js";
import { Pools } from "./pools.js";
import { SignIn } from "./signin.js";
import { describe } from "./status.js";
import { Store } from "./store.js";
import { Tenants } from "./tenants.js";

const PAGES = { instances: Instances, tenants: Tenants, pools: Pools, events: Events };

class App extends Component {
  state = { isHelp: false, hasKeys: true, paused: undefined };
  grid = createRef();
  address = new Address(() => this.setState({}));
  store = new Store(() => this.setState({}));

  componentDidMount() {
    document.addEventListener("keydown", this.onKeyDown);
  }

  onKeyDown = (event) => {
    const { target, key } = event;
    const isField = ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName);
    if (event.altKey || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (isField) {
      if (key === "Escape") target.blur();
      if (target.id === "search" && key === "ArrowDown") this.#focusList(event);
      return;
    }
    if (key === "ArrowDown" && (target === document.body || target.closest("nav"))) return this.#focusList(event);
    if (!this.state.hasKeys) return;
    const view = VIEWS[Number(key) - 1];
    if (view) {
      this.address.go(view);
      this.setState({}, () => {
        /** @type {HTMLElement} */ (document.querySelector("nav [aria-current]"))?.focus();
      });
    }
    else if (key === "?") this.setState({ isHelp: true });
    else if (key === "p" && this.address.current.view === "events") this.togglePause();
    else if (key === "/") {
      event.preventDefault();
      document.getElementById("search")?.focus();
    }
  };

  #focusList(event) {
    if (!this.grid.current) return;
    event.preventDefault();
    this.grid.current.focus();
  }

  /** A pause keeps the log of its moment, and the place in the list while another view is shown. */
  togglePause = () =>
    this.setState(({ paused }) => {
      const { log, logNumber: number, logVersion: version } = this.store;
      return { paused: paused ? undefined : { log: log.slice(), number, version, at: this.store.now(), place: {} } };
    });

  render(_, { isHelp, hasKeys, paused }) {
    const { store, address } = this;
    const { client, hasOpened, connections } = store;
    const { connection, freshness, upstream } = client;
    const status = describe({
      connection,
      freshness,
      upstream,
      hasOpened,
      lastError: store.lastError,
      hasState: client.state.isComplete,
      isDown: connections[0]?.state === "down",
      now: performance.now(),
    });
    const { view, params } = address.current;
    const target = shown(params);
    const isSignedOut = status.state === "signed-out";
    const Page = PAGES[view];
    return html`
      <${Header} store=${store} address=${address} status=${status} onHelp=${() => this.setState({ isHelp: true })} />
      <${Banners} store=${store} status=${status} />
      ${isSignedOut && html`<${SignIn} store=${store} />`}
      ${
        !isSignedOut &&
        client.state.isComplete &&
        html`<main class=${status.isLive ? "" : "not-live"}>
        <${Page}
          key=${view} store=${store} address=${address} status=${status} gridRef=${this.grid}
          paused=${paused} onPause=${this.togglePause}
        />
      </main>`
      }
      ${!isSignedOut && !client.state.isComplete && html`<main class="boot"><p>Waiting for the current state…</p></main>`}
      ${!isSignedOut && target && html`<${Detail} store=${store} address=${address} status=${status} target=${target} paused=${paused} />`}
      ${
        isHelp &&
        html`<${Help}
        onClose=${() => this.setState({ isHelp: false })} hasKeys=${hasKeys} onKeys=${(hasKeys) => this.setState({ hasKeys })}
      />`
      }
    `;
  }
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);
