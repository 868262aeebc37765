// The types of client.js. docs/protocol.md of boilerhouse-bridge is the contract of the events.

/** A Pod of the platform. */
export interface Instance {
    name: string;
    uid: string;
    phase: string;
    workloadRef?: string;
    tenantId?: string;
    poolStatus?: string;
    ip?: string;
    createdAt: string;
    labels?: Record<string, string>;
}

/** A BoilerhouseClaim. */
export interface Claim {
    name: string;
    uid: string;
    tenantId: string;
    workloadRef: string;
    phase: string;
    instanceId?: string;
    endpoint?: { host: string; port: number };
    source?: string;
    claimedAt?: string;
    detail?: string;
    labels?: Record<string, string>;
}

/** The counts of one pool. */
export interface Pool {
    workloadRef: string;
    warming: number;
    ready: number;
    acquired: number;
}

interface Base {
    /** The cursor, if the event has one: on SSE the field `id`, on a WebSocket the member `id` of the data. */
    id?: string;
    /** Only where the bridge limits the rate of streams. */
    rate_limit?: { limit: number; remaining: number; reset_at: string };
}
interface Change extends Base {
    time: string;
    name: string;
    /** What identifies the event, on every replica. */
    key: string;
    /** States in between may have been skipped. */
    coalesced?: true;
}
export interface StateInitial extends Base {
    type: "state.initial";
    snapshotAt: string;
    reason: string;
    connectionId: string;
    instances: Instance[];
    claims: Claim[];
    pools: Pool[];
    /** Further parts follow. */
    more?: boolean;
}
export interface InstanceState extends Change {
    type: "instance.state";
    phase: string;
    previousPhase?: string;
    workloadRef?: string;
    tenantId?: string;
    instance: Instance;
    cause?: string;
}
export interface ClaimState extends Change {
    type: "claim.state";
    phase: string;
    previousPhase?: string;
    tenantId: string;
    workloadRef: string;
    claim: Claim;
    cause?: string;
}
export interface PoolInstanceReady extends Change {
    type: "pool.instance.ready";
    workloadRef?: string;
    uid: string;
}
export interface TenantClaimed extends Change {
    type: "tenant.claimed";
    tenantId?: string;
    workloadRef?: string;
    source?: string;
    uid: string;
}
export interface TenantReleased extends Change {
    type: "tenant.released";
    tenantId?: string;
    uid: string;
}
export interface PoolDepth extends Base, Pool {
    type: "pool.depth";
    time: string;
}
/** How the tunnel of an instance is used. Durations are in milliseconds. */
export interface Telemetry extends Base {
    type: "telemetry";
    time: string;
    /** The uid of the instance. */
    tunnelId: string;
    receivedAt: string;
    region: string | null;
    metrics: {
        ttl: number;
        opn: number;
        rt1Ms: number | null;
        rt5Ms: number | null;
        p50Ms: number | null;
        p90Ms: number | null;
        requests: number;
        errors: number;
        bytes: number;
    };
}
export interface MqttMessage extends Base {
    type: "mqtt.message";
    time: string;
    topic: string;
    payload: unknown;
}
export interface Heartbeat extends Base {
    type: "heartbeat";
    timestamp: string;
    /** `live`, `syncing`, `down`, or a later value, which is not `live`. */
    upstream: string;
    upstreamAgeMs: number;
    coalesced?: true;
}
export interface Upstream extends Base {
    type: "upstream.down" | "upstream.up" | "matrix-down" | "matrix-up";
    /** Of a bridge. A relay has none. */
    time?: string;
    /** Of a bridge: `pods`, `boilerhouseclaims` or `nats`. A relay has none. */
    resource?: string;
    /** Of `upstream.down` and `matrix-down`. */
    reason?: string;
    since?: string;
    /** Of a relay: the HTTP status of an answer that is no stream, or null. */
    status?: number | null;
    /** Of a relay: when it tries again. */
    retryAt?: string;
}
/** Of a relay: events may be missing here. */
export interface RelayGap extends Base {
    type: "relay.gap";
    reason: string;
}
export interface AuthExpiring extends Base {
    type: "auth.expiring";
    time: string;
    expiresAt: string;
}
export interface StreamClosing extends Base {
    type: "stream.closing";
    reason: string;
    /** What a person should know beyond the reason. */
    detail?: string;
    retryAfterMs?: number;
}
/** An event of a known type. */
export type KnownEvent =
    | StateInitial
    | InstanceState
    | ClaimState
    | PoolInstanceReady
    | TenantClaimed
    | TenantReleased
    | PoolDepth
    | Telemetry
    | MqttMessage
    | Heartbeat
    | Upstream
    | AuthExpiring
    | StreamClosing
    | RelayGap;
