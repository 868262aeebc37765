// The parts of the client, without a network.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  Backoff,
  BridgeClient,
  BridgeError,
  Dedupe,
  LIMITS,
  SseParser,
  State,
  isKnown,
  parseEvent,
} from "../client.js";

const STREAM =
  "\uFEFFretry: 1500\nid: a\nevent: x\ndata: 1\n\n: comment\n\ndata\n\ndata:2\ndata: 3\r\n\r\nid\r\rdata:  é€😀\n\nevent: y\n\ndata: 5\n\ndata: cut";
const BLOCKS = [
  { id: "a", name: "x", data: "1", isSse: true },
  { id: undefined, name: undefined, data: "", isSse: true },
  { id: undefined, name: undefined, data: "2\n3", isSse: true },
  { id: undefined, name: undefined, data: " é€😀", isSse: true },
  { id: undefined, name: undefined, data: "5", isSse: true },
];

test("every split of a stream gives the same events", () => {
  const bytes = new TextEncoder().encode(STREAM);
  for (let first = 0; first <= bytes.length; first++) {
    for (let second = first; second <= bytes.length; second++) {
      const parser = new SseParser();
      const cuts = [bytes.subarray(0, first), bytes.subarray(first, second), bytes.subarray(second)];
      assert.deepEqual(
        cuts.flatMap((cut) => parser.push(cut)),
        BLOCKS,
        `cuts at ${first} and ${second}`,
      );
      assert.equal(parser.retryMs, 1500);
      assert.equal(parser.lastId, "");
    }
  }
});

test("one byte after the other gives the same events, and the held bytes are counted", () => {
  const parser = new SseParser();
  const blocks = [...new TextEncoder().encode(STREAM)].flatMap((byte) => parser.push(Uint8Array.of(byte)));
  assert.deepEqual(blocks, BLOCKS);
  assert.equal(parser.heldBytes, "data: cut".length);
});

const apply = (state, event) => state.apply(parseEvent({ data: JSON.stringify(event) }));

test("parts replace the state together, and events change it", () => {
  const state = new State();
  const part = (more, uid) => ({ type: "state.initial", reason: "connect", more, instances: [{ uid }], pools: [] });
  assert.equal(apply(state, part(true, "a")), false);
  assert.equal(state.isComplete || state.instances.size > 0, false);
  state.connectionEnded();
  assert.equal(apply(state, part(true, "b")), false);
  assert.equal(apply(state, part(false, "c")), true);
  assert.deepEqual([...state.instances.keys()], ["b", "c"]);
  const change = { type: "instance.state", phase: "Running", instance: { uid: "d", name: "n", phase: "Running" } };
  assert.equal(apply(state, change), true);
  assert.equal(state.instance("n")?.uid, "d");
  assert.equal(apply(state, { type: "instance.state", phase: "Deleted", instance: { uid: "d" } }), true);
  assert.equal(apply(state, { type: "instance.state", phase: "Deleted", instance: { uid: "d" } }), false);
  assert.equal(apply(state, { type: "claim.state", phase: "Active", claim: { uid: "e", name: "c" } }), true);
  assert.equal(state.claim("c")?.uid, "e");
  const depth = { type: "pool.depth", workloadRef: "w", warming: 0, ready: 1, acquired: 0 };
  assert.equal(apply(state, depth), true);
  assert.deepEqual(state.pools.get("w"), { workloadRef: "w", warming: 0, ready: 1, acquired: 0 });
  assert.equal(apply(state, { ...depth, ready: 0 }), true);
  assert.equal(apply(state, { type: "heartbeat", upstream: "live", upstreamAgeMs: 0 }), false);
  assert.equal(apply(state, { type: "new" }), false);
  assert.deepEqual([state.instances.size, state.claims.size, state.pools.size], [2, 1, 0]);
});

test("the pools are forgotten with the first event after a cut", () => {
  const state = new State();
  const depth = (workloadRef) => ({ type: "pool.depth", workloadRef, warming: 0, ready: 1, acquired: 0 });
  apply(state, { type: "instance.state", phase: "Running", instance: { uid: "d" } });
  apply(state, depth("gone"));
  apply(state, depth("w"));
  state.connectionEnded();
  assert.equal(apply(state, { type: "stream.closing", reason: "syncing" }), false, "no resume");
  assert.deepEqual([state.instances.size, state.pools.size], [1, 2]);
  const { version } = state;
  assert.equal(apply(state, { type: "heartbeat", upstream: "live", upstreamAgeMs: 0 }), true);
  assert.deepEqual([state.instances.size, state.pools.size, state.version], [1, 0, version + 1]);
  assert.equal(apply(state, depth("w")), true);
  assert.equal(apply(state, { type: "heartbeat", upstream: "live", upstreamAgeMs: 0 }), false);
  assert.deepEqual([...state.pools.keys()], ["w"]);
});

