// Reads the full stream of boilerhouse-bridge (docs/protocol.md#full-stream): one module, no dependency, no build step.
// It runs in browsers, Node 20, Deno and Bun. The bridge serves this file at /client.js.
//
// Guarantees:
// - After a cut the stream resumes at the newest id, and no event is delivered twice: events are held back until their id
//   has come.
// - An unknown type, key or value is no error. A malformed event is counted and reported, and the stream continues.
// - Every buffer has a bound in LIMITS. A reader that is too slow makes the stream resume later; nothing is dropped.
// - A state that may be old is reported as stale, whatever the clock of the computer says.

/** @typedef {import("./client.d.ts").BridgeEvent} BridgeEvent */
/** @typedef {import("./client.d.ts").KnownEvent} KnownEvent */
/** @typedef {import("./client.d.ts").Block} Block */
/** @typedef {import("./client.d.ts").Options} Options */
/** @typedef {import("./client.d.ts").Freshness} Freshness */
/** @typedef {import("./client.d.ts").Connection} Connection */
/** @typedef {import("./client.d.ts").ErrorKind} ErrorKind */

export const LIMITS = Object.freeze({
  /** One event. A bridge sends less than 32 KiB, unless one object alone is larger (Kubernetes allows 1.5 MiB). */
  eventBytes: 4 << 20,
  /** Events that wait for one iterator. */
  queuedEvents: 10_000,
  /** One id. A cursor of a bridge has about 50 characters, and servers accept header lines of at least 8 KiB. */
  idChars: 4096,
  /** Events whose id has not come: more than a difference of a large namespace has. Beyond it they are delivered. */
  heldBytes: 64 << 20,
  /** Of an error answer. */
  errorBytes: 64 << 10,
  minDelayMs: 1000,
  maxDelayMs: 30_000,
  /** So many times in a row a WebSocket must fail to open while SSE works, before the client uses SSE. */
  upgradeFailures: 2,
  /** After this time a reconnect tries WebSocket again. */
  upgradeRetryMs: 600_000,
});

const CONNECT_TIMEOUT_MS = 15_000;
/** Silence before the interval of the heartbeats is known: twice the longest of a bridge (60 s), and the margin. */
const INITIAL_SILENCE_MS = 130_000;
const SILENCE_MARGIN_MS = 10_000;
/** The default interval of heartbeats, and the shortest that is taken for one: two can follow each other at once. */
const HEARTBEAT_MS = 15_000;
const MIN_HEARTBEAT_MS = 4000;
/** How often silence and sleep are checked. */
const TICK_MS = 1000;
/** A longer gap between two ticks means that the computer slept, or that the page was in the background. */
const SLEEP_GAP_MS = 5000;
/** After a sleep, a connection that has been silent for a heartbeat and this time is replaced at once. */
const WAKE_MARGIN_MS = 5000;
const PROBE_TIMEOUT_MS = 5000;
/** While the browser says that it is offline, the bridge is asked so often: it can be on the same computer. */
const PROBE_PAUSE_MS = 3000;
const MAX_LINE_CHARS = 200;
const DELETED = "Deleted";
const KNOWN = new Set(
  (
    "state.initial instance.state claim.state pool.instance.ready tenant.claimed tenant.released pool.depth heartbeat " +
    "telemetry mqtt.message upstream.down upstream.up matrix-down matrix-up auth.expiring stream.closing relay.gap"
  ).split(" "),
);

// ---- Errors -------------------------------------------------------------------------------------------------------

export class BridgeError extends Error {
  /**
   * @param {ErrorKind} kind
   * @param {string} message
   * @param {Partial<import("./client.d.ts").BridgeError>} [details]
   */
  constructor(kind, message, details = {}) {
    super(message);
    this.name = "BridgeError";
    this.kind = kind;
    this.isFinal = details.isFinal ?? kind === "setting";
    this.status = details.status;
    this.code = details.code;
    this.parameter = details.parameter;
    this.reason = details.reason;
    this.detail = details.detail;
    this.retryAfterMs = details.retryAfterMs;
  }
}

/** @param {string} text */
const firstLine = (text) => (text.split(/[\r\n]+/).find((line) => line.trim()) ?? "").trim().slice(0, MAX_LINE_CHARS);

/** @param {unknown} error */
const words = (error) => {
  const { message, cause } = /** @type {any} */ (error ?? {});
  return firstLine([message ?? String(error), cause?.message ?? cause?.code].filter(Boolean).join(": "));
};

/**
 * Returns the start of a body.
 * @param {Response} response
 */
async function readStart(response) {
  const reader = response.body?.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    while (reader && text.length < LIMITS.errorBytes) {
      const { value, done } = await reader.read();
      if (done) break;
      text += decoder.decode(value, { stream: true });
    }
    await reader?.cancel();
  } catch {
    // What has arrived is enough.
  }
  return text;
}

/**
 * Returns the error for an answer that is not the expected one.
 * @param {Response} response
 * @param {string} expected
 */
