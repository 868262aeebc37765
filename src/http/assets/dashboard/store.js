// The state of the page: the client, the event log, the history of the pools and the rates. It renders nothing.
//
// Guarantees: every collection is bounded. `onChange` is called at most once for each RENDER_MS, and never while the page
// is hidden.
import { BridgeClient } from "../client.js";
import { cached } from "./parts.js";
import { because } from "./status.js";

/** Rows of the event log. */
export const MAX_LOG = 1000;
/** Changes are shown together: about six times a second. */
const RENDER_MS = 160;
/** The clock of the page: ages, countdowns, rates. */
const TICK_MS = 1000;
/** Each pool has one sample every 3 s, for 15 minutes. */
const SAMPLE_MS = 3000;
export const MAX_SAMPLES = 300;
/** Pools with a history. */
const MAX_HISTORIES = 500;
/** Events a second are the average of so many seconds. */
const RATE_SECONDS = 10;
/** A page that was hidden for so long ends its connection. It resumes where it was when it is shown. */
const HIDDEN_PAUSE_MS = 300_000;
/** After a final error other than 401 the page tries again by itself. */
const RETRY_MS = 30_000;

const FAMILIES = ["instance", "claim", "tenant", "pool"];

/** The family of a type in the log: events about the stream and of later releases are `stream` and `other`. */
export function familyOf(type) {
  const family = type.split(".")[0];
  if (FAMILIES.includes(family)) return family;
  return ["state", "upstream", "matrix-down", "matrix-up", "auth", "stream", "page"].includes(family)
    ? "stream"
    : "other";
}

/**
 * What the header and the view of the pools count in all objects.
 *
 * The `ready` of a pool counts the instances that a tenant can get: pool status `ready` and phase `Running`. Those with
 * another phase are `unusable`. `claimed`: acquired instances that an Active claim names.
 */
function count({ instances, claims, pools }) {
  const [phases, claimPhases, tenants, held] = [new Map(), new Map(), new Set(), new Set()];
  for (const { phase, tenantId, instanceId } of claims.values()) {
    claimPhases.set(phase, (claimPhases.get(phase) ?? 0) + 1);
    if (phase !== "Active") continue;
    tenants.add(tenantId);
    held.add(instanceId);
  }
  const found = new Map();
  for (const [workload, pool] of pools) found.set(workload, { ...pool, ready: 0, unusable: 0, failed: 0, claimed: 0 });
  for (const { name, phase, workloadRef, poolStatus } of instances.values()) {
    phases.set(phase, (phases.get(phase) ?? 0) + 1);
    const pool = found.get(workloadRef);
    if (!pool) continue;
    if (phase === "Failed") pool.failed += 1;
    if (poolStatus === "ready" && phase === "Running") pool.ready += 1;
    else if (poolStatus === "ready") pool.unusable += 1;
    else if (poolStatus === "acquired" && held.has(name)) pool.claimed += 1;
  }
  const byReady = [...found.values()].sort((a, b) => a.ready - b.ready || (a.workloadRef < b.workloadRef ? -1 : 1));
  return { phases, claimPhases, tenants: tenants.size, pools: byReady };
}

export class Store {
  connections = [];
  hasCredentials = false;
  hasOpened = false;
  /** Why the last connection failed or ended, until one is open. */
  lastError = undefined;
  /** Why a file of the page or an event could not be used. */
  notice = "";
  expiresAt = "";
  /**
   * `{ number, key, time, event }`, newest last. `key`: that of the event, which is the same on other pages; an event
   * without one has a key of this page. `time`: that of the event, or when it arrived.
   */
  log = [];
  /** The number of the newest row of the log. */
  logNumber = 0;
  /** Grows with each change of the log. */
  logVersion = 0;
  /** The row of the outage of the connection of this page, until it is open again. */
  #outage;
  #openedAt = Date.now();
  /** By workload: `{ at, warming, ready, acquired }`, with the `ready` of `overview`. */
  histories = new Map();
  historyNumber = 0;
  lastChangeAt = undefined;
  lastLiveAt = undefined;
  /** Milliseconds by which the clock of the bridge is ahead. Not known before the first heartbeat. */
  clockOffsetMs = undefined;
  #overview = cached();
  #second = { at: 0, count: 0 };
  #seconds = [];
  #lastRender = -Infinity;
  #isDue = false;
  #lastSample = -Infinity;
  #hiddenTimer;

