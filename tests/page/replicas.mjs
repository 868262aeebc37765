// The JavaScript client in Node, over WebSocket and over SSE at once, on two bridges and a real API server. Every
// connection leads to the other replica than the one before and is cut after a random number of bytes. Both replicas are
// killed once, and the API server is restarted. Every event of the writes must come exactly once, except where the
// stream itself reports a gap.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { BridgeClient } from "../../clients/js/client.js";
import { ControlPlane, controlPlaneBinaries, get } from "../proxies/control_plane.mjs";
import { stopAll as stopControlPlane } from "../proxies/processes.mjs";
import { check, same, until } from "./browser.mjs";
import { Bridge } from "./servers.mjs";
import { Random, Writer } from "./written_history.mjs";

/** Connections of each client that are cut. */
const CUTS = { quick: 20, full: 200 };
/** The bound of the cuts between two faults. */
const CUTS_BOUND_MS = 180_000;
/** A connection is cut after so many bytes of the server: the minimum, and the size of the range above it. */
const CUT_AFTER = [1000, 9000];
/**
 * Every so many connections, one is cut inside the head of the response. Two in a row would look to the client like a
 * proxy that removes `Upgrade`.
 */
const HEAD_CUT_EVERY = 10;
const HEAD_CUT_AFTER = 60;
/** The client waits at least 500 ms after a cut. The test wants the next connection at once. */
const RECONNECT_MS = 10;

/** A TCP proxy. Each connection leads to the next target that accepts it. Half of the cuts are resets. */
class Cutter {
  isActive = false;
  cuts = 0;
  /** Connections to another target than the one before. */
  switches = 0;
  #last = 0;
  #connections = 0;
  #sockets = new Set();

  /** `ports` is read for each connection. */
  constructor(ports, seed) {
    this.ports = ports;
    this.random = new Random(seed);
  }

  async open() {
    this.server = net.createServer((client) => this.#forward(client));
    await new Promise((done) => this.server.listen(0, "127.0.0.1", done));
    this.port = this.server.address().port;
    return this;
  }

  #limit() {
    if (!this.isActive) return Infinity;
    const [min, range] = CUT_AFTER;
    return this.#connections % HEAD_CUT_EVERY === 0 ? HEAD_CUT_AFTER : min + this.random.below(range);
  }

  #forward(client) {
    this.#connections += 1;
    const first = this.#connections % this.ports.length;
    const ports = [...this.ports.slice(first), ...this.ports.slice(0, first)];
    const limit = this.#limit();
    this.#sockets.add(client);
    client.on("error", () => {}).on("close", () => this.#sockets.delete(client));
    const connect = () => {
      const port = ports.shift();
      if (port === undefined) return client.destroy();
      const server = net.connect(port, "127.0.0.1");
      server.on("connect", () => {
        if (port !== this.#last) this.switches += 1;
        this.#last = port;
        server.off("error", connect).on("error", () => client.destroy());
        server.on("close", () => client.destroy());
        client.on("close", () => server.destroy());
        client.pipe(server);
        this.#copy(server, client, limit);
      });
      server.on("error", connect);
    };
    connect();
  }

  /** Copies the bytes of the server up to the limit, and cuts the connection there. */
  #copy(server, client, limit) {
    let left = limit;
    server.on("data", (bytes) => {
      if (left <= 0) return;
      const isLast = bytes.length >= left;
      const isReset = this.random.below(2) === 0;
      if (!client.write(bytes.subarray(0, left))) (server.pause(), client.once("drain", () => server.resume()));
      left -= bytes.length;
      if (!isLast) return;
      this.cuts += 1;
      server.destroy();
      if (isReset) client.resetAndDestroy();
      else client.destroySoon();
    });
  }

  /** Ends all connections. */
  end() {
    for (const socket of this.#sockets) socket.destroy();
  }

  async close() {
    this.end();
    await new Promise((done) => this.server.close(done));
  }
}

/** A client behind a cutter, and what it has received. */
class Follower {
  /** What arrived, in order: `{kind, key}` for each event with a key, `{gap: kinds}` for each report of a gap. */
  received = [];
  errors = {};
  counts = { events: 0, initial: 0, coalesced: 0, down: 0 };
  reasons = [];

