// The client against a server that misbehaves. WebSocket is tested where the runtime or BRIDGE_TEST_MODULES (a folder with
// node_modules/ws) has one.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import path from "node:path";
import { test } from "node:test";
import { BridgeClient, LIMITS } from "../client.js";
import { ScriptedBridge } from "./scripted.js";

const folder = process.env.BRIDGE_TEST_MODULES;
const WebSocket = folder ? createRequire(path.join(folder, "x.js"))("ws").WebSocket : globalThis.WebSocket;
const TRANSPORTS = WebSocket ? ["sse", "websocket"] : ["sse"];
const change = (uid, id) => ({
  type: "instance.state",
  id,
  phase: "Running",
  name: uid,
  key: `${uid}.1.instance.state`,
  instance: { uid, name: uid },
});

/** Runs a test with a server and a client, which records what it reports. */
async function withClient(options, prepare, check) {
  const bridge = await new ScriptedBridge().start();
  prepare(bridge);
  const client = new BridgeClient({ url: bridge.url, WebSocket, ...options });
  const seen = { errors: [], events: [], stale: [] };
  client.addEventListener("error", ({ detail }) => seen.errors.push(detail));
  client.addEventListener("event", ({ detail }) => seen.events.push(detail));
  client.addEventListener("stale", ({ detail }) => seen.stale.push(detail.reason));
  try {
    await check({ bridge, client, seen });
  } finally {
    client.close();
    await bridge.stop();
  }
}

async function until(what, check, boundMs = 8000) {
  const end = performance.now() + boundMs;
  while (!check()) {
    assert.ok(performance.now() < end, `not in time: ${what}`);
    await new Promise((done) => setTimeout(done, 10));
  }
}

/** Asserts that the one error is a rejected cursor. */
function assertRejected(errors) {
  assert.deepEqual(
    errors.map(({ kind, isFinal, status, parameter }) => ({ kind, isFinal, status, parameter })),
    [{ kind: "cursor-rejected", isFinal: false, status: 400, parameter: "lastEventId" }],
  );
  assert.match(errors[0].message, /does not accept the cursor .*starts again without one/);
}