  constructor(onChange) {
    this.onChange = onChange;
    this.base = new URL("..", import.meta.url);
    this.client = new BridgeClient({ url: this.base });
    this.client.addEventListener("event", ({ detail }) => this.#onEvent(detail));
    this.client.addEventListener("connection", ({ detail }) => this.#onConnection(detail));
    this.client.addEventListener("stale", () => this.invalidate());
    this.client.addEventListener("error", ({ detail }) => this.#onError(detail));
    document.addEventListener("visibilitychange", () => this.#onVisibility());
    this.#ticks();
  }

  // -- What arrives

  #onEvent(event) {
    this.#count();
    if (event.type === "heartbeat") {
      // No other time is that of the sending: a bridge can send a state again that it has taken long ago.
      const time = Date.parse(event.timestamp ?? "");
      if (!Number.isNaN(time)) this.clockOffsetMs = time - Date.now();
    } else {
      if (event.type !== "stream.closing") this.lastChangeAt = performance.now();
      this.#append(event);
    }
    if (event.type === "auth.expiring") this.expiresAt = event.expiresAt;
    this.invalidate();
  }

  #onConnection(connection) {
    const { status, error } = connection;
    if (status === "open") {
      this.hasOpened = true;
      this.lastError = undefined;
      this.expiresAt = "";
      this.#outage = undefined;
      this.#append({ type: "page.connected" });
      void this.#readConnections();
    } else if (status === "waiting") {
      this.lastError = error;
      this.#disconnected(because(error));
    } else if (status === "closed" && error && error.status !== 401) {
      setTimeout(() => this.client.connection.status === "closed" && this.client.start(), RETRY_MS);
    }
    this.invalidate();
  }

  #onError({ kind, message }) {
    if (kind === "malformed")
      this.notice = `${this.client.counters.malformed} events could not be read. The last one: ${message}`;
    if (kind === "upgrade") this.notice = message;
    this.invalidate();
  }

  #append(event) {
    // A state can be large. The log keeps its counts.
    if (event.type === "state.initial") {
      if (event.more) return;
      const { type, id, snapshotAt: time, reason } = event;
      const { instances, claims } = this.client.state;
      event = { type, id, time, reason, instances: instances.size, claims: claims.size };
    }
    // The bridge can say at each attempt why it refuses the stream. The row of the outage has the newest reason.
    if (event.type === "stream.closing" && this.#outage) return;
    this.logNumber += 1;
    this.logVersion += 1;
    const time = event.time || this.now().toISOString();
    const key = event.key || `${this.#openedAt.toString(36)}-${this.logNumber}`;
    this.log.push({ number: this.logNumber, key, time, event });
    // Cut in steps, because removing the first item of a list moves all others.
    if (this.log.length >= MAX_LOG + 200) this.log = this.log.slice(-MAX_LOG);
  }

  /** One row for an outage, with the number of failed attempts. */
  #disconnected(reason) {
    const before = this.#outage;
    if (!before) {
      this.#append({ type: "page.disconnected", reason, wasOpen: this.hasOpened, failedAttempts: 0 });
      this.#outage = this.log.at(-1);
      return;
    }
    const event = { ...before.event, reason, failedAttempts: before.event.failedAttempts + 1 };
    this.#outage = { ...before, event };
    const index = this.log.lastIndexOf(before);
    if (index >= 0) this.log[index] = this.#outage;
    this.logVersion += 1;
  }

  /** From when on the log is complete: since the page was opened, or since its oldest row. */
  get logStart() {
    const isCut = this.logNumber > this.log.length;
    return { isCut, time: isCut ? this.log[0].time : this.#openedAt + (this.clockOffsetMs ?? 0) };
  }

  async #readConnections() {
    const get = (credentials) => fetch(new URL("api/v1/connections", this.base), { cache: "no-store", credentials });
    try {
      const response = await get("same-origin");
      if (response.ok) this.connections = await response.json();
      // Without credentials the same request tells whether there is something to sign out of.
      this.hasCredentials = (await get("omit")).status === 401;
    } catch {
      // The stream itself reports what is wrong with the connection.
    }
    this.invalidate();
  }

  // -- Numbers

