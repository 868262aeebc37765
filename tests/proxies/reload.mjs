// Reloads and restarts of each proxy, and the addresses of clients behind it. These parts need no cluster.
//
// A client behind the proxy and one that reads the bridge directly follow the same `demo`. A client that is cut resumes:
// it must have the events of the direct one, each once and in the same order, and no second initial state.
import { writeFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { BridgeClient } from "../../clients/js/client.js";
import { PROXIES, Proxy } from "./proxies.mjs";
import { Process, freePort, waitFor } from "./processes.mjs";

/// How long the clients need at most to connect, resume, and have an event.
const BOUND = 30_000;

/// A client and the keys of its events.
class Follower {
  constructor(label, url, transport, WebSocket) {
    Object.assign(this, { label, keys: [], initial: 0, opened: 0 });
    this.client = new BridgeClient({ url, transport, WebSocket });
    this.client.addEventListener("connection", ({ detail }) => (this.opened += detail.status === "open"));
    this.client.addEventListener("event", ({ detail }) => {
      if (detail.type === "state.initial") this.initial += 1;
      if (detail.key) this.keys.push(detail.key);
    });
    this.client.start();
  }
}

/// Waits until a follower has what the direct one has now.
async function caughtUp(follower, direct) {
  const newest = direct.keys.at(-1);
  const what = `${follower.label} has the event that the direct client has`;
  await waitFor(what, BOUND, () => follower.keys.includes(newest));
}

function compare(follower, direct) {
  const first = direct.keys.indexOf(follower.keys[0]);
  const expected = direct.keys.slice(first, first + follower.keys.length);
  const at = follower.keys.findIndex((key, index) => index < expected.length && key !== expected[index]);
  if (first < 0 || at >= 0)
    throw new Error(`${follower.label}: event ${at} is ${follower.keys[at]}, expected ${expected[at]}`);
  if (follower.initial !== 1) throw new Error(`${follower.label}: ${follower.initial} initial states, expected one`);
}

export async function reloads({ folder, modules, tls, binary, log }) {
  const { WebSocket } = createRequire(path.join(modules, "package.json"))("ws");
  const port = await freePort();
  const demo = new Process(folder, "demo", binary, ["demo", "--port", `${port}`, "--speed", "10"]);
  await demo.untilListening(port);
  const direct = new Follower("the direct client", `http://127.0.0.1:${port}`, "sse");
  await waitFor("the direct client has an event", BOUND, () => direct.keys.length > 0);
  const followers = [direct];
  try {
    for (const name of PROXIES) {
      const proxy = await Proxy.start(name, { folder, tls, bridge: port, label: `${name}-reload` });
      const behind = ["websocket", "sse"].map((transport) => {
        const label = `${name}, ${transport}`;
        return new Follower(label, proxy.http, transport, transport === "websocket" ? WebSocket : undefined);
      });
      followers.push(...behind);
      const all = (action) => Promise.all(behind.map(action));
      await all(({ label, keys }) => waitFor(`${label} has an event`, BOUND, () => keys.length > 0));
      const before = behind.map(({ opened }) => opened);
      const canReload = await proxy.reload();
      await all((follower) => caughtUp(follower, direct));
      const cut = behind.filter(({ opened }, index) => opened > before[index]).length;
      const atRestart = behind.map(({ opened }) => opened);
      await proxy.restart();
      await all((follower, index) =>
        waitFor(`${follower.label} is connected again`, BOUND, () => follower.opened > atRestart[index]),
      );
      await all((follower) => caughtUp(follower, direct));
      for (const follower of behind) {
        compare(follower, direct);
        follower.client.close();
      }
      await proxy.stop();
      const reload = canReload ? `a reload cuts ${cut} of 2 streams at once` : "it cannot reload its file";
      const events = behind.map(({ keys }) => keys.length).join(" and ");
      log(`${name}: ${reload}; after a restart both have resumed: ${events} events, none missing, none twice`);
    }
  } finally {
    for (const { client } of followers) client.close();
    await demo.stop();
  }
}

/// Sends a GET from an address of loopback, and returns how many requests the bridge still allows to its sender.
function remaining(port, localAddress) {
  return new Promise((done, failed) => {
    const options = { host: "127.0.0.1", port, path: "/api/v1/stats", localAddress, agent: false, timeout: 20_000 };
    const request = http.get(options, (response) => {
      response.resume();
      const found = /;r=(\d+);/.exec(response.headers.ratelimit ?? "");
      response.on("end", () =>
        found ? done(Number(found[1])) : failed(new Error(`no RateLimit header, status ${response.statusCode}`)),
      );
    });
    request.on("timeout", () => request.destroy(new Error("no answer")));
    request.on("error", failed);
  });
}

/// Requests a minute of a client, or of a proxy whose clients share a budget: more than the test sends.
const RATE = 100;

/// Each client has its own budget behind a proxy that the bridge trusts, and shares one behind another proxy.
export async function addresses({ folder, tls, binary, log }) {
  // No API server is needed: the bridge counts requests before it has a state.
  const kubeconfig = path.join(folder, "unreachable.json");
  const cluster = { name: "none", cluster: { server: "http://127.0.0.1:1" } };
  const context = { name: "none", context: { cluster: "none", user: "none" } };
  const users = [{ name: "none", user: {} }];
  writeFileSync(
    kubeconfig,
    JSON.stringify({ "current-context": "none", clusters: [cluster], contexts: [context], users }),
  );
  for (const isTrusted of [true, false]) {
    const bridge = await freePort();
    const flags = ["serve", "--port", `${bridge}`, "--request-rate", `${RATE}`];
    if (isTrusted) flags.push("--trusted-proxies", "127.0.0.1/32");
    const server = new Process(folder, `addresses-${isTrusted}`, binary, flags, { KUBECONFIG: kubeconfig });
    await server.untilListening(bridge);
    for (const [index, name] of PROXIES.entries()) {
      const proxy = await Proxy.start(name, { folder, tls, bridge, label: `${name}-addresses-${isTrusted}` });
      // Addresses that no other proxy of this test uses.
      const [one, other] = [`127.0.${index + 1}.1`, `127.0.${index + 1}.2`];
      const start = performance.now();
      const before = await remaining(proxy.port, one);
      await Promise.all(Array.from({ length: 9 }, () => remaining(proxy.port, one)));
      const after = await remaining(proxy.port, other);
      // A budget of its own is as new as that of the first client was. The shared one has 10 requests less, apart from those that
      // the bridge has allowed again meanwhile.
      const allowedAgain = Math.ceil(((performance.now() - start) / 60_000) * RATE);
      if (!(isTrusted ? after === before : after <= before - 10 + allowedAgain)) {
        const expected = isTrusted ? "a budget of its own" : "the same budget";
        throw new Error(`${name}: another client must have ${expected}: ${before} before, ${after} after 10 requests`);
      }
      await proxy.stop();
    }
    await server.stop();
  }
  log("the addresses of clients come through every proxy that the bridge trusts, and count only then");
}