  constructor(transport, cutter, WebSocket) {
    Object.assign(this, { transport, cutter });
    this.client = new BridgeClient({ url: `http://127.0.0.1:${cutter.port}`, transport, WebSocket });
    this.client.addEventListener("event", ({ detail }) => this.#note(detail));
    this.client.addEventListener("error", ({ detail }) => {
      this.errors[detail.kind] = (this.errors[detail.kind] ?? 0) + 1;
      if (detail.isFinal || detail.kind === "malformed") this.failure ??= detail;
    });
    this.client.addEventListener("connection", ({ detail }) => {
      // A delay that the bridge asks for is kept.
      if (detail.status !== "waiting" || detail.error?.retryAfterMs) return;
      setTimeout(() => this.client.start(), RECONNECT_MS);
    });
  }

  #note(event) {
    this.counts.events += 1;
    if (event.type === "upstream.down") this.counts.down += 1;
    if (event.type === "state.initial" && !event.more) {
      this.counts.initial += 1;
      this.reasons.push(event.reason);
      this.received.push({ gap: ["instance", "claim"] });
    }
    const kind = /^(instance|pool)\./.test(event.type) ? "instance" : "claim";
    if (event.coalesced) {
      this.counts.coalesced += 1;
      this.received.push({ gap: event.key ? [kind] : ["instance", "claim"] });
    }
    if (event.key) this.received.push({ kind, key: event.key, isCoalesced: event.coalesced === true });
  }

  check() {
    if (this.failure) throw this.failure;
    check(this.client.connection.status !== "closed", `${this.transport}: the client has ended`);
  }

  has(name) {
    return this.client.state.instance(name) !== undefined && this.client.state.claim(name) !== undefined;
  }

  async until(what, look, boundMs = 60_000) {
    const is = () => look() || this.failure;
    await until(`${this.transport}: ${what}`, is, boundMs).catch((error) => {
      throw new Error(`${error.message}; ${this.report()}`);
    });
    this.check();
  }

  report() {
    const { cutter, client, counts, errors, reasons } = this;
    return `${cutter.cuts} cuts, ${cutter.switches} changes of the replica, ${client.counters.connections} connections, ${JSON.stringify(counts)}, reasons ${reasons}, errors ${JSON.stringify(errors)}`;
  }

  /** Compares what arrived with what was written. Returns how many expected events lie in gaps that were reported. */
  compare(writer) {
    const { transport } = this;
    const found = new Set();
    // By kind: the numbers of writes between which events may be missing, the newest write, the gap without an end yet.
    const gaps = { instance: [], claim: [] };
    const newest = { instance: 0, claim: 0 };
    const open = {};
    for (const { gap, kind, key, isCoalesced } of this.received) {
      for (const name of gap ?? []) open[name] ??= newest[name];
      if (!key) continue;
      const written = writer.find(key);
      check(written.number !== undefined, `${transport}: ${key} was never written`);
      check(!found.has(written.key), `${transport}: ${key} is delivered twice`);
      found.add(written.key);
      const isInOrder = isCoalesced || written.number >= newest[kind];
      check(isInOrder, `${transport}: ${key} of write ${written.number} comes after write ${newest[kind]}`);
      newest[kind] = Math.max(newest[kind], written.number);
      if (isCoalesced) continue;
      check(writer.expected.has(written.key), `${transport}: ${key} is not expected`);
      if (open[kind] !== undefined) gaps[kind].push([open[kind], written.number]);
      delete open[kind];
    }
    const missing = [...writer.expected].filter(([key]) => !found.has(key));
    const isReported = ([, { kind, number }]) => gaps[kind].some(([from, to]) => from < number && number < to);
    const silent = missing.filter((event) => !isReported(event)).map(([key]) => key);
    check(silent.length === 0, `${transport}: ${silent.length} events are missing: ${silent.slice(0, 5)}`);
    return missing.length;
  }

