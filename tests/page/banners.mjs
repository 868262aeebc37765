// What the page says when something is wrong, and that nothing old is shown as live.
import { check, same, sleep, until } from "./browser.mjs";
import { NETWORK, instance, isStream, scripted } from "./scripted_page.mjs";
import { Bridge, Proxy } from "./servers.mjs";

async function assertMarked(p, what) {
  check((await p.page.locator("main.not-live").count()) === 1, `${what}: the list is marked`);
  check((await p.text(".summary")).includes("Not live"), `${what}: the summary says so`);
}

/** The instances and claims of the page equal the GETs. */
async function assertEqualsGets(p, url) {
  await until("the page equals the GETs", async () => {
    const instances = await (await fetch(`${url}api/v1/instances`)).json();
    const found = await p.page
      .locator("[data-instance]")
      .evaluateAll((rows) =>
        rows.map((row) => [row.dataset.instance, row.cells[1].innerText.replace(/^\W+/, ""), row.cells[3].innerText]),
      );
    return (
      JSON.stringify(found) ===
      JSON.stringify(instances.map(({ name, phase, tenantId }) => [name, phase, tenantId ?? "–"]))
    );
  });
}

/** Kills the bridge and starts it again on the same port. */
export async function restarts({ chromium, binary, log }) {
  const bridge = await new Bridge(binary, ["demo", "--speed", "3"]).start();
  const proxy = await new Proxy(bridge.port).start();
  const p = await chromium.open(proxy.url, { expected: NETWORK });
  await p.untilState("live");
  await until("rows", async () => (await p.rows("instance")).length > 3);
  for (let round = 0; round < 2; round++) {
    const start = performance.now();
    await bridge.stop("SIGKILL");
    await p.untilState("reconnecting", 5000);
    const shown = performance.now() - start;
    check((await p.banner()).includes("Connection lost"), `the banner says why: ${await p.banner()}`);
    check(/Reconnecting in \d+ s|Connecting/.test(await p.text("#status")), "the chip counts down");
    await assertMarked(p, "killed");
    await sleep(1500);
    check((await p.status()) === "reconnecting", "nothing is live without a bridge");
    await p.page.keyboard.press("4");
    await until("one row for the outage", async () => {
      const lost = (await p.page.locator("[data-type=stream] td.what").allInnerTexts()).filter((text) => /^this page lost/.test(text));
      return lost.length === round + 1 && /^this page lost its connection\. [1-9]\d* attempts? failed\. (The bridge|A proxy) cannot/.test(lost[0]);
    });
    await p.page.keyboard.press("1");
    await bridge.start();
    await p.untilState("live", 40_000);
    check((await p.page.locator("main.not-live").count()) === 0, "the mark is gone");
    await assertEqualsGets(p, bridge.url);
    log(`killed: the banner after ${Math.round(shown)} ms; after the restart the page equals the GETs`);
  }
  // A bridge that ends in order says so.
  await bridge.stop("SIGTERM");
  await p.untilState("reconnecting", 15_000);
  await p.close();
  await proxy.stop();
}

/** The network of the computer goes and comes back. */
export async function offline({ chromium, bridge, url, log }) {
  const p = await chromium.open(url, { expected: NETWORK });
  await p.untilState("live");
  const start = performance.now();
  await p.context.setOffline(true);
  await p.untilState("reconnecting", 12_000);
  log(`offline: the banner after ${Math.round(performance.now() - start)} ms`);
  await assertMarked(p, "offline");
  await p.context.setOffline(false);
  await p.untilState("live", 20_000);
  await assertEqualsGets(p, bridge.url);
  await p.close();
}