  #count() {
    const second = Math.floor(performance.now() / 1000);
    if (this.#second.at !== second) {
      this.#seconds.push(this.#second);
      if (this.#seconds.length > RATE_SECONDS) this.#seconds.shift();
      this.#second = { at: second, count: 0 };
    }
    this.#second.count += 1;
  }

  /** Events a second, over the last complete seconds. */
  get eventsPerSecond() {
    const now = Math.floor(performance.now() / 1000);
    const recent = [...this.#seconds, this.#second].filter(({ at }) => at < now && at >= now - RATE_SECONDS);
    return recent.reduce((sum, { count }) => sum + count, 0) / RATE_SECONDS;
  }

  /** `phases`, `claimPhases`: numbers by phase. `tenants`: those with an Active claim. `pools`: fewest ready first. */
  get overview() {
    const { state } = this.client;
    return this.#overview(state.version, [], () => count(state));
  }

  /** The time by the clock of the bridge. */
  now() {
    return new Date(Date.now() + (this.clockOffsetMs ?? 0));
  }

  /** When the state was known to be current. A bridge without its API server sends an old state as a new message. */
  get stateTime() {
    const { upstreamAgeMs } = this.client.freshness;
    if (upstreamAgeMs === undefined) return this.lastLiveAt;
    const heardAt = new Date(this.now().getTime() - upstreamAgeMs);
    return this.lastLiveAt && this.lastLiveAt < heardAt ? this.lastLiveAt : heardAt;
  }

  get isLive() {
    return !this.client.isStale;
  }

  #sample() {
    const at = performance.now();
    if (!this.isLive || at - this.#lastSample < SAMPLE_MS) return;
    this.#lastSample = at;
    this.historyNumber += 1;
    const { pools } = this.overview;
    for (const { workloadRef: workload, warming, ready, acquired } of pools) {
      let samples = this.histories.get(workload);
      if (!samples) {
        if (this.histories.size >= MAX_HISTORIES) continue;
        this.histories.set(workload, (samples = []));
      }
      samples.push({ at, warming, ready, acquired });
      if (samples.length > MAX_SAMPLES) samples.shift();
    }
    const { pools: existing } = this.client.state;
    for (const workload of this.histories.keys()) if (!existing.has(workload)) this.histories.delete(workload);
  }

  // -- Sessions

  /** Exchanges a key for a session cookie. The key is in this request only. Returns an error text, or nothing. */
  async signIn(key) {
    try {
      const url = new URL("api/v1/session", this.base);
      const headers = { Authorization: `Bearer ${key}` };
      const response = await fetch(url, { method: "POST", headers, credentials: "same-origin", redirect: "manual" });
      if (response.ok) {
        this.client.start();
        return "";
      }
      if (response.status === 401) return "The bridge does not accept this key.";
      const body = await response.json().catch(() => ({}));
      return typeof body.message === "string" ? body.message : `The bridge answered with status ${response.status}.`;
    } catch (error) {
      // A key with other characters than a header allows is a TypeError, too.
      return /headers|ByteString|ISO-8859-1/i.test(error.message)
        ? "The bridge does not accept this key."
        : "The bridge cannot be reached.";
    }
  }

  async signOut() {
    this.client.pause();
    await fetch(new URL("api/v1/session", this.base), { method: "DELETE" }).catch(() => {});
    location.reload();
  }

  // -- When to render

  #ticks() {
    setInterval(() => {
      if (document.hidden) return;
      if (this.isLive) this.lastLiveAt = this.now();
      this.#sample();
      this.invalidate();
    }, TICK_MS);
  }

  #onVisibility() {
    clearTimeout(this.#hiddenTimer);
    if (document.hidden) {
      this.#hiddenTimer = setTimeout(() => this.client.pause(), HIDDEN_PAUSE_MS);
      return;
    }
    if (this.client.connection.status === "paused") this.client.start();
    this.invalidate();
  }

  /** Renders soon. */
  invalidate() {
    if (this.#isDue || document.hidden) return;
    this.#isDue = true;
    const wait = Math.max(0, this.#lastRender + RENDER_MS - performance.now());
    setTimeout(() => requestAnimationFrame(() => this.#render()), wait);
  }

  /** Renders now, for what the user does. */
  #render() {
    this.#isDue = false;
    this.#lastRender = performance.now();
    this.onChange();
  }
}