for (const transport of TRANSPORTS) {
  test(`${transport}: filters, types and the cursor are in the request`, () =>
    withClient(
      {
        transport,
        types: ["instance", "pool.depth"],
        instanceFilter: { labels: { team: null } },
        claimFilter: {},
        since: "c0",
        snapshot: false,
      },
      () => {},
      async ({ bridge, client }) => {
        await until("open", () => client.connection.status === "open");
        const { query, headers } = bridge.requests.at(-1);
        assert.equal(query.types, "instance,pool.depth");
        assert.equal(query.params, '{"instances":{"labels":{"team":null}}}');
        assert.equal(query.snapshot, "none");
        assert.equal(headers["last-event-id"] ?? query.lastEventId, "c0");
      },
    ));

  // The second connection ends after its heartbeat, before it repeats the event that came without an id.
  test(`${transport}: cuts are resumed at the newest id, and no event comes twice`, () =>
    withClient(
      { transport },
      (bridge) => {
        let connections = 0;
        bridge.onStream = (stream, cursor) => {
          connections += 1;
          if (!cursor) stream.send({ type: "state.initial", id: "c1", reason: "connect", ...bridge.state() });
          else stream.send({ type: "heartbeat", id: cursor, upstream: "live", upstreamAgeMs: 1 });
          if (connections !== 2) stream.send(change("a"));
          if (connections < 3) setTimeout(() => stream.cut(), 50);
          else stream.send(change("b", "c2"));
        };
      },
      async ({ bridge, client, seen }) => {
        await until("b", () => client.state.instances.has("b"));
        assert.deepEqual(
          seen.events.map((event) => event.name ?? event.type),
          ["state.initial", "heartbeat", "heartbeat", "a", "b"],
        );
        assert.deepEqual(
          seen.errors.map(({ kind }) => kind),
          ["lost", "lost"],
        );
        assert.equal(client.cursor, "c2");
        const requests = bridge.requests.filter(({ path }) => /sse|websocket/.test(path));
        assert.deepEqual(
          requests.map(({ headers, query }) => headers["last-event-id"] ?? query.lastEventId),
          [undefined, "c1", "c1"],
        );
        assert.ok(seen.stale.includes("disconnected") && !client.isStale);
      },
    ));

  test(`${transport}: malformed and unknown events do not end the stream`, () =>
    withClient(
      { transport },
      (bridge) => {
        bridge.onStream = (stream) => {
          stream.send({ type: "state.initial", id: "c1", reason: "connect", ...bridge.state() });
          for (const data of ["<html>", "[]", '{"type":"instance.state"}']) stream.raw(data);
          stream.send({ type: "instance.frozen", id: "c2", color: "red" });
          stream.send(change("a", "c3"));
        };
      },
      async ({ client, seen }) => {
        await until("a", () => client.state.instances.has("a"));
        assert.deepEqual(
          seen.errors.map(({ kind }) => kind),
          ["malformed", "malformed", "malformed"],
        );
        const { malformed, unknown, connections } = client.counters;
        assert.deepEqual({ malformed, unknown, connections }, { malformed: 3, unknown: 1, connections: 1 });
      },
    ));

  test(`${transport}: stream.closing gives the reason and the delay`, () =>
    withClient(
      { transport },
      (bridge) => {
        bridge.onStream = (stream) => {
          stream.send({ type: "state.initial", id: "c1", reason: "connect", ...bridge.state() });
          stream.send({ type: "stream.closing", reason: "draining", detail: "a roll-out", retryAfterMs: 2500 });
          stream.end();
        };
      },
      async ({ client, seen }) => {
        await until("the end", () => client.connection.status === "waiting");
        assert.equal(seen.errors[0].kind, "closed");
        assert.equal(seen.errors[0].reason, "draining");
        assert.equal(seen.errors[0].message, "the bridge closed the stream: draining (a roll-out)");
        assert.ok(client.connection.retryAt - performance.now() > 1000, "the own delay has at most 1 s");
        client.start();
        await until("the next connection", () => client.counters.connections === 2);
      },
    ));

  for (const [status, body, expected] of [
    [
      401,
      '{"code":"UNAUTHORIZED","message":"invalid API key"}',
      { kind: "status", status: 401, code: "UNAUTHORIZED", isFinal: true },
    ],
    [403, '{"code":"FORBIDDEN","message":"no"}', { kind: "status", status: 403, code: "FORBIDDEN", isFinal: true }],
    [
      503,
      '{"code":"NOT_READY","message":"wait"}',
      { kind: "status", status: 503, code: "NOT_READY", isFinal: false, retryAfterMs: 3000 },
    ],
    [502, "<html><h1>Bad Gateway</h1></html>", { kind: "status", status: 502, isFinal: false }],
    [200, "<html>Sign in</html>", { kind: "not-a-stream", isFinal: true }],
    [302, "", { kind: "redirect", isFinal: true }],
  ]) {
    test(`${transport}: the answer ${status} ${body.slice(0, 20)} is a typed error`, () =>
      withClient(
        { transport },
        (bridge) => {
          bridge.intercept = ({ path }, response) => {
            if (!/sse|websocket/.test(path)) return false;
            response
              .writeHead(status, { "retry-after": "3", "content-type": "text/html", location: "/login?secret" })
              .end(body);
            return true;
          };
        },
        async ({ client, seen }) => {
          await until("an error", () => seen.errors.length > 0);
          const [error] = seen.errors;
          if (status !== 503) expected.retryAfterMs = error.retryAfterMs;
          for (const [key, value] of Object.entries(expected)) assert.equal(error[key], value, `${key} of ${error}`);
          assert.equal(client.connection.status, expected.isFinal ? "closed" : "waiting");
          assert.equal(client.isStale, true);
          assert.doesNotMatch(error.message, /secret|<h1>/);
        },
      ));
  }
}

test(
  "a proxy that removes Upgrade: SSE after the documented number of failures",
  { skip: !WebSocket && "no WebSocket" },
  () =>
    withClient(
      {},
      (bridge) => (bridge.stripsUpgrade = true),
      async ({ bridge, client, seen }) => {
        await until("SSE", () => client.connection.status === "open");
        assert.equal(client.connection.transport, "sse");
        // A try that ends before it delivers does not move the cursor.
        const { headers, query } = bridge.requests.at(-1);
        assert.equal(headers["last-event-id"] ?? query.lastEventId, undefined);
        await until("the state", () => client.state.isComplete);
        assert.deepEqual(
          seen.errors.map(({ kind }) => kind),
          Array(LIMITS.upgradeFailures).fill("upgrade"),
        );
        assert.match(seen.errors.at(-1).message, /server-sent events instead/);
      },
    ),
);

test("a token opens a WebSocket by a ticket, and SSE by the header", async () => {
  for (const transport of TRANSPORTS) {
    await withClient(
      { transport, token: "key" },
      (bridge) => {
        bridge.intercept = ({ path, headers }, response) =>
          path === "/api/v1/tickets" &&
          headers.authorization === "Bearer key" &&
          bridge.json(response, 200, { ticket: "t1" });
      },
      async ({ bridge, client }) => {
        await until("open", () => client.connection.status === "open");
        const { headers, query } = bridge.requests.at(-1);
        assert.equal(
          transport === "sse" ? headers.authorization : query.token,
          transport === "sse" ? "Bearer key" : "t1",
        );
      },
    );
  }
});