/** The API server behind the bridge, silence, a wrong clock, unknown and malformed events. */
export async function upstream(context) {
  await scripted(
    context,
    () => {},
    async (p, server) => {
      await p.untilState("live");
      server.broadcast({
        type: "upstream.down",
        resource: "pods",
        time: "",
        since: new Date().toISOString(),
        reason: "connection refused",
      });
      await p.untilState("down", 3000);
      check(
        /gets no changes from the API server since \d\d:\d\d:\d\d \(connection refused\)/.test(await p.banner()),
        await p.banner(),
      );
      await assertMarked(p, "down");
      server.broadcast({ type: "upstream.up", resource: "pods", time: "", since: "" });
      await p.untilState("live", 3000);
      // A page that is opened during an outage gets a fresh copy of an old state.
      const outage = 3_600_000;
      server.heartbeat({ upstream: "down", upstreamAgeMs: outage });
      await p.untilState("down", 3000);
      const times = [0, 1, 2, 3, 4, 5].map((s) => new Date(Date.now() - outage - s * 1000).toLocaleTimeString("en-GB"));
      await until("the time of the state", async () => {
        const summary = await p.text(".summary");
        return times.some((time) => summary.includes(`as of ${time}`));
      });
      server.heartbeat();
      await p.untilState("live", 3000);
      server.heartbeat({ upstream: "syncing" });
      await p.untilState("stale", 3000);
      server.heartbeat({ upstream: "something new" });
      await sleep(400);
      same(await p.status(), "stale", "an unknown state of the upstream");
      server.heartbeat();
      await p.untilState("live", 3000);
      // Unknown and malformed events change nothing else.
      server.broadcast({ type: "instance.frozen", id: "c5", name: "new", time: new Date().toISOString() });
      server.broadcast("<html>");
      await until("the notice", async () => /1 events could not be read/.test(await p.banner()));
      same(
        [await p.status(), (await p.rows("instance")).length],
        ["live", 1],
        "after an unknown and a malformed event",
      );
      await p.page.keyboard.press("4");
      await until("the unknown type in the log", async () => (await p.text(".log table")).includes("instance.frozen"));
      await p.page.keyboard.press("1");
      server.broadcast({ type: "auth.expiring", time: "", expiresAt: new Date(Date.now() + 60_000).toISOString() });
      await until("the end of the session", async () => /session ends at/.test(await p.banner()));
    },
  );
  // Nothing arrives any more, although the connection is open.
  await scripted(
    context,
    (server) => (server.heartbeatMs = 3_600_000),
    async (p) => {
      await p.untilState("live");
      await p.untilState("stale", 40_000);
      check(/Nothing has arrived for 2\d s/.test(await p.banner()), await p.banner());
      await assertMarked(p, "silent");
    },
  );
  // A bridge sends a state again that it has taken before. Its time says nothing about the clocks.
  await scripted(
    context,
    (server) => {
      const fresh = server.state;
      server.state = () => ({ ...fresh(), snapshotAt: new Date(Date.now() - 600_000).toISOString() });
      server.heartbeatMs = 3_600_000;
    },
    async (p, server) => {
      await p.untilState("live");
      same((await p.rows("instance")).length, 1, "the state is shown");
      check(!/clock of this computer/.test(await p.banner()), await p.banner());
      // The time of a heartbeat does.
      server.heartbeat({ timestamp: new Date(Date.now() + 600_000).toISOString() });
      await until("the notice", async () => /clock of this computer is (9|10) min behind/.test(await p.banner()));
    },
  );
  // The clock of the computer is wrong by an hour, and jumps while the page is open.
  await scripted(
    context,
    () => {},
    async (p) => {
      await p.page.clock.install({ time: Date.now() - 3_600_000 });
      await p.page.reload();
      await p.untilState("live");
      await until("the notice", async () => /clock of this computer is (59 min|1 h) behind/.test(await p.banner()));
      check(
        /^\d+ s$/.test(await p.text("[data-instance] td.age")),
        `the age is right: ${await p.text("[data-instance] td.age")}`,
      );
    },
  );
}

/** A computer that sleeps: the clock jumps, and the connection is dead without a notice. */
export async function sleeping(context) {
  await scripted(
    context,
    () => {},
    async (p, server) => {
      await p.untilState("live");
      const before = server.requests.filter(isStream).length;
      // The page sees the time after the sleep. The server forgets the connection, as a NAT does.
      server.streams.clear();
      await p.page.evaluate(() => {
        const { now } = Date;
        Date.now = () => now() + 1_800_000;
        document.dispatchEvent(new Event("visibilitychange"));
      });
      await until("a new connection", () => server.requests.filter(isStream).length > before, 5000);
      same(server.requests.filter(isStream).at(-1).query.lastEventId, "c1", "the cursor of the resume");
      await p.untilState("live");
    },
  );
}

/** A page in the background renders nothing, and later ends its connection. */
export async function background(context) {
  await scripted(
    context,
    () => {},
    async (p, server) => {
      await p.untilState("live");
      const hide = (hidden) =>
        p.page.evaluate((hidden) => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          Object.defineProperty(document, "visibilityState", {
            value: hidden ? "hidden" : "visible",
            configurable: true,
          });
          document.dispatchEvent(new Event("visibilitychange"));
        }, hidden);
      await hide(true);
      await sleep(500);
      await p.page.evaluate(() => {
        window.changes = 0;
        new MutationObserver((all) => (window.changes += all.length)).observe(document.body, {
          subtree: true,
          childList: true,
          characterData: true,
          attributes: true,
        });
      });
      for (let index = 0; index < 50; index++) {
        server.broadcast({
          type: "instance.state",
          id: `d${index}`,
          time: "",
          name: `new-${index}`,
          phase: "Running",
          key: `k${index}`,
          instance: instance(`new-${index}`),
        });
      }
      await sleep(2500);
      same(await p.page.evaluate(() => window.changes), 0, "changes of the document in the background");
      await hide(false);
      await until("the rows after the background", async () => (await p.rows("instance")).includes("new-1"), 3000);
      check((await p.text(".summary")).startsWith("51 instances"), await p.text(".summary"));
      // After 5 minutes in the background the connection ends. It resumes when the page is shown.
      await p.page.clock.install();
      await p.page.reload();
      await p.untilState("live");
      await hide(true);
      await p.page.clock.fastForward(301_000);
      await until("the end of the connection", () => server.streams.size === 0);
      await sleep(1500);
      same(server.streams.size, 0, "connections in the background");
      await hide(false);
      await p.untilState("live");
      same(server.requests.filter(isStream).at(-1).query.lastEventId, "c1", "the cursor of the resume");
    },
  );
}
