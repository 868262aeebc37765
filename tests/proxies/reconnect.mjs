// The reconnect of Boilerhouse's dashboard, through the documented nginx file: the page opens /ws and sends the GETs.
// On each event it sends them again. When the socket closes, it sends them and opens /ws again.
//
// The bridge restarts again and again while objects change. After each restart the page's picture must become the state
// of the API server, once the last change is one with an event. A GET after an event must never be older than the
// event.
import { createRequire } from "node:module";
import http from "node:http";
import path from "node:path";
import { Bridge, get } from "./control_plane.mjs";
import { Proxy } from "./proxies.mjs";
import { freePort, sleep, waitFor } from "./processes.mjs";

const MARKER = "answer of Boilerhouse";
/// How long the picture may take to be right after a restart, once the objects do not change any more.
const SETTLE_BOUND = 15_000;
/// How long the picture must stay right.
const STAY = 300;

/// Answers every request with a marker, as the API of Boilerhouse would answer it.
async function standIn() {
  const port = await freePort();
  const server = http.createServer((request, response) => response.end(`${MARKER}: ${request.method} ${request.url}`));
  await new Promise((done) => server.listen(port, "127.0.0.1", done));
  return { port, stop: () => (server.closeAllConnections(), server.close()) };
}

async function checkRoutes(proxy, log) {
  const routes = [
    ["GET", "/api/v1/instances", false],
    ["GET", "/api/v1/instances/keep", false],
    ["GET", "/api/v1/tenants", false],
    ["GET", "/api/v1/instances?x=1", false],
    ["GET", "/", true],
    ["GET", "/api/v1/instances/keep/endpoint", true],
    ["GET", "/api/v1/instances/", true],
    ["POST", "/api/v1/instances", true],
    ["DELETE", "/api/v1/instances/keep", true],
    ["GET", "/api/v1/tenants/acme", true],
    ["POST", "/api/v1/tenants/acme/claim", true],
    ["GET", "/api/v1/workloads", true],
    ["GET", "/wsx", true],
    ["GET", "/api/sse", true],
  ];
  for (const [method, target, toBoilerhouse] of routes) {
    const { status, text } = await get(proxy.port, target, { method });
    const found = text.startsWith(MARKER);
    if (found !== toBoilerhouse)
      throw new Error(
        `${method} ${target}: expected ${toBoilerhouse ? "Boilerhouse" : "the bridge"}, found ${status} ${text}`,
      );
  }
  log(`${routes.length} routes of the dashboard lead to the right server`);
}

/// The order in which the phases of one object follow each other in this test. Names are never used again.
const RANK = { Pending: 0, Running: 1, Active: 1, Succeeded: 2, Released: 2, Deleted: 3 };

/// The dashboard.
class Dashboard {
  constructor(WebSocket, proxy, changes) {
    Object.assign(this, {
      WebSocket,
      proxy,
      changes,
      picture: {},
      events: 0,
      gets: 0,
      sockets: 0,
      violations: [],
      maximum: 0,
    });
    this.newest = new Map();
    this.open();
  }

  open() {
    if (this.stopped) return;
    this.socket = new this.WebSocket(`${this.proxy.http.replace("http", "ws")}/ws`, { origin: this.proxy.http });
    this.socket.on("open", () => {
      this.sockets += 1;
      // The first load: the socket is open, and the GETs follow.
      this.refresh();
    });
    this.socket.on("message", (data) => {
      this.events += 1;
      this.remember(JSON.parse(data));
      this.refresh();
    });
    this.socket.on("error", () => {});
    this.socket.on("close", async () => {
      await this.refresh();
      setTimeout(() => this.open(), 100);
    });
  }

  remember({ type, name, phase }) {
    const of = {
      "instance.state": ["instances", phase],
      "tenant.claimed": ["claims", "Active"],
      "tenant.released": ["claims", "Released"],
    }[type];
    if (!of) return;
    const key = `${of[0]}/${name}`;
    this.newest.set(key, Math.max(this.newest.get(key) ?? 0, RANK[of[1]]));
  }

  /// Sends the GETs. Events that arrive meanwhile lead to one further round.
  refresh() {
    this.isDue = true;
    this.round ??= this.rounds().finally(() => (this.round = undefined));
    return this.round;
  }

  async rounds() {
    while (this.isDue && !this.stopped) {
      this.isDue = false;
      const expected = new Map(this.newest);
      try {
        const [instances, tenants] = await Promise.all(
          ["/api/v1/instances", "/api/v1/tenants"].map((target) => get(this.proxy.port, target)),
        );
        if (instances.status !== 200 || tenants.status !== 200)
          throw new Error(`${instances.status}, ${tenants.status}`);
        this.picture = {
          instances: Object.fromEntries(JSON.parse(instances.text).map(({ name, phase }) => [name, phase])),
          claims: Object.fromEntries(
            JSON.parse(tenants.text)
              .flatMap(({ claims }) => claims)
              .map(({ name, phase }) => [name, phase]),
          ),
        };
        this.gets += 1;
        this.compare(expected);
      } catch {
        // The bridge restarts. A dashboard shows its former picture and tries again.
        this.isDue = true;
        await sleep(50);
      }
    }
  }