test("uids that are names of Object members are only keys", () => {
  const state = new State();
  for (const uid of ["__proto__", "constructor", "toString"]) {
    apply(state, { type: "instance.state", phase: "Running", instance: { uid } });
  }
  assert.equal(state.instances.size, 3);
  assert.equal(isKnown(parseEvent({ data: '{"type":"constructor"}' })), false);
  assert.equal({}.uid, undefined);
});

test("known types are parsed, unknown ones are passed on, malformed ones are errors", () => {
  const parse = (data) => parseEvent({ id: "sse", name: "named", data, isSse: true });
  assert.deepEqual(parse('{"color":"red"}'), { color: "red", type: "named", id: "sse" });
  assert.equal(isKnown(parse('{"type":"heartbeat","upstream":"live","upstreamAgeMs":1}')), true);
  for (const data of [
    "",
    "[]",
    "1",
    "null",
    "{",
    "<html>",
    '{"type":"heartbeat","upstreamAgeMs":"x"}',
    '{"type":"instance.state","phase":"Running"}',
    '{"type":"claim.state","phase":"Active","claim":{"uid":1}}',
    '{"type":"state.initial","instances":{}}',
    '{"type":"pool.depth","workloadRef":"w","ready":1.5}',
  ]) {
    assert.throws(() => parse(data), Error, data);
  }
});

test("the cursor is the id of the transport, and can be sent back", () => {
  const idOf = (block) => parseEvent(block).id;
  assert.equal(idOf({ id: "sse", data: '{"type":"a","id":"order-1"}', isSse: true }), "sse");
  assert.equal(idOf({ data: '{"type":"a","id":"order-1"}', isSse: true }), undefined);
  assert.equal(idOf({ id: "", data: '{"type":"a","id":"order-1"}', isSse: true }), undefined);
  assert.equal(idOf({ data: '{"type":"a","id":"c1"}' }), "c1");
  assert.equal(idOf({ data: '{"type":"a","id":17}' }), undefined);
  const { dedupe } = recorded("1");
  for (const id of ["a\u0001b", "\x7f", "x".repeat(LIMITS.idChars + 1)]) {
    assert.throws(() => parseEvent({ id, data: "{}", isSse: true }), /its id is longer than 4096 characters/);
    assert.throws(() => parseEvent({ data: JSON.stringify({ id }) }), /its id is longer than 4096 characters/);
    dedupe.connectionEnded(id);
    assert.equal(dedupe.cursor, "1");
  }
  dedupe.connectionEnded("x".repeat(LIMITS.idChars));
  assert.equal(dedupe.cursor.length, LIMITS.idChars);
});

test("a gap of a relay makes the state incomplete until the next one", () => {
  const state = new State();
  const part = (more) => ({ type: "state.initial", reason: "connect", more, instances: [{ uid: "a" }] });
  assert.equal(apply(state, { type: "relay.gap", reason: "expired" }), false);
  apply(state, part(false));
  const { version } = state;
  apply(state, part(true));
  assert.equal(apply(state, { type: "relay.gap", reason: "expired" }), true);
  assert.deepEqual([state.isComplete, state.version, state.instances.size], [false, version + 1, 1]);
  apply(state, { type: "state.initial", reason: "connect", instances: [{ uid: "b" }] });
  assert.deepEqual([state.isComplete, ...state.instances.keys()], [true, "b"], "the parts before the gap are forgotten");
});

test("delays double to the maximum and honour the server", () => {
  const backoff = new Backoff();
  const delays = Array.from({ length: 7 }, () => backoff.next(undefined, 1) / 1000);
  assert.deepEqual(delays, [1, 2, 4, 8, 16, 30, 30]);
  backoff.reset();
  assert.equal(backoff.next(undefined, 0), 500);
  assert.equal(backoff.next(7000, 0), 7000);
  assert.equal(backoff.next(3_600_000, 0), LIMITS.maxDelayMs);
});