async function refusal(response, expected) {
  const { status, headers, type } = response;
  if (type === "opaqueredirect" || (status >= 300 && status < 400)) {
    await response.body?.cancel().catch(() => {});
    const to = headers.get("location")?.split("?")[0];
    const message = `the server redirects${to ? ` to ${to}` : ""}: a proxy asks for a sign-in, or the URL is wrong`;
    return new BridgeError("redirect", message, { status: status || undefined });
  }
  const text = await readStart(response);
  if (response.ok) {
    const found = headers.get("content-type") ?? "no content type";
    const message = `the answer is ${status} with ${found}, not ${expected}: ${firstLine(text)}`;
    return new BridgeError("not-a-stream", message);
  }
  /** @type {any} */
  let body = {};
  try {
    body = JSON.parse(text) ?? {};
  } catch {
    // The page of a proxy.
  }
  const isPage = /^\s*</.test(text);
  const said = typeof body.message === "string" ? body.message : isPage ? "" : firstLine(text);
  const seconds = Number(headers.get("retry-after") ?? NaN);
  return new BridgeError("status", `HTTP ${status}: ${said || response.statusText || "no text"}`, {
    status,
    code: typeof body.code === "string" ? body.code : undefined,
    parameter: typeof body.details?.parameter === "string" ? body.details.parameter : undefined,
    retryAfterMs: seconds >= 0 ? seconds * 1000 : undefined,
    // 408, 425 and 429 pass by themselves.
    isFinal: status >= 400 && status < 500 && ![408, 425, 429].includes(status),
  });
}

// ---- Events -------------------------------------------------------------------------------------------------------

export class SseParser {
  #decoder = new TextDecoder();
  #line = "";
  #afterCr = false;
  /** @type {string | undefined} */
  #id;
  /** @type {string | undefined} */
  #name;
  /** @type {string | undefined} */
  #data;
  /** @type {string | undefined} */
  lastId;
  /** @type {number | undefined} */
  retryMs;

  get heldBytes() {
    return this.#line.length + (this.#data?.length ?? 0);
  }

  /** @param {Uint8Array} bytes */
  push(bytes) {
    /** @type {Block[]} */
    const blocks = [];
    let text = this.#decoder.decode(bytes, { stream: true });
    if (this.#afterCr && text) {
      if (text[0] === "\n") text = text.slice(1);
      this.#afterCr = false;
    }
    let start = 0;
    for (const { 0: end, index } of text.matchAll(/\r\n|\r|\n/g)) {
      this.#onLine(this.#line + text.slice(start, index), blocks);
      this.#line = "";
      start = index + end.length;
    }
    this.#line += text.slice(start);
    if (text.endsWith("\r")) this.#afterCr = true;
    return blocks;
  }

  /**
   * @param {string} line
   * @param {Block[]} blocks
   */
  #onLine(line, blocks) {
    if (line === "") {
      const [id, name, data] = [this.#id, this.#name, this.#data];
      this.#id = this.#name = this.#data = undefined;
      if (id !== undefined) this.lastId = id;
      if (data !== undefined) blocks.push({ id, name, data, isSse: true });
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "event") this.#name = value || undefined;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "data") this.#data = this.#data === undefined ? value : `${this.#data}\n${value}`;
    else if (field === "retry" && /^\d+$/.test(value)) this.retryMs = Number(value);
  }
}

/** @param {any} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * What the fold and the client need of an event.
 * @type {Record<string, (event: any) => boolean>}
 */
const SHAPES = {
  "state.initial": (event) =>
    ["instances", "claims"].every((key) => isList(event[key], "uid")) && isList(event.pools, "workloadRef"),
  "instance.state": (event) => typeof event.phase === "string" && typeof event.instance?.uid === "string",
  "claim.state": (event) => typeof event.phase === "string" && typeof event.claim?.uid === "string",
  "pool.depth": (event) =>
    typeof event.workloadRef === "string" &&
    [event.warming, event.ready, event.acquired].every((count) => Number.isInteger(count)),
  heartbeat: (event) => typeof event.upstream === "string" && typeof event.upstreamAgeMs === "number",
};

/**
 * @param {any} list
 * @param {string} key
 */
const isList = (list, key) =>
  list === undefined || (Array.isArray(list) && list.every((item) => typeof item?.[key] === "string"));

/**
 * Returns whether a text can be sent back as a cursor: in a header, or in a query.
 * @param {string} id
 */
const isCursor = (id) => id.length <= LIMITS.idChars && !/[\0-\x1f\x7f-\x9f]/.test(id);

/**
 * Returns a text as fetch sends its UTF-8 in a header.
 * @param {string} text
 */
const inHeader = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/**
 * @param {Block} block
 * @returns {BridgeEvent}
 */
export function parseEvent({ id, name, data, isSse }) {
  const event = JSON.parse(data);
  if (!isObject(event)) throw new Error("no JSON object");
  if (typeof event.type !== "string") event.type = name ?? "";
  // A member of another server is no cursor of SSE, which has a field for it.
  const cursor = isSse ? id : event.id;
  if (typeof cursor === "string" && cursor !== "") event.id = cursor;
  else delete event.id;
  if (event.id && !isCursor(event.id)) {
    throw new Error(`its id is longer than ${LIMITS.idChars} characters, or has control characters`);
  }
  if (Object.hasOwn(SHAPES, event.type) && !SHAPES[event.type](event)) throw new Error("a key is missing or wrong");
  return event;
}

/**
 * @param {BridgeEvent} event
 * @returns {event is KnownEvent}
 */
export function isKnown(event) {
  return KNOWN.has(event.type);
}

// ---- The fold, and what survives a cut ----------------------------------------------------------------------------

export class State {
  /** @type {Map<string, import("./client.d.ts").Instance>} */
  instances = new Map();
  /** @type {Map<string, import("./client.d.ts").Claim>} */
  claims = new Map();
  /** @type {Map<string, import("./client.d.ts").Pool>} */
  pools = new Map();
  isComplete = false;
  /** @type {string | undefined} */
  connectionId;
  version = 0;
  /** The parts of a state that is not complete. @type {any[]} */
  #parts = [];
  /** The pools are those of a connection that has ended. */
  #hasOldPools = false;

