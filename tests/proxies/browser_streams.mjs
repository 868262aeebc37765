// Streams of browsers behind each proxy: first state, live events, a restart of the bridge, and a quiet period.
import { BROWSERS, StreamPage } from "./browsers.mjs";
import { sleep } from "./processes.mjs";

const GETS = ["/api/v1/instances", "/api/v1/instances/known", "/api/v1/tenants", "/api/v1/pools", "/api/v1/stats"];
/// More than the six connections that a browser opens to one host with HTTP/1.1.
const SSE_STREAMS = 8;
const HTTP_PATHS = ["/ws", "/api/websocket", "/api/sse"];
const HTTP2_PATHS = ["/ws", "/api/websocket", ...Array(SSE_STREAMS).fill("/api/sse")];
/// How long an event takes at most to reach every page, with many pages on a busy machine.
const EVENT_BOUND = 10_000;
/// How long the streams need at most after the bridge is ready: the longest documented delay is 3 s, and Firefox delays
/// a WebSocket after failed ones.
const BACK_BOUND = 30_000;
/// How long the bridge is away. A reconnect falls into this time.
const AWAY = 3000;

export class BrowserStreams {
  constructor({ proxies, browsers, bridge, namespace, log }) {
    Object.assign(this, { proxies, browsers, bridge, namespace, log, pods: 0 });
  }

  all(action) {
    return Promise.all(this.pages.map(action));
  }

  async run({ idleMs, signals, duringIdle }) {
    await this.namespace.createPod("known");
    await this.namespace.createClaim("known-claim", "known-tenant");
    this.pages = (await Promise.all(BROWSERS.map((name) => this.#openPages(name)))).flat();
    await this.all((page) => page.until("first state", BACK_BOUND, (stream) => stream.hasState && stream.open));
    await this.all((page) => this.#checkGets(page));
    await this.#event("live event");
    this.log(`${this.pages.length} pages have the first state and a live event`);
    for (const signal of signals) await this.#restart(signal);
    await this.#idle(idleMs, duringIdle);
  }

  #openPages(browserName) {
    const pages = this.proxies.flatMap((proxy) => {
      // The documented file of Apache has no HTTP/2.
      const secure = proxy.name === "apache" ? HTTP_PATHS : HTTP2_PATHS;
      return [
        [proxy, proxy.http, HTTP_PATHS],
        [proxy, proxy.https, secure],
      ];
    });
    return Promise.all(
      pages.map(([proxy, origin, paths]) => {
        const label = `${browserName}, ${proxy.name}, ${origin.split(":")[0]}`;
        return StreamPage.open(this.browsers[browserName], label, origin, paths, "known");
      }),
    );
  }

  async #checkGets(page) {
    const failed = await page.failedGets(GETS);
    if (failed.length > 0) throw new Error(`${page.label}: GETs failed: ${JSON.stringify(failed)}`);
  }

  /// Creates a Pod and waits until every stream of every page has its event.
  async #event(what) {
    const name = `live-${(this.pods += 1)}`;
    const start = Date.now();
    await this.namespace.createPod(name);
    await this.all((page) => page.until(`${what} (${name})`, EVENT_BOUND, ({ seen }) => seen.includes(name)));
    this.log(`${what}: on every stream after ${Date.now() - start} ms`);
  }

  async #restart(signal) {
    const before = await this.all((page) => page.report());
    await this.bridge.stop(signal);
    await this.namespace.createPod(`away-${signal.toLowerCase()}`);
    await sleep(AWAY);
    await this.bridge.start();
    const start = Date.now();
    const isBack = ({ open, seen }) => open && seen.includes(`away-${signal.toLowerCase()}`);
    const times = await this.all(async (page) => {
      await page.until(`back after ${signal}`, BACK_BOUND, isBack);
      return [Date.now() - start, page.label];
    });
    const [slowest, label] = times.sort(([left], [right]) => right - left)[0];
    await this.all((page) => this.#checkGets(page));
    this.log(`${signal}: every stream is back ${slowest} ms after the bridge, the last one in ${label}`);
    await this.#event(`event after ${signal}`);
    const after = await this.all((page) => page.report());
    this.pages.forEach((page, index) => {
      const isSse = ({ path }) => path === "/api/sse";
      const created = (report) => report.filter(isSse).reduce((sum, record) => sum + record.created, 0);
      const count = created(after[index]) - created(before[index]);
      this.log(`${page.label}: ${count} of ${after[index].filter(isSse).length} EventSources created again`);
    });
  }

  /// Waits without any change of an object. No stream may end in this time.
  async #idle(idleMs, duringIdle) {
    const counts = (report) =>
      JSON.stringify(
        report.map(({ path, created, opened, errors, closed }) => ({ path, created, opened, errors, closed })),
      );
    const before = await this.all((page) => page.report());
    await Promise.all([sleep(idleMs), duringIdle()]);
    const after = await this.all((page) => page.report());
    this.pages.forEach((page, index) => {
      if (counts(before[index]) !== counts(after[index])) {
        throw new Error(`${page.label}: a stream ended while idle:\n${counts(before[index])}\n${counts(after[index])}`);
      }
    });
    await this.#event(`event after ${Math.round(idleMs / 1000)} s without one`);
  }
}