/** An event of a type that this release does not know. `isKnown` tells the two apart. */
export interface UnknownEvent extends Base {
    type: string;
    [key: string]: unknown;
}
export type BridgeEvent = KnownEvent | UnknownEvent;
/** True for an event of a known type. */
export function isKnown(event: BridgeEvent): event is KnownEvent;

export type ErrorKind =
    /** An option cannot be used. */
    | "setting"
    /** No connection, or no answer in time. */
    | "connect"
    /** An error status: see `status`, `code`, `parameter`. 401 and 403 are here. */
    | "status"
    /** The answer is no stream, but a page of a proxy, for example. */
    | "not-a-stream"
    /** The server redirects, to a sign-in of a proxy, for example. */
    | "redirect"
    /** The WebSocket does not open although SSE works: a proxy removes `Upgrade`. `message` says what follows. */
    | "upgrade"
    /** The server does not accept the cursor. The stream starts again without one: events may be missing. */
    | "cursor-rejected"
    /** One event cannot be used. The stream continues with the next one. */
    | "malformed"
    /** One event is larger than `LIMITS.eventBytes`. */
    | "too-large"
    /** The bridge has ended the stream: `reason` says why. */
    | "closed"
    /** The connection was cut. */
    | "lost"
    /** Nothing has arrived for too long, or since the computer slept. */
    | "silent"
    /** The reader of the iterator is too slow. The stream resumes when it has caught up. */
    | "slow-reader";

/** Why there is no stream, or an event is missing. */
export class BridgeError extends Error {
    constructor(kind: ErrorKind, message: string, details?: Partial<BridgeError>);
    readonly kind: ErrorKind;
    /** The stream does not try again by itself. `start()` does. */
    readonly isFinal: boolean;
    readonly status?: number;
    readonly code?: string;
    /** The query parameter that the bridge rejects. */
    readonly parameter?: string;
    /** The reason of `stream.closing` or of the close frame. */
    readonly reason?: string;
    /** What `stream.closing` adds to the reason. */
    readonly detail?: string;
    readonly retryAfterMs?: number;
}

export interface InstanceFilter {
    name?: string;
    phase?: string;
    workloadRef?: string;
    tenantId?: string;
    poolStatus?: string;
    /** `null`: the label exists. */
    labels?: Record<string, string | null>;
}
export interface ClaimFilter {
    name?: string;
    phase?: string;
    tenantId?: string;
    workloadRef?: string;
    source?: string;
    labels?: Record<string, string | null>;
}

export type Transport = "websocket" | "sse";

export interface Options {
    /** The bridge, also below a path: `https://host/prefix/`. In a page the default is the folder of the page. */
    url?: string | URL;
    /** The default is `websocket` where there is a WebSocket, else `sse`. Only the default and `websocket` fall back. */
    transport?: Transport;
    instanceFilter?: InstanceFilter;
    claimFilter?: ClaimFilter;
    /** Exact types or families: `instance`, `claim`, `tenant`, `pool`, `telemetry`, `mqtt`. */
    types?: string[];
    /** `false`: start with the first change. Then there is no state. */
    snapshot?: boolean;
    /** Resume after this cursor. */
    since?: string;
    /** The state at `since`, of an earlier client. */
    state?: State;
    /** An API key or a Kubernetes token. */
    token?: string;
    /** Returns the token for each connection. */
    tokenProvider?: () => string | Promise<string>;
    /** A stream ticket, if the program gets it elsewhere, or a function that returns one for each connection. */
    ticket?: string | (() => string | Promise<string>);
    /** Whether cookies are sent (fetch). The default is `same-origin`. */
    credentials?: "omit" | "same-origin" | "include";
    /** Sends a credential over plain http to any host. The default allows loopback only. */
    allowInsecure?: boolean;
    /** Closes the client. */
    signal?: AbortSignal;
    /** Replaces the global `WebSocket`, for example by that of the package `ws`. */
    WebSocket?: new (url: string) => WebSocket;
    /** Replaces the global `fetch`. */
    fetch?: typeof globalThis.fetch;
    /** For one connection, up to the head of the response. The default is 15 s. */
    connectTimeoutMs?: number;
    /** The silence after which a connection counts as dead. The default is two heartbeats and 10 s. */
    silenceMs?: number;
}

