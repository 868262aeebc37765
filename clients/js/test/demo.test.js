// The client against `demo` of the binary BRIDGE_BINARY, through a proxy that cuts connections.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import path from "node:path";
import { after, before, test } from "node:test";
import { BridgeClient } from "../client.js";
import { TcpProxy } from "./proxy.js";

const { BRIDGE_BINARY, BRIDGE_TEST_MODULES, BRIDGE_TEST_CUTS = "30" } = process.env;
const skip = BRIDGE_BINARY ? false : "BRIDGE_BINARY is not set";
const WebSocket = BRIDGE_TEST_MODULES
  ? createRequire(path.join(BRIDGE_TEST_MODULES, "x.js"))("ws").WebSocket
  : globalThis.WebSocket;
let demo, bridgePort;

before(async () => {
  if (skip) return;
  demo = spawn(BRIDGE_BINARY, ["demo", "--port", "0", "--speed", "40"], { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  await new Promise((done, failed) => {
    for (const output of [demo.stdout, demo.stderr]) {
      output.on("data", (data) => {
        text += text.length < 10_000 ? data : "";
        const found = /http:\/\/127\.0\.0\.1:(\d+)/.exec(text);
        if (found) done((bridgePort = Number(found[1])));
      });
    }
    demo.once("exit", () => failed(new Error(text)));
  });
});
after(() => demo?.kill());

const byUid = (list) => Object.fromEntries([...list].map((item) => [item.uid, item]));

/** Reads the GETs until two rounds have the same cursor, which is the cursor of the client. */
async function assertEqualToGets(client) {
  const get = async (name) => {
    const response = await fetch(`http://127.0.0.1:${bridgePort}/api/v1/${name}`);
    return { cursor: response.headers.get("event-cursor"), body: await response.json() };
  };
  for (let round = 0; round < 400; round++) {
    const instances = await get("instances");
    const tenants = await get("tenants");
    const pools = await get("pools");
    const cursor = instances.cursor;
    const waitUntil = performance.now() + 30;
    while (client.cursor !== cursor && performance.now() < waitUntil) await new Promise((done) => setTimeout(done, 1));
    if (tenants.cursor !== cursor || pools.cursor !== cursor || client.cursor !== cursor) continue;
    const { state } = client;
    const claims = tenants.body.flatMap((tenant) => tenant.claims);
    // Two keys are in the GETs only (docs/protocol.md#instance).
    for (const instance of instances.body) (delete instance.lastActivity, delete instance.claimedAt);
    assert.deepEqual(byUid(state.instances.values()), byUid(instances.body));
    assert.deepEqual(byUid(state.claims.values()), byUid(claims));
    return;
  }
  assert.fail("the client and the GETs never had the same cursor");
}

for (const transport of WebSocket ? ["sse", "websocket"] : ["sse"]) {
  test(
    `${transport}: the state equals the GETs after ${BRIDGE_TEST_CUTS} cuts, and no event comes twice`,
    { skip },
    async () => {
      const cutter = await new TcpProxy().open(bridgePort);
      const client = new BridgeClient({ url: cutter.url, transport, WebSocket });
      const keys = new Set();
      let twice = 0,
        initial = 0;
      client.addEventListener("event", ({ detail }) => {
        if (detail.type === "state.initial" && !detail.more) initial += 1;
        if (!detail.key) return;
        if (keys.has(detail.key)) twice += 1;
        keys.add(detail.key);
      });
      const open = async () => {
        while (client.connection.status !== "open") {
          client.start();
          await new Promise((done) => setTimeout(done, 5));
        }
      };
      try {
        await open();
        for (let cut = 0; cut < Number(BRIDGE_TEST_CUTS); cut++) {
          await new Promise((done) => setTimeout(done, Math.random() * 120));
          cutter.cut();
          while (client.connection.status === "open") await new Promise((done) => setTimeout(done, 1));
          await open();
        }
        await assertEqualToGets(client);
        assert.equal(twice, 0);
        assert.equal(initial, 1, "a resume needs no new state");
        console.log(`# ${transport}: ${client.counters.events} events, ${client.counters.connections} connections`);
      } finally {
        client.close();
        cutter.close();
      }
    },
  );
}