/** A Dedupe, and the types that it has delivered since the last look. */
function recorded(cursor) {
  let types = "";
  const dedupe = new Dedupe(({ type, id }) => {
    types += type;
    if (id) assert.equal(dedupe.cursor, id);
  });
  dedupe.cursor = cursor;
  const look = () => {
    const found = types;
    types = "";
    return found;
  };
  const accept = (event, bytes = 10) => (dedupe.accept(event, bytes), look());
  return { dedupe, accept, look };
}
const FIRST = { type: "a", key: "u.1.a" };
const LAST = { type: "b", key: "u.1.b", id: "2" };

test("events are held back until their id has come", () => {
  const { dedupe, accept } = recorded();
  assert.equal(accept(FIRST), "a", "a server without ids");
  dedupe.cursor = "1";
  assert.equal(accept({ type: "pool.depth" }), "pool.depth");
  assert.equal(accept({ type: "order", key: "customer-1" }), "order", "the key of another server");
  assert.equal(accept(FIRST), "");
  assert.equal(accept({ type: "c" }), "", "the order stays");
  assert.equal(dedupe.cursor, "1");
  assert.equal(accept(LAST), "acb");
  assert.equal(dedupe.cursor, "2");
  assert.equal(accept(FIRST, LIMITS.heldBytes), "");
  assert.equal(accept(FIRST, 1), "aa", "the buffer is bounded");
  assert.equal(accept(FIRST, LIMITS.heldBytes), "", "the bound starts again");
  assert.equal(accept({ type: "heartbeat", id: "2" }), "aheartbeat", "any id releases them");
});

test("events whose id has not come are forgotten with the connection, and come once after a resume", () => {
  const { dedupe, accept } = recorded("1");
  assert.equal(accept(FIRST), "");
  dedupe.connectionEnded("7");
  assert.equal(dedupe.cursor, "1", "the id of a block does not cover what is forgotten");
  // A resume that is cut before the repetition, one that is cut inside it, and one that sends it in another order.
  assert.equal(accept({ type: "heartbeat", id: "1" }), "heartbeat");
  dedupe.connectionEnded("1");
  assert.equal(accept({ type: "heartbeat", id: "1" }), "heartbeat");
  assert.equal(accept(FIRST), "");
  dedupe.connectionEnded();
  assert.equal(accept({ type: "c", key: "u.2.c", id: "3" }), "c");
  assert.equal(accept(FIRST), "");
  assert.equal(accept(LAST), "ab");
  dedupe.connectionEnded("4");
  assert.equal(dedupe.cursor, "4");
  dedupe.connectionEnded("");
  assert.equal(dedupe.cursor, undefined);
});

test("options that cannot be used are errors with words, and show no secret", () => {
  for (const [options, expected] of [
    [{ url: "ftp://h" }, /http and https/],
    [{ url: "nothing" }, /must be a URL/],
    [{ url: "http://user:secret@h" }, /must not contain a credential/],
    [{ url: "http://10.0.0.1", token: "secret" }, /not sent over plain http/],
    [{ url: "http://localhost.example", tokenProvider: () => "secret" }, /not sent over plain http/],
    [{ url: "http://10.0.0.1", ticket: "secret" }, /not sent over plain http/],
    [{ url: "http://bridge", ticket: () => "secret" }, /not sent over plain http/],
    [{ url: "http://localhost", since: "secret\n" }, /since is no cursor/],
    [{ url: "http://h", transport: "websocket", WebSocket: undefined }, globalThis.WebSocket ? /^$/ : /no WebSocket/],
  ]) {
    const make = () => new BridgeClient(options).close();
    if (expected.source === "^$") make();
    else {
      assert.throws(make, (error) => {
        assert.ok(error instanceof BridgeError && error.kind === "setting" && error.isFinal);
        assert.match(error.message, expected);
        assert.doesNotMatch(error.message, /secret/);
        return true;
      });
    }
  }
  for (const url of ["https://h", "http://127.1.2.3:80", "http://[::1]", "http://localhost", "http://a.localhost"]) {
    new BridgeClient({ url, token: "t" }).close();
    new BridgeClient({ url, ticket: "t" }).close();
  }
  new BridgeClient({ url: "http://10.0.0.1", ticket: "t", allowInsecure: true }).close();
});