  /** @param {string} name */
  instance(name) {
    for (const instance of this.instances.values()) if (instance.name === name) return instance;
  }

  /** @param {string} name */
  claim(name) {
    for (const claim of this.claims.values()) if (claim.name === name) return claim;
  }

  /** @param {BridgeEvent} event */
  apply(event) {
    const hadPools = this.#forgetPools(event);
    const hasChanged = this.#apply(/** @type {any} */ (event)) || hadPools;
    if (hasChanged) this.version += 1;
    return hasChanged;
  }

  /**
   * A resumed stream sends all pools that there are, and does not name the others (docs/protocol.md#resume). Until it
   * begins, the old ones are as good as the rest of the state. A rejected resume has `stream.closing` only.
   * @param {BridgeEvent} event
   */
  #forgetPools(event) {
    if (!this.#hasOldPools || event.type === "stream.closing") return false;
    this.#hasOldPools = false;
    const hadPools = this.pools.size > 0;
    this.pools.clear();
    return hadPools;
  }

  /** @param {KnownEvent} event */
  #apply(event) {
    switch (event.type) {
      case "state.initial":
        return this.#addPart(event);
      case "instance.state":
        return replace(this.instances, event.instance.uid, event.instance, event.phase === DELETED);
      case "claim.state":
        return replace(this.claims, event.claim.uid, event.claim, event.phase === DELETED);
      case "pool.depth": {
        const { workloadRef, warming, ready, acquired } = event;
        const isGone = warming + ready + acquired === 0;
        return replace(this.pools, workloadRef, { workloadRef, warming, ready, acquired }, isGone);
      }
      case "relay.gap": {
        // The next `state.initial` completes the state again.
        const wasComplete = this.isComplete;
        this.#parts = [];
        this.isComplete = false;
        return wasComplete;
      }
      default:
        return false;
    }
  }

  /** @param {import("./client.d.ts").StateInitial} part */
  #addPart(part) {
    this.#parts.push(part);
    if (part.more) return false;
    const parts = this.#parts;
    this.#parts = [];
    /** @param {"instances" | "claims" | "pools"} list @param {string} key @returns {Map<string, any>} */
    const collect = (list, key) =>
      new Map(parts.flatMap((part) => part[list] ?? []).map((/** @type {any} */ item) => [item[key], item]));
    this.instances = collect("instances", "uid");
    this.claims = collect("claims", "uid");
    this.pools = collect("pools", "workloadRef");
    this.connectionId = part.connectionId;
    this.isComplete = true;
    return true;
  }

  connectionEnded() {
    this.#parts = [];
    this.#hasOldPools = true;
  }
}

/**
 * @param {Map<string, any>} map
 * @param {string} key
 * @param {any} value
 * @param {boolean} isGone
 */
function replace(map, key, value, isGone) {
  if (isGone) return map.delete(key);
  map.set(key, value);
  return true;
}

/**
 * Only the last event of a resourceVersion or of a difference has an id, and a resume repeats what has no id
 * (docs/protocol.md#cursor). So the events before it are held back until it has come, and forgotten if the connection ends
 * before. Another replica may send other events instead, in another order.
 */
export class Dedupe {
  /** The last id that was delivered. @type {string | undefined} */
  cursor;
  /** @type {(event: BridgeEvent) => void} */
  #deliver;
  /** Events whose id has not come. @type {BridgeEvent[]} */
  #held = [];
  #heldBytes = 0;

  /** @param {(event: BridgeEvent) => void} deliver */
  constructor(deliver) {
    this.#deliver = deliver;
  }

  /**
   * Delivers an event, or holds it back.
   * @param {BridgeEvent} event
   * @param {number} bytes the length of its JSON
   */
  accept(event, bytes) {
    const waits = !event.id && (this.#held.length > 0 || this.#isFollowedById(event));
    this.#held.push(event);
    this.#heldBytes += bytes;
    if (!waits || this.#heldBytes > LIMITS.heldBytes) this.#release();
  }

  /** @param {string} [lastId] an id that no event carries: SSE knows blocks without data */
  connectionEnded(lastId) {
    // Such an id does not cover what is forgotten here. One that cannot be sent back would end every further try.
    if (lastId !== undefined && isCursor(lastId) && this.#held.length === 0) this.cursor = lastId || undefined;
    this.#take();
  }

  /**
   * Another event follows at once, which has the id of this one. Only the keys of a bridge end with the type: the events
   * of other servers do not wait.
   * @param {BridgeEvent} event
   */
  #isFollowedById(event) {
    const { key } = /** @type {any} */ (event);
    return this.cursor !== undefined && typeof key === "string" && key.endsWith(`.${event.type}`);
  }

  #release() {
    for (const event of this.#take()) {
      if (event.id) this.cursor = event.id;
      this.#deliver(event);
    }
  }

  #take() {
    const held = this.#held;
    this.#held = [];
    this.#heldBytes = 0;
    return held;
  }
}

export class Backoff {
  #failures = 0;

