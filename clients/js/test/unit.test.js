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
  { id: "a", name: "x", data: "1" },
  { id: undefined, name: undefined, data: "" },
  { id: undefined, name: undefined, data: "2\n3" },
  { id: undefined, name: undefined, data: " é€😀" },
  { id: undefined, name: undefined, data: "5" },
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
  const parse = (data) => parseEvent({ id: "sse", name: "named", data });
  assert.deepEqual(parse('{"color":"red"}'), { color: "red", type: "named", id: "sse" });
  assert.equal(parse('{"type":"a","id":"c1"}').id, "c1");
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

test("delays double to the maximum and honour the server", () => {
  const backoff = new Backoff();
  const delays = Array.from({ length: 7 }, () => backoff.next(undefined, 1) / 1000);
  assert.deepEqual(delays, [1, 2, 4, 8, 16, 30, 30]);
  backoff.reset();
  assert.equal(backoff.next(undefined, 0), 500);
  assert.equal(backoff.next(7000, 0), 7000);
  assert.equal(backoff.next(3_600_000, 0), LIMITS.maxDelayMs);
});

test("events of a resourceVersion that were delivered before a cut are recognized", () => {
  const dedupe = new Dedupe();
  assert.equal(dedupe.accept({ type: "instance.state", id: "1", key: "a" }), true);
  assert.equal(dedupe.accept({ type: "claim.state", key: "b" }), true);
  dedupe.connectionEnded();
  // The heartbeat of a resume has the cursor of before.
  assert.equal(dedupe.accept({ type: "heartbeat", id: "1" }), true);
  assert.equal(dedupe.accept({ type: "claim.state", key: "b" }), false);
  assert.equal(dedupe.accept({ type: "tenant.claimed", id: "2", key: "c" }), true);
  assert.equal(dedupe.accept({ type: "claim.state", key: "b" }), true);
  assert.equal(dedupe.cursor, "2");
  dedupe.connectionEnded("3");
  assert.equal(dedupe.cursor, "3");
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
  }
});