test("a token that no header can hold is an error that does not repeat it", () =>
  withClient(
    { transport: "sse", token: "secret\nline" },
    () => {},
    async ({ bridge, client, seen }) => {
      await until("the error", () => client.connection.status === "closed");
      assert.equal(seen.errors[0].kind, "setting");
      assert.doesNotMatch(seen.errors[0].message, /secret/);
      assert.equal(bridge.requests.length, 0);
    },
  ));

test("a token that was replaced is asked for again, once", () => {
  let asked = 0;
  return withClient(
    { transport: "sse", tokenProvider: () => `k${++asked}` },
    (bridge) => {
      bridge.onStream = (stream, cursor) => {
        stream.send({ type: "heartbeat", id: cursor ?? "c", upstream: "live", upstreamAgeMs: 1 });
        if (asked === 1) stream.end();
      };
      bridge.intercept = ({ path, headers }, response) =>
        path === "/api/sse" && headers.authorization === "Bearer k2" && bridge.json(response, 401, {});
    },
    async ({ client, seen }) => {
      await until("the third token", () => client.counters.connections === 2);
      assert.equal(asked, 3);
      assert.deepEqual(
        seen.errors.map(({ kind }) => kind),
        ["closed"],
      );
    },
  );
});

test("a cursor that the release does not accept is discarded and reported", () =>
  withClient(
    { transport: "sse", since: "old", snapshot: false },
    (bridge) => {
      bridge.intercept = ({ path, headers }, response) =>
        path === "/api/sse" &&
        headers["last-event-id"] === "old" &&
        bridge.json(response, 400, { code: "BAD_REQUEST", message: "no", details: { parameter: "lastEventId" } });
    },
    async ({ client, seen }) => {
      await until("open", () => client.connection.status === "open");
      assertRejected(seen.errors);
    },
  ));

test(
  "a cursor that a WebSocket does not accept is discarded, and is no failure of the upgrade",
  { skip: !WebSocket && "no WebSocket" },
  () =>
    withClient(
      { transport: "websocket", since: "old" },
      (bridge) => {
        const body = { code: "BAD_REQUEST", message: "no", details: { parameter: "lastEventId" } };
        bridge.intercept = ({ query }, response) => {
          if (query.lastEventId !== "old") return false;
          response.writeHead(400, { "content-type": "application/json" }).end(JSON.stringify(body));
          return true;
        };
      },
      async ({ client, seen }) => {
        await until("open", () => client.connection.status === "open");
        assert.equal(client.connection.transport, "websocket");
        assertRejected(seen.errors);
      },
    ),
);

test("silence ends a connection, and the upstream is reported", () =>
  withClient(
    { transport: "sse", silenceMs: 1500 },
    () => {},
    async ({ bridge, client, seen }) => {
      await until("open", () => client.connection.status === "open");
      bridge.broadcast({
        type: "upstream.down",
        resource: "pods",
        time: "",
        since: "2026-01-01T00:00:00Z",
        reason: "unreachable",
      });
      await until("down", () => client.upstream.status === "down");
      assert.deepEqual([client.isStale, client.freshness.reason], [true, "upstream"]);
      bridge.broadcast({ type: "upstream.up", resource: "pods", time: "", since: "" });
      await until("up", () => !client.isStale);
      await until("silence", () => seen.errors.some(({ kind }) => kind === "silent"));
      await until("open again", () => client.counters.connections === 2);
    },
  ));

for (const transport of TRANSPORTS) {
  test(`${transport}: a program that leaves its loop exits`, async () => {
    const bridge = await new ScriptedBridge().start();
    try {
      const program = `
        import { createRequire } from "node:module";
        import { BridgeClient } from ${JSON.stringify(new URL("../client.js", import.meta.url).href)};
        const folder = ${JSON.stringify(folder ?? "")};
        const WebSocket = folder ? createRequire(folder + "/x.js")("ws").WebSocket : globalThis.WebSocket;
        const client = new BridgeClient({ url: ${JSON.stringify(bridge.url)}, transport: "${transport}", WebSocket });
        for await (const event of client) {
          console.log(event.type);
          break;
        }
        console.log(client.connection.status);`;
      const child = spawn(process.execPath, ["--input-type=module", "--eval", program], { timeout: 20_000 });
      let output = "";
      for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (output += data));
      const [code, signal] = await once(child, "close");
      assert.deepEqual({ code, signal, output }, { code: 0, signal: null, output: "state.initial\nclosed\n" });
    } finally {
      await bridge.stop();
    }
  });
}