  /// Every object must be at least as new as the event that came before the GETs.
  compare(expected) {
    for (const [key, rank] of expected) {
      const [kind, name] = key.split("/");
      const phase = this.picture[kind][name];
      const found = phase !== undefined ? RANK[phase] : this.changes.deleted.has(name) ? RANK.Deleted : -1;
      // A claim whose end was an event can be Released or gone.
      if (found < rank) this.violations.push(`${key}: the event was ${rank}, the GET ${found} (${phase})`);
    }
  }

  stop() {
    this.stopped = true;
    this.socket.terminate();
  }
}

/// Changes objects until it is paused.
class Changes {
  constructor(namespace) {
    Object.assign(this, { namespace, count: 0, requests: 0, deleted: new Set(), live: [], isPaused: false });
    this.task = this.run();
    this.task.catch(() => {});
  }

  async run() {
    while (!this.stopped) {
      if (this.isPaused) {
        this.paused?.();
        await sleep(10);
        continue;
      }
      await this.step();
      this.requests += 1;
      await sleep(5);
    }
  }

  /// One change: a new object, the next phase of an object, or a deletion.
  async step() {
    const { namespace, live } = this;
    const next = this.count % 7;
    this.count += 1;
    if (live.length < 4 || next === 0) {
      const name = `${next % 2 ? "pod" : "claim"}-${this.count}`;
      const isPod = name.startsWith("pod");
      await (isPod ? namespace.createPod(name) : namespace.createClaim(name, `tenant-${this.count % 3}`));
      live.push({ name, isPod, step: 0 });
      return;
    }
    const object = live[this.count % live.length];
    object.step += 1;
    if (object.step === 3 || (object.step === 2 && next === 3)) {
      live.splice(live.indexOf(object), 1);
      // The mark comes first: the deletion can be visible before its answer arrives.
      this.deleted.add(object.name);
      await (object.isPod ? namespace.deletePod(object.name) : namespace.deleteClaim(object.name));
    } else if (object.isPod) {
      await namespace.setPodPhase(object.name, ["Running", "Succeeded"][object.step - 1]);
    } else {
      await namespace.setClaimPhase(object.name, ["Active", "Released"][object.step - 1]);
    }
  }

  /// Waits until some more objects have changed.
  someMore() {
    const enough = this.requests + 10;
    return waitFor("more changes", 10_000, () => this.requests >= enough, 10);
  }

  async pause() {
    const done = new Promise((paused) => (this.paused = paused));
    this.isPaused = true;
    await Promise.race([done, this.task]);
  }

  resume() {
    this.paused = undefined;
    this.isPaused = false;
  }

  async stop() {
    this.stopped = true;
    await this.task;
  }
}

const sorted = (phases) => JSON.stringify(Object.entries(phases).sort());
const equal = (left, right) =>
  ["instances", "claims"].every((kind) => sorted(left[kind] ?? {}) === sorted(right[kind]));

export async function reconnects({ folder, modules, plane, binary, restarts, log }) {
  const WebSocket = createRequire(path.join(modules, "package.json"))("ws");
  const namespace = await plane.namespace("reconnect");
  await namespace.createPod("keep");
  const bridge = await new Bridge(folder, binary, namespace, "bridge-reconnect").start();
  const boilerhouse = await standIn();
  const proxy = await Proxy.start("nginx-boilerhouse-dashboard", {
    folder,
    tls: {},
    bridge: bridge.port,
    boilerhouse: boilerhouse.port,
  });
  await checkRoutes(proxy, log);
  const changes = new Changes(namespace);
  const dashboard = new Dashboard(WebSocket, proxy, changes);
  let slowest = 0;
  try {
    for (let round = 0; round < restarts; round += 1) {
      await changes.someMore();
      const { sockets } = dashboard;
      await bridge.stop(round % 2 ? "SIGKILL" : "SIGTERM");
      await bridge.start();
      // Objects still change when the dashboard is back, so a picture of the GETs before the socket is not enough.
      await waitFor(`restart ${round}: the dashboard is back`, SETTLE_BOUND, () => dashboard.sockets > sockets, 10);
      await changes.someMore();
      await changes.pause();
      // Not every change of a claim is an event on /ws, for example the deletion of a released claim. This one is.
      await namespace.touchPod("keep", `${round}`);
      const settle = Date.now();
      const truth = await namespace.phases();
      const isRight = () => dashboard.socket.readyState === WebSocket.OPEN && equal(dashboard.picture, truth);
      await waitFor(`restart ${round}: the picture is right`, SETTLE_BOUND, isRight, 10).catch((error) => {
        throw new Error(`${error.message}\n${JSON.stringify(dashboard.picture)}\n${JSON.stringify(truth)}`);
      });
      slowest = Math.max(slowest, Date.now() - settle);
      await sleep(STAY);
      if (!equal(dashboard.picture, truth))
        throw new Error(`restart ${round}: the picture became wrong: ${JSON.stringify(dashboard.picture)}`);
      if (dashboard.violations.length > 0)
        throw new Error(`restart ${round}: GETs older than events:\n${dashboard.violations.slice(0, 10).join("\n")}`);
      changes.resume();
    }
  } finally {
    dashboard.stop();
    boilerhouse.stop();
    await Promise.all([changes.stop(), proxy.stop(), bridge.stop()]);
  }
  const { events, gets, sockets } = dashboard;
  log(
    `${restarts} restarts, ${changes.requests} changes, ${sockets} sockets, ${events} events, ` +
      `${gets} rounds of GETs; slowest right picture ${slowest} ms`,
  );
}