  /**
   * @param {number | undefined} askedMs a longer delay that the server asks for wins, up to the longest
   * @param {number} random from 0 to 1
   */
  next(askedMs, random) {
    const { minDelayMs, maxDelayMs } = LIMITS;
    const own = Math.min(minDelayMs * 2 ** Math.min(this.#failures, 8), maxDelayMs) * (0.5 + random / 2);
    this.#failures += 1;
    return Math.max(own, Math.min(askedMs ?? 0, maxDelayMs));
  }

  reset() {
    this.#failures = 0;
  }
}

/** Time since a moment, by the monotonic clock and, because that one may stop during sleep, by the other one too. */
class Stopwatch {
  #mono = performance.now();
  #wall = Date.now();

  restart() {
    this.#mono = performance.now();
    this.#wall = Date.now();
  }

  /** By the monotonic clock only, which cannot be set. */
  get ms() {
    return performance.now() - this.#mono;
  }

  /** The longer of both. A clock that was set forward looks like a sleep, which costs one reconnect. */
  get withSleepMs() {
    return Math.max(this.ms, Date.now() - this.#wall);
  }
}

// ---- The client ---------------------------------------------------------------------------------------------------

/** The events that wait for one iterator. */
class Queue {
  /** @type {BridgeEvent[]} */
  #in = [];
  /** @type {BridgeEvent[]} */
  #out = [];

  get length() {
    return this.#in.length + this.#out.length;
  }

  /** @param {BridgeEvent} event */
  push(event) {
    this.#in.push(event);
  }

  shift() {
    if (this.#out.length === 0) {
      this.#out = this.#in.reverse();
      this.#in = [];
    }
    return this.#out.pop();
  }
}

/** One reader of the iterator. @typedef {{ queue: Queue, wake: () => void }} Reader */

export class BridgeClient extends EventTarget {
  /** @type {Options} */
  #options;
  /** @type {URL} */
  #base;
  /** @type {string} */
  #query;
  /** @type {typeof globalThis.fetch} */
  #fetch;
  /** @type {Options["WebSocket"]} */
  #WebSocket;
  /** @type {State} */
  #state;
  #dedupe = new Dedupe((event) => this.#deliver(event));
  #backoff = new Backoff();
  /** @type {Connection} */
  #connection;
  #counters = { events: 0, malformed: 0, unknown: 0, connections: 0 };
  /** @type {Set<Reader>} */
  #readers = new Set();
  #hasListeners = false;
  /** Of the loop that connects. It is aborted by pause and close. @type {AbortController | undefined} */
  #loop;
  /** Of the current connection. @type {AbortController | undefined} */
  #link;
  /** Ends the wait before the next connection. @type {(() => void) | undefined} */
  #endWait;
  #hasOpened = false;
  #wasUnauthorized = false;
  #upgradeFailures = 0;
  /** @type {Stopwatch | undefined} */
  #sseSince;
  /** What `stream.closing` said. @type {{ reason: string, detail?: string, retryAfterMs?: number } | undefined} */
  #closing;
  /** @type {number | undefined} */
  #heartbeatMs;
  /** @type {Stopwatch | undefined} */
  #lastHeartbeat;
  /** @type {Stopwatch | undefined} */
  #lastByte;
  #lastTick = new Stopwatch();
  #lastProbe = new Stopwatch();
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #ticks;
  /** @type {{ ageMs: number, since: Stopwatch } | undefined} */
  #upstreamAge;
  /** @type {{ status: string, down: Map<string, import("./client.d.ts").Upstream> }} */
  #upstream = { status: "unknown", down: new Map() };
  #reported = "";
  /** @type {(() => void)[]} */
  #cleanUp = [];

  /** @param {Options} [options] */
  constructor(options = {}) {
    super();
    this.#options = options;
    this.#base = baseUrl(options);
    this.#query = queryOf(options);
    this.#fetch = options.fetch ?? globalThis.fetch?.bind(globalThis);
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (options.transport === "websocket" && !this.#WebSocket) {
      throw new BridgeError("setting", "there is no WebSocket: pass the option WebSocket, or use the transport sse");
    }
    if (!this.#fetch) throw new BridgeError("setting", "there is no fetch: pass the option fetch");
    if (options.since && !isCursor(options.since)) {
      throw new BridgeError("setting", "the option since is no cursor: it is too long or has control characters");
    }
    const transport = options.transport ?? (this.#WebSocket ? "websocket" : "sse");
    this.#connection = { status: "idle", transport };
    this.#state = /** @type {State} */ (options.state ?? new State());
    this.#dedupe.cursor = options.since;
    const { signal } = options;
    if (signal) {
      const close = () => this.close();
      signal.addEventListener("abort", close, { once: true });
      this.#cleanUp.push(() => signal.removeEventListener("abort", close));
    }
    this.#watchComputer();
    queueMicrotask(() => {
      if (signal?.aborted) this.close();
      else if (this.#connection.status === "idle") this.start();
    });
  }

  get state() {
    return this.#state;
  }

  get connection() {
    return this.#connection;
  }

  get upstream() {
    return this.#upstream;
  }

  get cursor() {
    return this.#dedupe.cursor;
  }

  get counters() {
    return this.#counters;
  }

  /** @returns {Freshness} */
  get freshness() {
    const ageMs = this.#lastByte?.ms;
    const age = this.#upstreamAge;
    const { snapshot, since } = this.#options;
    /** @type {Freshness["reason"]} */
    let reason;
    if (this.#connection.status !== "open") reason = "disconnected";
    else if (snapshot !== false && !since && !this.#state.isComplete) reason = "no state";
    else if (this.#silence() > (this.#heartbeatMs ?? HEARTBEAT_MS) + SILENCE_MARGIN_MS) reason = "silent";
    else if (!["live", "unknown"].includes(this.#upstream.status)) reason = "upstream";
    return { isStale: reason !== undefined, reason, ageMs, upstreamAgeMs: age && age.ageMs + age.since.ms };
  }

  get isStale() {
    return this.freshness.isStale;
  }

  start() {
    const { status } = this.#connection;
    if (status === "waiting") this.#endWait?.();
    if (this.#loop) return;
    this.#loop = new AbortController();
    void this.#run(this.#loop.signal);
  }

  pause() {
    if (this.#connection.status === "closed") return;
    this.#stop("paused");
  }

  close() {
    this.#stop("closed");
    for (const action of this.#cleanUp.splice(0)) action();
    this.#endReaders();
  }

  /** @type {EventTarget["addEventListener"]} */
  addEventListener(...listener) {
    this.#hasListeners = true;
    super.addEventListener(...listener);
  }

  /** @returns {AsyncIterableIterator<BridgeEvent>} */
  [Symbol.asyncIterator]() {
    /** @type {Reader} */
    const reader = { queue: new Queue(), wake: () => {} };
    this.#readers.add(reader);
    const next = async () => {
      for (;;) {
        const value = reader.queue.shift();
        if (value) {
          this.#resumeSlow();
          return { value, done: /** @type {false} */ (false) };
        }
        const { status, error } = this.#connection;
        if (!this.#readers.has(reader) || status === "closed") {
          if (this.#readers.delete(reader) && error) throw error;
          return { value: undefined, done: /** @type {true} */ (true) };
        }
        await new Promise((done) => (reader.wake = () => done(undefined)));
      }
    };
    const end = async () => {
      this.#readers.delete(reader);
      reader.wake();
      // An open connection would keep the process of a program that has left its loop.
      if (this.#readers.size === 0 && !this.#hasListeners) this.close();
      else this.#resumeSlow();
      return { value: undefined, done: /** @type {true} */ (true) };
    };
    return {
      next,
      return: end,
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  // -- One connection after the other

  /** @param {AbortSignal} signal */
  async #run(signal) {
    while (!signal.aborted) {
      const link = (this.#link = new AbortController());
      const { transport } = this.#connection;
      this.#closing = undefined;
      this.#set({ status: "connecting", transport });
      /** @type {BridgeError} */
      let error;
      try {
        error = await this.#connect(link);
      } catch (failure) {
        const isKnownFailure = failure instanceof BridgeError;
        error = isKnownFailure ? failure : new BridgeError("connect", `cannot connect: ${words(failure)}`);
      }
      link.abort();
      if (signal.aborted) return;
      if (this.#link === link) this.#link = undefined;
      this.#state.connectionEnded();
      if (this.#isRepeatedAtOnce(error)) continue;
      if (error.isFinal) return this.#fail(error);
      const delay = error.kind === "slow-reader" ? undefined : this.#backoff.next(error.retryAfterMs, Math.random());
      const retryAt = performance.now() + (delay ?? 0);
      this.#set({ status: "waiting", transport: this.#connection.transport, error, retryAt });
      this.#emit("error", error);
      if (!signal.aborted && !(delay === undefined && this.#hasCaughtUp())) await this.#wait(delay);
    }
  }

  /** @param {number} [delay] without it, until something ends the wait */
  #wait(delay) {
    return new Promise((done) => {
      const timer = delay === undefined ? undefined : setTimeout(() => this.#endWait?.(), delay);
      this.#endWait = () => {
        clearTimeout(timer);
        this.#endWait = undefined;
        done(undefined);
      };
    });
  }

  /** @param {BridgeError} error */
  #isRepeatedAtOnce(error) {
    // A release that does not accept the encoding of the cursor (docs/protocol.md#what-clients-must-do).
    if (error.parameter === "lastEventId" && this.#dedupe.cursor) {
      this.#dedupe.cursor = undefined;
      const { status, code, parameter } = error;
      const message = `the server does not accept the cursor (${error.message}); the stream starts again without one`;
      this.#emit("error", new BridgeError("cursor-rejected", message, { status, code, parameter }));
      return true;
    }
    // A token that was replaced: the provider is asked again, once.
    const { tokenProvider, ticket } = this.#options;
    const hasProvider = tokenProvider || typeof ticket === "function";
    if (error.status === 401 && hasProvider && this.#hasOpened && !this.#wasUnauthorized) {
      this.#wasUnauthorized = true;
      return true;
    }
    return false;
  }

  /** @param {BridgeError} error */
  #fail(error) {
    this.#loop = undefined;
    this.#set({ status: "closed", transport: this.#connection.transport, error });
    this.#emit("error", error);
    for (const reader of this.#readers) reader.wake();
  }

  /** @param {"paused" | "closed"} status */
  #stop(status) {
    const loop = this.#loop;
    this.#loop = undefined;
    loop?.abort();
    this.#link?.abort(new BridgeError("lost", status));
    this.#link = undefined;
    this.#endWait?.();
    this.#state.connectionEnded();
    this.#set({ status, transport: this.#connection.transport });
  }

  #endReaders() {
    for (const reader of [...this.#readers]) {
      this.#readers.delete(reader);
      reader.wake();
    }
  }

  /**
   * Reads one connection to its end. Returns or throws why it has ended.
   * @param {AbortController} link
   * @returns {Promise<BridgeError>}
   */
  async #connect(link) {
    const { transport = "websocket" } = this.#options;
    if (this.#sseSince && this.#sseSince.ms > LIMITS.upgradeRetryMs) this.#sseSince = undefined;
    if (transport === "sse" || !this.#WebSocket || this.#sseSince) {
      this.#connection.transport = "sse";
      return this.#readSse(link);
    }
    this.#connection.transport = "websocket";
    const error = await this.#readWebSocket(link);
    if (error.kind !== "upgrade") return error;
    // A WebSocket does not tell why it did not open. The answer to the same request over SSE does.
    return this.#readSse(link, () => {
      this.#upgradeFailures += 1;
      const isLast = this.#upgradeFailures >= LIMITS.upgradeFailures;
      const next = isLast ? "using server-sent events instead" : "trying again";
      const failure = new BridgeError("upgrade", `${error.message}, but server-sent events work: ${next}`);
      if (!isLast) throw failure;
      this.#sseSince = new Stopwatch();
      this.#upgradeFailures = 0;
      this.#connection.transport = "sse";
      this.#emit("error", failure);
    });
  }

  /**
   * @param {AbortController} link
   * @returns {Promise<BridgeError>}
   */
  async #readWebSocket(link) {
    const ticket = await this.#ticket(link.signal);
    const url = this.#url("api/websocket", this.#dedupe.cursor);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    if (ticket) url.searchParams.set("token", ticket);
    link.signal.throwIfAborted();
    return new Promise((resolve) => {
      const socket = new /** @type {typeof WebSocket} */ (this.#WebSocket)(url.href);
      let isOpen = false;
      let isEnded = false;
      /** @param {BridgeError} error */
      const end = (error) => {
        if (isEnded) return;
        isEnded = true;
        clearTimeout(timer);
        socket.onopen = socket.onmessage = socket.onclose = null;
        if (socket.readyState < 2) socket.close();
        this.#dedupe.connectionEnded();
        resolve(error);
      };
      const limit = this.#options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
      const noAnswer = () => end(new BridgeError("upgrade", `the WebSocket did not open within ${limit / 1000} s`));
      const timer = setTimeout(noAnswer, limit);
      link.signal.addEventListener("abort", () => end(link.signal.reason), { once: true });
      socket.onopen = () => {
        clearTimeout(timer);
        isOpen = true;
        this.#upgradeFailures = 0;
        this.#heard();
      };
      socket.onmessage = ({ data }) => {
        this.#heard();
        if (typeof data !== "string") return;
        if (data.length > LIMITS.eventBytes) return end(tooLarge());
        this.#receive({ data });
        if (!this.#hasRoom()) end(slowReader());
      };
      socket.onerror = () => {};
      socket.onclose = ({ code, reason }) => {
        if (!isOpen) return end(new BridgeError("upgrade", "the WebSocket did not open"));
        end(this.#endOf(code === 1006 || code === 1005 ? undefined : reason || `close code ${code}`));
      };
    });
  }

  /**
   * @param {AbortController} link
   * @param {() => void} [onWorking] called before the first event of a stream that works. It may throw.
   * @returns {Promise<BridgeError>}
   */
  async #readSse(link, onWorking) {
    const headers = await this.#headers(link.signal);
    headers.Accept = "text/event-stream";
    const { cursor } = this.#dedupe;
    // In the query, a text that is no cursor is a 400, as for the WebSocket. In the header it is a new state.
    if (cursor && !onWorking) headers["Last-Event-ID"] = inHeader(cursor);
    const url = this.#url("api/sse", onWorking && cursor);
    const { ticket } = this.#options;
    if (ticket) url.searchParams.set("token", typeof ticket === "function" ? await ticket() : ticket);
    const response = await this.#request(url, { headers, signal: link.signal });
    const type = response.headers.get("content-type")?.split(";")[0].trim().toLowerCase();
    if (response.status !== 200 || type !== "text/event-stream" || !response.body) {
      throw this.#judge(await refusal(response, "an event stream"));
    }
    const parser = new SseParser();
    const reader = response.body.getReader();
    this.#heard();
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return this.#endOf("end of the response", parser.retryMs);
        this.#heard();
        for (const block of parser.push(value)) {
          if (onWorking && !block.data.includes('"stream.closing"')) {
            onWorking();
            onWorking = undefined;
          }
          this.#receive(block);
        }
        if (parser.heldBytes > LIMITS.eventBytes) throw tooLarge();
        if (!this.#hasRoom()) throw slowReader();
      }
    } catch (error) {
      if (link.signal.aborted) throw link.signal.reason;
      if (error instanceof BridgeError) throw error;
      throw this.#closing ? this.#endOf("") : new BridgeError("lost", `the connection was lost: ${words(error)}`);
    } finally {
      // Until a stream works, no event of it but stream.closing has been delivered.
      this.#dedupe.connectionEnded(onWorking ? undefined : parser.lastId);
      reader.cancel().catch(() => {});
    }
  }

  /**
   * An answer that is no stream is final as long as no connection has ever worked: the URL is wrong.
   * @param {BridgeError} error
   */
  #judge(error) {
    if (error.kind === "not-a-stream" || error.kind === "redirect") error.isFinal = !this.#hasOpened;
    return error;
  }

  /**
   * @param {string} [reason] undefined if the connection was cut
   * @param {number} [retryAfterMs]
   */
  #endOf(reason, retryAfterMs) {
    const closing = this.#closing ?? (reason === undefined ? undefined : { reason, retryAfterMs });
    if (!closing) return new BridgeError("lost", "the connection was lost");
    const detail = this.#closing?.detail ? ` (${this.#closing.detail})` : "";
    return new BridgeError("closed", `the bridge closed the stream: ${closing.reason}${detail}`, closing);
  }

  // -- Requests

  /**
   * @param {string} path
   * @param {string} [cursor]
   */
  #url(path, cursor) {
    const url = new URL(path, this.#base);
    url.search = this.#query;
    if (cursor) url.searchParams.set("lastEventId", cursor);
    return url;
  }

  /**
   * @param {URL} url
   * @param {{ method?: string, headers?: Record<string, string>, signal: AbortSignal }} init
   */
  async #request(url, init) {
    const limit = this.#options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
    const abort = new AbortController();
    const late = () => abort.abort(new BridgeError("connect", `no answer within ${limit / 1000} s`));
    const timer = setTimeout(late, limit);
    const cancel = () => abort.abort(init.signal.reason);
    init.signal.addEventListener("abort", cancel, { once: true });
    if (init.signal.aborted) cancel();
    try {
      const { credentials = "same-origin" } = this.#options;
      // The signal also ends the body, so it stays connected after the head.
      const how = /** @type {const} */ ({ credentials, cache: "no-store", redirect: "manual" });
      return await this.#fetch(url.href, { ...init, ...how, signal: abort.signal });
    } catch (error) {
      if (abort.signal.aborted) throw abort.signal.reason;
      throw new BridgeError("connect", `cannot connect to ${url.host}: ${words(error)}`);
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * @param {AbortSignal} signal
   * @returns {Promise<Record<string, string>>}
   */
  async #headers(signal) {
    const { token, tokenProvider } = this.#options;
    const value = (tokenProvider ? await tokenProvider() : token)?.trim();
    signal.throwIfAborted();
    // The error of fetch would repeat the token.
    if (value && !/^[\x21-\x7e]+$/.test(value)) {
      throw new BridgeError("setting", "the token has characters that HTTP does not allow");
    }
    return value ? { Authorization: `Bearer ${value}` } : {};
  }

  /**
   * Returns a ticket where there is a token: a WebSocket cannot send a header.
   * @param {AbortSignal} signal
   */
  async #ticket(signal) {
    const { ticket } = this.#options;
    if (ticket) return typeof ticket === "function" ? ticket() : ticket;
    const headers = await this.#headers(signal);
    if (!headers.Authorization) return undefined;
    const response = await this.#request(new URL("api/v1/tickets", this.#base), { method: "POST", headers, signal });
    // 403: no credential is configured, or this one may not read. The stream tells which.
    if (response.status === 403) {
      await response.body?.cancel().catch(() => {});
      return undefined;
    }
    if (response.status !== 200) throw this.#judge(await refusal(response, "a ticket"));
    const body = await response.json().catch(() => undefined);
    if (typeof body?.ticket === "string") return body.ticket;
    throw this.#judge(new BridgeError("not-a-stream", "the answer of api/v1/tickets is no ticket, but another page"));
  }

  // -- What arrives

  #silence() {
    return this.#lastByte?.withSleepMs ?? 0;
  }

  #heard() {
    this.#lastByte ??= new Stopwatch();
    this.#lastByte.restart();
  }

  /** @param {Block} block */
  #receive(block) {
    /** @type {BridgeEvent} */
    let event;
    try {
      event = parseEvent(block);
    } catch (error) {
      this.#counters.malformed += 1;
      const message = `a malformed event (${words(error)}): ${firstLine(block.data)}`;
      return this.#emit("error", new BridgeError("malformed", message));
    }
    this.#note(/** @type {any} */ (event));
    this.#dedupe.accept(event, block.data.length);
  }

  /** @param {BridgeEvent} event */
  #deliver(event) {
    this.#counters.events += 1;
    if (!isKnown(event)) this.#counters.unknown += 1;
    const hasChanged = this.#state.apply(event);
    this.#emit("event", event);
    if (hasChanged) this.#emit("state", this.#state);
    for (const reader of this.#readers) {
      reader.queue.push(event);
      reader.wake();
    }
    this.#reportFreshness();
  }

  /** Records what an event says about the stream itself. @param {KnownEvent} event */
  #note(event) {
    if (event.type === "stream.closing") {
      const { reason, detail, retryAfterMs } = event;
      this.#closing = {
        reason: String(reason),
        detail: detail && String(detail),
        retryAfterMs: Number(retryAfterMs) || undefined,
      };
      return;
    }
    if (this.#connection.status === "connecting") this.#onOpen();
    if (event.type === "heartbeat") {
      const since = this.#lastHeartbeat?.ms ?? 0;
      // Two in a row, as after a resume, say nothing about the interval. The longest one counts.
      if (since >= MIN_HEARTBEAT_MS) this.#heartbeatMs = Math.min(Math.max(since, this.#heartbeatMs ?? 0), 60_000);
      this.#lastHeartbeat = new Stopwatch();
      this.#upstream.status = event.upstream;
      if (event.upstream === "live") this.#upstream.down.clear();
      this.#upstreamAge = { ageMs: event.upstreamAgeMs, since: new Stopwatch() };
    } else if ("resource" in event && event.resource === "nats") {
      // NATS between replicas of the bridge: the cluster is still watched.
    } else if (event.type === "upstream.down" || event.type === "matrix-down") {
      // The event of a relay names no resource.
      this.#upstream.down.set(event.resource ?? "", event);
      this.#upstream.status = "down";
    } else if (event.type === "upstream.up" || event.type === "matrix-up") {
      this.#upstream.down.delete(event.resource ?? "");
      if (this.#upstream.down.size === 0) this.#upstream.status = "live";
    }
  }

  #onOpen() {
    this.#hasOpened = true;
    this.#wasUnauthorized = false;
    this.#backoff.reset();
    this.#counters.connections += 1;
    this.#lastHeartbeat = undefined;
    this.#upstream = { status: "unknown", down: new Map() };
    this.#upstreamAge = undefined;
    this.#set({ status: "open", transport: this.#connection.transport });
  }

  /** @param {number} [bound] */
  #hasRoom(bound = LIMITS.queuedEvents) {
    for (const { queue } of this.#readers) if (queue.length >= bound) return false;
    return true;
  }

  /** A slow reader must catch up by half, or leave, before the stream resumes. */
  #hasCaughtUp() {
    return this.#hasRoom(LIMITS.queuedEvents / 2);
  }

  /** Ends the wait for a slow reader, which has no timer. */
  #resumeSlow() {
    if (this.#connection.error?.kind === "slow-reader" && this.#hasCaughtUp()) this.#endWait?.();
  }

  // -- Silence, sleep and the network of the computer

  #watchComputer() {
    /** @param {EventTarget | undefined} target @param {string} type @param {() => void} action */
    const on = (target, type, action) => {
      target?.addEventListener?.(type, action);
      this.#cleanUp.push(() => target?.removeEventListener?.(type, action));
    };
    const { document } = globalThis;
    if (!document) return;
    on(document, "visibilitychange", () => document.visibilityState === "visible" && this.#onWake());
    on(globalThis, "pageshow", () => this.#onWake());
    on(globalThis, "online", () => (this.#onWake(), void this.#probe()));
    on(globalThis, "offline", () => void this.#probe());
  }

  #tick() {
    const gap = this.#lastTick.withSleepMs;
    this.#lastTick.restart();
    if (globalThis.navigator?.onLine === false && this.#lastProbe.ms > PROBE_PAUSE_MS) void this.#probe();
    if (gap > SLEEP_GAP_MS) this.#onWake();
    else if ((this.#lastByte?.ms ?? 0) > this.#silenceMs()) this.#drop("silent");
    this.#reportFreshness();
  }

  #silenceMs() {
    const { silenceMs } = this.#options;
    const measured = this.#heartbeatMs === undefined ? INITIAL_SILENCE_MS : 2 * this.#heartbeatMs + SILENCE_MARGIN_MS;
    return silenceMs ?? Math.min(measured, INITIAL_SILENCE_MS);
  }

  /** After a sleep the connection may be dead without a notice. A resume is cheap. */
  #onWake() {
    const { status, error } = this.#connection;
    if (status === "waiting" && error?.status === undefined && error?.kind !== "slow-reader") this.#endWait?.();
    const limit = (this.#heartbeatMs ?? HEARTBEAT_MS) + WAKE_MARGIN_MS;
    if (status === "open" && this.#silence() > limit) this.#drop("silent since the computer slept");
    this.#reportFreshness();
  }

  /** Asks the bridge whether it can be reached. A browser that is offline still reaches its own computer. */
  async #probe() {
    const link = this.#link;
    if (this.#connection.status !== "open" || !link) return;
    this.#lastProbe.restart();
    try {
      const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
      await this.#fetch(new URL("api/v1/health", this.#base).href, { signal, cache: "no-store", credentials: "omit" });
    } catch {
      if (this.#link === link) this.#drop("the network of this computer is gone", "lost");
    }
  }

  /**
   * @param {string} reason
   * @param {ErrorKind} [kind]
   */
  #drop(reason, kind = "silent") {
    const seconds = Math.round(this.#silence() / 1000);
    const text = kind === "silent" ? `nothing has arrived for ${seconds} s (${reason})` : reason;
    this.#link?.abort(new BridgeError(kind, text));
  }

  // -- Reports

  /** @param {Connection} connection */
  #set(connection) {
    this.#connection = connection;
    const isReading = connection.status === "open" || connection.status === "connecting";
    if (isReading && this.#ticks === undefined) {
      this.#lastTick.restart();
      this.#ticks = setInterval(() => this.#tick(), TICK_MS);
    } else if (!isReading) {
      clearInterval(this.#ticks);
      this.#ticks = undefined;
    }
    if (connection.status === "connecting") this.#lastByte?.restart();
    this.#emit("connection", connection);
    // The event that opens a connection is applied first.
    if (connection.status !== "open") this.#reportFreshness();
  }

  #reportFreshness() {
    const { freshness } = this;
    const found = freshness.reason ?? "";
    if (found === this.#reported && this.#counters.events > 0) return;
    this.#reported = found;
    this.#emit("stale", freshness);
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

const tooLarge = () => new BridgeError("too-large", `an event is larger than ${LIMITS.eventBytes} bytes`);
const slowReader = () => new BridgeError("slow-reader", "the reader is too slow: the stream resumes later");

/** @param {Options} options */
function baseUrl({ url, token, tokenProvider, ticket, allowInsecure }) {
  const page = globalThis.document?.baseURI;
  /** @type {URL} */
  let base;
  try {
    base = new URL(url ?? "./", page);
  } catch {
    throw new BridgeError("setting", "the option url must be a URL of http or https, such as http://localhost:3000");
  }
  if (!["http:", "https:"].includes(base.protocol)) {
    throw new BridgeError("setting", `the scheme ${base.protocol} cannot be used: http and https are accepted`);
  }
  if (base.username || base.password) {
    throw new BridgeError("setting", "a URL must not contain a credential: use the option token");
  }
  const isSafe = base.protocol === "https:" || /^(.*\.)?localhost$|^127(\.\d+){3}$|^\[::1\]$/.test(base.hostname);
  if ((token || tokenProvider || ticket) && !isSafe && !allowInsecure) {
    const advice = "use https, or the option allowInsecure";
    throw new BridgeError("setting", `a credential is not sent over plain http to ${base.host}: ${advice}`);
  }
  base.search = base.hash = "";
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}

/** @param {Options} options */
function queryOf({ types, instanceFilter, claimFilter, snapshot }) {
  const query = new URLSearchParams();
  const filters = Object.entries({ instances: instanceFilter, claims: claimFilter });
  const params = Object.fromEntries(filters.filter(([, filter]) => filter && Object.keys(filter).length > 0));
  if (types?.length) query.set("types", types.join(","));
  if (Object.keys(params).length > 0) query.set("params", JSON.stringify(params));
  if (snapshot !== undefined) query.set("snapshot", snapshot ? "state" : "none");
  return query.toString();
}
