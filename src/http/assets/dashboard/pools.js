// The view of the pools: their counts now and over the last 15 minutes.
import { clock, count, duration } from "./format.js";
import { Component, html } from "./html.js";
import { format } from "./location.js";
import { Search, Summary, cached } from "./parts.js";

/** A pool with so many ready instances, or fewer, is short. */
export const LOW = 1;

export const level = (ready) => (ready === 0 ? "empty" : `${ready} ready`);

/** The window of the lowest number of ready instances. */
const LOWEST_MS = 300_000;
/** Pools that are shown at once. */
const MAX_SHOWN = 60;
/** The shortest of these windows that holds the history is shown. */
const WINDOWS_MIN = [1, 2, 5, 15];
/** A longer pause between two samples is a gap in the line. */
const GAP_MS = 12_000;
const [WIDTH, HEIGHT] = [300, 64];
const LINES = ["acquired", "warming", "ready"];

const rounded = (number) => Math.round(number * 10) / 10;

/** The lines of a chart, as paths with steps. A value that stays adds no point. */
function paths(samples, now, windowMs) {
  const top = Math.max(1, ...samples.map((sample) => Math.max(...LINES.map((line) => sample[line]))));
  const x = (at) => rounded(WIDTH * Math.max(0, 1 - (now - at) / windowMs));
  const y = (value) => rounded(HEIGHT - 2 - ((HEIGHT - 4) * value) / top);
  const path = (line) => {
    let text = "";
    samples.forEach((sample, index) => {
      const last = samples[index - 1];
      if (!last || sample.at - last.at > GAP_MS) text += `M${x(sample.at)} ${y(sample[line])}`;
      else if (sample[line] !== last[line]) text += `H${x(sample.at)}V${y(sample[line])}`;
      // The line reaches the end, and the last sample before a gap.
      else if (!samples[index + 1] || samples[index + 1].at - sample.at > GAP_MS) text += `H${x(sample.at)}`;
    });
    return text;
  };
  return { top, lines: LINES.map((line) => ({ line, path: path(line) })) };
}

class Chart extends Component {
  /** The line ends with the counts of the newest sample, or of the newest `published` pool. */
  shouldComponentUpdate({ number, published }) {
    return number !== this.props.number || published !== this.props.published;
  }

  render({ pool, samples, store }) {
    const { workloadRef: workload } = pool;
    if (samples.length < 2) return html`<p class="chart waiting">The chart starts in a few seconds.</p>`;
    const now = performance.now();
    const minutes = WINDOWS_MIN.find((minutes) => now - samples[0].at < minutes * 60_000) ?? WINDOWS_MIN.at(-1);
    const recent = samples.filter(({ at }) => now - at < LOWEST_MS);
    const lowest = Math.min(pool.ready, ...recent.map(({ ready }) => ready));
    const since = now - samples[0].at;
    const { top, lines } = paths([...samples, { ...pool, at: now }], now, minutes * 60_000);
    const last = minutes === 1 ? "last minute" : `last ${minutes} minutes`;
    const label = `Instances of ${workload} in the ${last}, at most ${top} in one state`;
    return html`<figure>
      <svg class="chart" viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label=${label}>
        ${lines.map(({ line, path }) => html`<path key=${line} class=${line} d=${path} />`)}
      </svg>
      <figcaption>
        <span>${last}, recorded since ${clock(store.now().getTime() - since)}</span><span>max: ${top}</span>
        <span>lowest ready in ${duration(Math.min(since, LOWEST_MS))}: ${lowest}</span>
      </figcaption>
    </figure>`;
  }
}

const tone = ({ ready }) => (ready === 0 ? "bad" : ready <= LOW ? "wait" : undefined);
const to = ({ workloadRef: workload }, params) => format({ view: "instances", params: { workload, ...params } });

export class Pools extends Component {
  #order = cached();

  render({ store, address, status }) {
    const { state } = store.client;
    const { q = "" } = address.current.params;
    const text = q.trim().toLowerCase();
    // With each sample, because moving cards at each event is expensive, and a moving card is hard to click.
    const order = this.#order(store.historyNumber, [state.pools.size], () => {
      return new Map(store.overview.pools.map(({ workloadRef }, index) => [workloadRef, index]));
    });
    const position = ({ workloadRef }) => order.get(workloadRef) ?? -1;
    const pools = store.overview.pools.filter(({ workloadRef }) => workloadRef.toLowerCase().includes(text));
    pools.sort((a, b) => position(a) - position(b));
    const shown = pools.slice(0, MAX_SHOWN);
    // A key of one tenant gets no pools (docs/protocol.md#tenant-keys).
    const hasWorkload = () => [...state.instances.values()].some(({ workloadRef }) => workloadRef);
    const isTenantKey = state.pools.size === 0 && store.hasCredentials && hasWorkload();
    const empty = isTenantKey
      ? "This key sees one tenant. Pools count the instances of all tenants, so it gets none."
      : state.pools.size === 0
        ? "There is no pool. A pool exists while its workload has an instance."
        : "No pool matches.";
    return html`<section aria-label="Pools" class="scrolling" tabindex="0">
      <div class="tools"><${Search} address=${address} label="Search" placeholder="workload" /></div>
      <${Summary} text=${count(pools.length, "pool")} status=${status} store=${store}>
        <span class="legend">
          <span class="ready">ready to claim</span><span class="warming">warming up</span><span class="acquired">acquired by a tenant</span>
        </span>
      </>
      ${pools.length === 0 && html`<p class="empty">${empty}</p>`}
      <ul class="pools">
        ${shown.map(
          (pool) => html`<li key=${pool.workloadRef} data-pool=${pool.workloadRef} data-tone=${tone(pool)}>
          <h2>${pool.workloadRef}${pool.ready <= LOW && html` <span class="level">${pool.ready === 0 ? "empty" : "low"}</span>`}</h2>
          <dl class="counts">
            <div class="ready"><dt>ready</dt><dd>${pool.ready}</dd></div>
            <div class="warming"><dt>warming</dt><dd>${pool.warming}</dd></div>
            <div class="acquired">
              <dt>acquired${pool.acquired > 0 && ` (${pool.claimed} with an active claim)`}</dt>
              <dd>${pool.acquired}</dd>
            </div>
          </dl>
          ${
            (pool.failed > 0 || pool.unusable > 0) &&
            html`<p class="problems">
            ${pool.failed > 0 && html`<a class="problem" data-tone="bad" href=${to(pool, { phase: "Failed" })}>${pool.failed} Failed</a>`}
            ${pool.unusable > 0 && html`<span>${pool.unusable} not usable: pool status ready, but not Running</span>`}
          </p>`
          }
          <${Chart} pool=${pool} store=${store} samples=${store.histories.get(pool.workloadRef) ?? []} number=${store.historyNumber}
            published=${state.pools.get(pool.workloadRef)}
          />
          <button type="button" class="plain" onClick=${() => address.go("instances", { workload: pool.workloadRef })}>
            Show its instances
          </button>
        </li>`,
        )}
      </ul>
      ${pools.length > shown.length && html`<p>${count(pools.length - shown.length, "more pool")}. Search to see them.</p>`}
    </section>`;
  }
}