  /** Waits until the GETs of a bridge have the cursor of the client, and compares them with its state. */
  async compareWithGets(port) {
    const { state } = this.client;
    const read = async (name) => {
      const { status, headers, text } = await get(port, `/api/v1/${name}`);
      same(status, 200, `the status of ${name}`);
      return { cursor: headers["event-cursor"], body: JSON.parse(text) };
    };
    let lists;
    const isSameCursor = async () => {
      lists = [await read("instances"), await read("tenants"), await read("pools")];
      return lists.every(({ cursor }) => cursor === this.client.cursor);
    };
    await until(`${this.transport}: the cursor of the GETs`, isSameCursor, 60_000);
    const [instances, tenants] = lists.map(({ body }) => body);
    // Two keys are in the GETs only (docs/protocol.md#instance).
    for (const instance of instances) (delete instance.lastActivity, delete instance.claimedAt);
    const byUid = (list) => Object.fromEntries([...list].map((item) => [item.uid, item]));
    assert.deepEqual(byUid(state.instances.values()), byUid(instances));
    assert.deepEqual(byUid(state.claims.values()), byUid(tenants.flatMap(({ claims }) => claims)));
    // Pools are sent at most 4 times a second. The state has no pool whose counts are 0.
    const sorted = (pools) =>
      [...pools]
        .filter(({ warming, ready, acquired }) => warming + ready + acquired > 0)
        .map(({ workloadRef, warming, ready, acquired }) => [workloadRef, warming, ready, acquired].join())
        .sort()
        .join(" ");
    const arePoolsEqual = async () => sorted((await read("pools")).body) === sorted(state.pools.values());
    await until(`${this.transport}: the pools of the GETs`, arePoolsEqual, 5000);
  }
}

/** The objects of the API server in the form of `stateOf`. */
async function objects(plane, namespace) {
  const label = (name, { labels }) => labels?.[`boilerhouse.dev/${name}`];
  const pods = (await plane.call("GET", namespace.pods)).items.map(({ metadata, status }) => [
    ...[metadata.uid, metadata.name, status.phase],
    ...["workload", "tenant", "pool-status"].map((name) => label(name, metadata)),
  ]);
  const claims = (await plane.call("GET", namespace.claims)).items.map(({ metadata, spec, status = {} }) => [
    ...[metadata.uid, metadata.name, status.phase ?? "Pending", spec.workloadRef, spec.tenantId],
    ...[status.instanceId, status.source],
  ]);
  return JSON.stringify([pods.sort(), claims.sort()]);
}

function stateOf({ instances, claims }) {
  const pods = [...instances.values()].map((pod) => [
    ...[pod.uid, pod.name, pod.phase, pod.workloadRef, pod.tenantId, pod.poolStatus],
  ]);
  const found = [...claims.values()].map((claim) => [
    ...[claim.uid, claim.name, claim.phase, claim.workloadRef, claim.tenantId, claim.instanceId, claim.source],
  ]);
  return JSON.stringify([pods.sort(), found.sort()]);
}

export async function replicas({ binary, log, form, modules, target }) {
  const { WebSocket } = createRequire(path.join(modules, "x.js"))("ws");
  const cuts = CUTS[form];
  const folder = mkdtempSync(path.join(os.tmpdir(), "replicas-"));
  const started = [];
  try {
    const plane = await ControlPlane.start(folder, controlPlaneBinaries(target));
    // The way from the bridges to the API server, whose port changes.
    const servers = [plane.port];
    const gate = await new Cutter(servers, 1).open();
    started.push(() => gate.close());
    const config = JSON.parse(readFileSync(plane.kubeconfig, "utf8"));
    config.clusters[0].cluster.server = `https://127.0.0.1:${gate.port}`;
    const kubeconfig = path.join(folder, "kubeconfig-gate");
    writeFileSync(kubeconfig, JSON.stringify(config));
    const namespace = await plane.namespace("replicas");
    const writer = new Writer(namespace, 7);
    const fence = async (name) => {
      await writer.createPod(name, "fence");
      await writer.createClaim(name, "fence");
    };
    for (let n = 0; n < 30; n++) await writer.write();
    await fence("start");

    const args = ["serve", "-n", "replicas", "--heartbeat", "5"];
    const bridges = [0, 1].map(() => new Bridge(binary, args, { KUBECONFIG: kubeconfig }));
    started.push(() => Promise.all(bridges.map((bridge) => bridge.stop())));
    // The ports of the replicas that are ready.
    const ports = [];
    const start = async (bridge) => {
      // Another port: a proxy that tries the port of a killed server can otherwise connect to itself.
      bridge.port = 0;
      await bridge.start();
      await until("the bridge is ready", async () => (await get(bridge.port, "/readyz")).status === 200, 60_000);
      ports.push(bridge.port);
    };
    for (const bridge of bridges) await start(bridge);

    const followers = [];
    for (const [transport, seed] of Object.entries({ websocket: 11, sse: 12 })) {
      const cutter = await new Cutter(ports, seed).open();
      const follower = new Follower(transport, cutter, WebSocket);
      started.push(() => (follower.client.close(), cutter.close()));
      followers.push(follower);
    }
    const each = (action) => Promise.all(followers.map(action));
    await each((follower) => follower.until("the first state", () => follower.has("start")));
    writer.expected.clear();
    await each((follower) => {
      follower.received.length = 0;
      follower.cutter.isActive = true;
      follower.cutter.end();
    });
    writer.start();
    const begin = performance.now();
    const untilCuts = (part) =>
      each((follower) =>
        follower.until(
          `${cuts * part} cuts`,
          // Without a writer, nothing is sent that could be cut. `stop` reports its failure.
          () => follower.cutter.cuts >= cuts * part || writer.hasFailed,
          CUTS_BOUND_MS,
        ),
      );
    /** Kills a replica. The next one has no state of the clients. */
    const replace = async (bridge) => {
      const before = followers.map(({ cutter }) => cutter.cuts);
      ports.splice(ports.indexOf(bridge.port), 1);
      await bridge.stop("SIGKILL");
      await start(bridge);
      return followers.map(({ cutter }, index) => cutter.cuts - before[index]);
    };
    await untilCuts(1 / 4);
    log(`replicas: one killed and started again, ${await replace(bridges[0])} cuts in between`);
    await untilCuts(1 / 2);
    await writer.stop();
    await plane.server.stop("SIGKILL");
    await plane.startServer();
    servers[0] = plane.port;
    // It serves claims later than it is ready.
    await until("the API server serves claims", async () => plane.call("GET", namespace.claims), 60_000);
    writer.start();
    log(`replicas: the API server killed and started again`);
    await untilCuts(3 / 4);
    log(`replicas: the other one killed and started again, ${await replace(bridges[1])} cuts in between`);
    await untilCuts(1);
    await writer.stop();
    await each(({ cutter }) => (cutter.isActive = false));
    await fence("end");
    const seconds = Math.round((performance.now() - begin) / 1000);
    log(`replicas: ${writer.count} writes with ${writer.expected.size} events in ${seconds} s`);

    const expected = await objects(plane, namespace);
    for (const follower of followers) {
      await follower.until("the last write", () => follower.has("end"));
      await follower.until("the state of the API server", () => stateOf(follower.client.state) === expected, 10_000);
      const inGaps = follower.compare(writer);
      for (const { port } of bridges) await follower.compareWithGets(port);
      same(follower.client.connection.transport, follower.transport, "the transport at the end");
      same(follower.client.counters.malformed, 0, "malformed events");
      // While one replica is down, all connections lead to the other.
      check(follower.cutter.switches >= cuts / 2, `few changes of the replica: ${follower.report()}`);
      log(`replicas: ${follower.transport}: exact; ${inGaps} events in reported gaps; ${follower.report()}`);
    }
  } finally {
    for (const stop of started.reverse()) await stop();
    await stopControlPlane();
    rmSync(folder, { recursive: true, force: true });
  }
}
