// The top of the page: which connection, how fresh, and the banners.
import { clockNotice } from "./status.js";
import { clock, count, duration, rate } from "./format.js";
import { html } from "./html.js";
import { VIEWS, format } from "./location.js";
import { LOW, level } from "./pools.js";

const TITLES = { instances: "Instances", tenants: "Tenants", pools: "Pools", events: "Events" };

/** Phases that need attention: their view, their filter, and the words for one and for more objects. */
const PROBLEMS = [
  ["phases", "Failed", "instances", "phase", "Failed", "Failed"],
  ["claimPhases", "Error", "tenants", "claim", "claim in Error", "claims in Error"],
  ["claimPhases", "ReleaseFailed", "tenants", "claim", "claim in ReleaseFailed", "claims in ReleaseFailed"],
];
/** Phases with a number in the header. */
const MAX_PHASES = 3;

function Problem({ view, params, isWarning, children }) {
  return html`<a class="problem" data-tone=${isWarning ? "wait" : "bad"} href=${format({ view, params })}>${children}</a>`;
}

function Numbers({ store, status }) {
  const { state } = store.client;
  if (!state.isComplete) return false;
  const { phases, claimPhases, tenants, pools } = store.overview;
  const byPhase = [...phases]
    .filter(([phase]) => phase !== "Failed")
    .sort((a, b) => b[1] - a[1])
    .slice(0, MAX_PHASES)
    .map(([phase, number]) => `${number.toLocaleString("en")} ${phase}`);
  const problems = PROBLEMS.map(([key, phase, ...more]) => [store.overview[key].get(phase) ?? 0, phase, ...more]);
  const ready = pools.reduce((sum, pool) => sum + pool.ready, 0);
  const [worst] = pools;
  return html`<p class="numbers">
    ${!status.isLive && html`<span class="old">Not live:</span>`}
    <span>
      <b>${count(state.instances.size, "instance")}</b>
      ${byPhase.length > 0 && html`<span class="more"> (${byPhase.join(", ")})</span>`}
    </span>
    <span><b>${count(claimPhases.get("Active") ?? 0, "active claim")}</b><span class="more"> of ${count(tenants, "tenant")}</span></span>
    ${worst && html`<span><b>${ready.toLocaleString("en")} ready</b><span class="more"> in ${count(pools.length, "pool")}</span></span>`}
    ${problems.map(
      ([number, phase, view, filter, one, many]) =>
        number > 0 &&
        html`<${Problem} key=${phase} view=${view} params=${{ [filter]: phase }}>${count(number, one, many)}</>`,
    )}
    ${
      worst &&
      worst.ready <= LOW &&
      html`<${Problem} view="pools" params=${{}} isWarning=${worst.ready > 0}>${worst.workloadRef}: ${level(worst.ready)}</>`
    }
  </p>`;
}

/** The age of the upstream is known at each heartbeat. A smaller one says nothing. */
const UPSTREAM_FRESH_MS = 20_000;

function Freshness({ store, status }) {
  const { ageMs, upstreamAgeMs } = store.client.freshness;
  const isOpen = store.client.connection.status === "open";
  const { lastChangeAt } = store;
  const change = lastChangeAt === undefined ? "–" : `${duration(performance.now() - lastChangeAt)} ago`;
  // A message of the bridge arrives at least with every heartbeat. Its age matters only when it is long.
  // The first heartbeat tells the age.
  const state = store.connections[0]?.state === "live" ? "ok" : "–";
  const isFresh = upstreamAgeMs < UPSTREAM_FRESH_MS;
  const heard = isFresh ? `ok, heard within ${UPSTREAM_FRESH_MS / 1000} s` : `last heard ${duration(upstreamAgeMs ?? 0)} ago`;
  const isDown = status.state === "down";
  const upstream = !isOpen ? "–" : isDown ? "no changes" : upstreamAgeMs === undefined ? state : heard;
  const isQuiet = ageMs !== undefined && ageMs > 20_000;
  return html`<dl class="freshness">
    <div title="The last event that this page got"><dt>Last event</dt><dd>${change}</dd></div>
    ${isQuiet && html`<div><dt>Last message</dt><dd>${duration(ageMs)} ago</dd></div>`}
    <div title="When the bridge last got a byte from the API server">
      <dt>API server</dt><dd>${upstream}</dd>
    </div>
    <div><dt>Events/s</dt><dd>${isOpen ? rate(store.eventsPerSecond) : "–"}</dd></div>
  </dl>`;
}

export function Header({ store, address, status, onHelp }) {
  const [connection] = store.connections;
  const { view } = address.current;
  const isSignedOut = status.state === "signed-out";
  return html`<header class="top">
    <div class="line">
      <h1>boilerhouse-bridge</h1>
      ${
        connection &&
        html`<p class="connection" title="The connection and the namespace that the bridge watches">
        ${connection.name} / ${connection.namespace}
      </p>`
      }
      <span id="status" class="chip" data-state=${status.state}>${status.chip}</span>
      ${!isSignedOut && html`<${Freshness} store=${store} status=${status} />`}
      <span class="buttons">
        ${store.hasCredentials && !isSignedOut && html`<button type="button" onClick=${() => store.signOut()}>Sign out</button>`}
        <button type="button" onClick=${onHelp} aria-label="Help" title="Help (?)">?</button>
      </span>
    </div>
    ${!isSignedOut && html`<${Numbers} store=${store} status=${status} />`}
    ${
      !isSignedOut &&
      html`<nav aria-label="Views">
      ${VIEWS.map(
        (name, index) => html`<a
        key=${name} href=${address.of(name)} aria-current=${view === name ? "page" : undefined} aria-keyshortcuts=${index + 1}
      >${TITLES[name]}</a>`,
      )}
    </nav>`
    }
  </header>`;
}

/** Announced when they change. The countdown is in the chip, which is not announced. */
export function Banners({ store, status }) {
  const clockText = clockNotice(store.clockOffsetMs);
  const expires = store.expiresAt && `The session ends at ${clock(store.expiresAt)}. Sign in again after that.`;
  return html`<div class="banners">
    <div role=${status.isAlert ? "alert" : "status"}>
      ${
        status.text &&
        html`<p class="banner" data-tone=${status.isAlert ? "bad" : "wait"}>
        <span>${status.text}</span>
        ${status.canRetry && html`<button type="button" onClick=${() => store.client.start()}>Try now</button>`}
      </p>`
      }
    </div>
    <div role="status">
      ${[store.notice, clockText, expires].filter(Boolean).map((text) => html`<p key=${text} class="banner" data-tone="info">${text}</p>`)}
    </div>
  </div>`;
}