/** The state that follows from the events (docs/protocol.md#fold). Objects in it are never changed, only replaced. */
export class State {
    /** By uid. */
    readonly instances: ReadonlyMap<string, Instance>;
    /** By uid. */
    readonly claims: ReadonlyMap<string, Claim>;
    /** By workload. With the first event after a cut they are forgotten: a resumed stream sends all that there are. */
    readonly pools: ReadonlyMap<string, Pool>;
    /** A complete `state.initial` has been received, and no `relay.gap` since. */
    readonly isComplete: boolean;
    readonly connectionId?: string;
    /** Rises with every change. */
    readonly version: number;
    /** Finds an object by its name. */
    instance(name: string): Instance | undefined;
    claim(name: string): Claim | undefined;
    /** Applies an event. Returns true if the state has changed. */
    apply(event: BridgeEvent): boolean;
    /** Forgets what the next connection sends again: parts of an incomplete `state.initial`, and, with its first event, the pools. */
    connectionEnded(): void;
}

/** How fresh the state is. */
export interface Freshness {
    isStale: boolean;
    /** Why it is stale: the first of these that holds. */
    reason?: "disconnected" | "no state" | "silent" | "upstream";
    /** Since the last byte of the bridge, by the monotonic clock. */
    ageMs?: number;
    /** Since the last byte of the API server, as far as the bridge has told. */
    upstreamAgeMs?: number;
}

export interface Connection {
    status: "idle" | "connecting" | "open" | "waiting" | "paused" | "closed";
    transport: Transport;
    /** With `waiting`: the next try, in milliseconds of `performance.now()`. */
    retryAt?: number;
    /** With `waiting` and `closed`: why. */
    error?: BridgeError;
}

/** What is known about the API server behind the bridge. */
export interface UpstreamState {
    status: "unknown" | "live" | "syncing" | "down" | string;
    /** The resources that are down. */
    down: ReadonlyMap<string, Upstream>;
}

export interface Counters {
    events: number;
    malformed: number;
    unknown: number;
    connections: number;
}

interface EventMap {
    event: CustomEvent<BridgeEvent>;
    state: CustomEvent<State>;
    connection: CustomEvent<Connection>;
    stale: CustomEvent<Freshness>;
    error: CustomEvent<BridgeError>;
}

/** Bounds and times. */
export const LIMITS: Readonly<{
    eventBytes: number;
    queuedEvents: number;
    idChars: number;
    heldBytes: number;
    errorBytes: number;
    minDelayMs: number;
    maxDelayMs: number;
    upgradeFailures: number;
    upgradeRetryMs: number;
}>;

/** One stream across reconnects. It connects after the current task, so that listeners can be added before. */
export class BridgeClient extends EventTarget implements AsyncIterable<BridgeEvent> {
    constructor(options?: Options);
    readonly state: State;
    readonly connection: Readonly<Connection>;
    readonly upstream: UpstreamState;
    readonly freshness: Freshness;
    readonly isStale: boolean;
    /** The newest id: `since` of a later client. */
    readonly cursor: string | undefined;
    readonly counters: Readonly<Counters>;
    /** Connects now: after `pause`, after a final error, or instead of waiting. */
    start(): void;
    /** Ends the connection and keeps cursor and state. `start` resumes. */
    pause(): void;
    /** Ends the client. Iterators end. */
    close(): void;
    /**
     * The events from now on. A final error is thrown. Leaving the last loop (`break`) closes the client, unless it has ever
     * had a listener: a program can then exit.
     */
    [Symbol.asyncIterator](): AsyncIterableIterator<BridgeEvent>;
    addEventListener<K extends keyof EventMap>(
        type: K,
        listener: (event: EventMap[K]) => void,
        options?: boolean | AddEventListenerOptions,
    ): void;
    addEventListener(
        type: string,
        listener: EventListenerOrEventListenerObject | null,
        options?: boolean | AddEventListenerOptions,
    ): void;
}

/** A block of an event stream. */
export interface Block {
    /** The `id:` field. */
    id?: string;
    /** The `event:` field. */
    name?: string;
    data: string;
    /** A block of SSE, in which only the field `id` is a cursor. Elsewhere it is the member `id` of the data. */
    isSse?: true;
}
/** A parser of event streams (HTML standard, section 9.2.6). The input may be split anywhere. */
export class SseParser {
    lastId?: string;
    retryMs?: number;
    readonly heldBytes: number;
    push(bytes: Uint8Array): Block[];
}
/** Delays from 1 s on, doubling to 30 s, each drawn from its upper half. */
export class Backoff {
    next(askedMs: number | undefined, random: number): number;
    reset(): void;
}
/** Holds events back until their id has come, so that a resume does not repeat what was delivered. */
export class Dedupe {
    constructor(deliver: (event: BridgeEvent) => void);
    /** The last id that was delivered. */
    cursor?: string;
    /** Delivers an event, or holds it back. `bytes` is the length of its JSON. */
    accept(event: BridgeEvent, bytes: number): void;
    /** Forgets the events that are held back. `lastId` is an id that no event carries. */
    connectionEnded(lastId?: string): void;
}
/** Parses the JSON of an event. Throws text. */
export function parseEvent(block: Block): BridgeEvent;