test("a loop that is left leaves other loops and listeners their connection", async () => {
  const bridge = await new ScriptedBridge().start();
  const client = new BridgeClient({ url: bridge.url, transport: "sse" });
  try {
    const [first, second] = [client[Symbol.asyncIterator](), client[Symbol.asyncIterator]()];
    await first.next();
    await first.return();
    assert.equal(client.connection.status, "open");
    client.addEventListener("event", () => {});
    await second.return();
    assert.equal(client.connection.status, "open");
  } finally {
    client.close();
    await bridge.stop();
  }
});

test("the iterator yields all events, and ends with close, abort and a final error", async () => {
  const abort = new AbortController();
  await withClient(
    { transport: "sse", signal: abort.signal },
    () => {},
    async ({ bridge, client }) => {
      const names = [];
      for await (const event of client) {
        names.push(event.name ?? event.type);
        if (event.type === "state.initial") for (let i = 0; i < 50; i++) bridge.broadcast(change(`i${i}`, `c${i}`));
        if (event.name === "i49") break;
      }
      assert.equal(names.length, 51);
      const rest = client[Symbol.asyncIterator]();
      setTimeout(() => abort.abort(), 20);
      assert.deepEqual(await rest.next(), { value: undefined, done: true });
      assert.equal(client.connection.status, "closed");
    },
  );
  await withClient(
    { transport: "sse" },
    (bridge) =>
      (bridge.intercept = (_, response) => bridge.json(response, 403, { code: "FORBIDDEN", message: "no rights" })),
    async ({ client }) => {
      await assert.rejects(client[Symbol.asyncIterator]().next(), /no rights/);
    },
  );
});

test("a slow reader makes the stream resume later and gets everything", () =>
  withClient(
    { transport: "sse" },
    (bridge) => {
      const total = LIMITS.queuedEvents * 2.5;
      bridge.onStream = (stream, cursor) => {
        const from = cursor ? Number(cursor) + 1 : 0;
        for (let i = from; i < total; i++) stream.send(change(`i${i}`, `${i}`));
      };
    },
    async ({ client, seen }) => {
      const reader = client[Symbol.asyncIterator]();
      await until("the bound", () => seen.errors.some(({ kind }) => kind === "slow-reader"));
      for (let i = 0; i < LIMITS.queuedEvents * 2.5; i++) assert.equal((await reader.next()).value.id, `${i}`);
    },
  ));

test("a slow loop that is left lets the stream resume for the next loop", () =>
  withClient(
    { transport: "sse" },
    (bridge) => {
      const total = LIMITS.queuedEvents * 2;
      bridge.onStream = (stream, cursor) => {
        const from = cursor ? Number(cursor) + 1 : 0;
        for (let i = from; i < total; i++) stream.send(change(`i${i}`, `${i}`));
      };
    },
    async ({ client, seen }) => {
      const slow = client[Symbol.asyncIterator]();
      await until("the bound", () => seen.errors.some(({ kind }) => kind === "slow-reader"));
      const last = Number(client.cursor);
      await slow.return();
      let first;
      const read = async () => {
        for await (const event of client) {
          first = event;
          break;
        }
      };
      void read();
      await until("an event for the next loop", () => first);
      assert.equal(first.id, `${last + 1}`);
    },
  ));

test("ids that no header can hold do not become the cursor", () =>
  withClient(
    { transport: "sse" },
    (bridge) => {
      bridge.onStream = (stream, cursor) => {
        if (cursor) return stream.raw('{"type":"after"}', "c3");
        stream.raw('{"type":"before"}', "c€");
        stream.raw('{"type":"malformed"}', "c\u0001");
        stream.end();
      };
    },
    async ({ bridge, client, seen }) => {
      await until("the next connection", () => client.cursor === "c3");
      assert.deepEqual(
        seen.errors.map(({ kind }) => kind),
        ["malformed", "closed"],
      );
      const sent = bridge.requests.at(-1).headers["last-event-id"];
      assert.equal(Buffer.from(sent, "latin1").toString(), "c€");
    },
  ));

test("pause keeps the cursor and the state, start resumes", () =>
  withClient(
    { transport: "sse" },
    () => {},
    async ({ bridge, client }) => {
      await until("open", () => client.connection.status === "open");
      client.pause();
      assert.deepEqual([client.connection.status, client.isStale, client.state.isComplete], ["paused", true, true]);
      client.start();
      await until("open", () => client.connection.status === "open");
      assert.equal(bridge.requests.at(-1).headers["last-event-id"], "c1");
    },
  ));
