// The page of `serve` on a real API server: signing in with a real key, the exact state, an API server that goes and comes
// back, a bridge that is killed, and what Kubernetes lets into names and details.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { TcpProxy } from "../../clients/js/test/proxy.js";
import { ControlPlane, controlPlaneBinaries } from "../proxies/control_plane.mjs";
import { stopAll as stopControlPlane } from "../proxies/processes.mjs";
import { check, same, until } from "./browser.mjs";
import { NETWORK } from "./scripted_page.mjs";
import { Bridge, Proxy } from "./servers.mjs";

const KEY = "page-test-key-0123456789";
const HOSTILE = `<img src=x onerror="window.ran=1">`;

async function assertEqualsCluster(p, namespace, what) {
  await until(`${what}: the page equals the API server`, async () => {
    const { instances } = await namespace.phases();
    const found = await p.page
      .locator("[data-instance]")
      .evaluateAll((rows) => rows.map((row) => [row.dataset.instance, row.cells[1].innerText.replace(/^\W+/, "")]));
    return JSON.stringify(found) === JSON.stringify(Object.entries(instances).sort());
  });
}

export async function cluster({ chromium, binary, log, target }) {
  const binaries = controlPlaneBinaries(target);
  const folder = mkdtempSync(path.join(os.tmpdir(), "page-"));
  // The way from the bridge to the API server.
  const gate = new TcpProxy();
  let bridge, proxy, p;
  try {
    const plane = await ControlPlane.start(folder, binaries);
    await gate.open(plane.port);
    const config = JSON.parse(readFileSync(plane.kubeconfig, "utf8"));
    config.clusters[0].cluster.server = `https://127.0.0.1:${gate.port}`;
    const kubeconfig = path.join(folder, "kubeconfig");
    writeFileSync(kubeconfig, JSON.stringify(config));
    writeFileSync(path.join(folder, "session.key"), "0123456789abcdef0123456789abcdef");
    const namespace = await plane.namespace("page");
    for (const name of ["web-1", "web-2", "db-1"]) {
      await namespace.createPod(name, name.split("-")[0]);
      await namespace.setPodPhase(name, "Running");
    }
    await namespace.createClaim("claim-1", HOSTILE, "web");
    const status = { phase: "Active", instanceId: "web-1", detail: HOSTILE, source: "pool" };
    await plane.call("PATCH", `${namespace.claims}/claim-1/status`, { status }, "application/merge-patch+json");
    const args = [
      "serve",
      "-n",
      "page",
      "--drain",
      "1",
      "--session-key-file",
      path.join(folder, "session.key"),
      "--log-level",
      "info",
    ];
    bridge = await new Bridge(binary, args, { KUBECONFIG: kubeconfig, BOILERHOUSE_API_KEY: KEY }).start();
    proxy = await new Proxy(bridge.port).start();
    p = await chromium.open(proxy.url, { expected: NETWORK });
    await p.untilState("signed-out", 30_000);
    await p.page.fill("#key", KEY);
    await p.page.keyboard.press("Enter");
    await p.untilState("live");
    await assertEqualsCluster(p, namespace, "signed in");
    await p.page.reload();
    await p.untilState("live");
    await namespace.createPod("web-3", "web");
    await namespace.setPodPhase("web-2", "Failed");
    await assertEqualsCluster(p, namespace, "changes");

    await p.page.goto(`${proxy.url}#tenants`);
    await until("the tenant", async () => (await p.rows("tenant"))[0] === HOSTILE);
    await p.page.locator("[data-claim]").first().click();
    await until("the detail as text", async () => (await p.text("dialog")).includes(HOSTILE));
    same(await p.page.evaluate(() => window.ran), undefined, "what has run");
    await p.page.keyboard.press("Escape");
    await p.page.goto(`${proxy.url}#instances`);

    const { port } = gate;
    let start = performance.now();
    await gate.close();
    await p.untilState("down", 60_000);
    log(
      `cluster: API server gone: the banner after ${Math.round((performance.now() - start) / 100) / 10} s: ${(await p.banner()).trim()}`,
    );
    check((await p.page.locator("main.not-live").count()) === 1, "the list is marked");
    await namespace.deletePod("web-1");
    await namespace.createPod("web-4", "web");
    await gate.open(plane.port, port);
    start = performance.now();
    await p.untilState("live", 60_000);
    await assertEqualsCluster(p, namespace, "the API server is back");
    log(
      `cluster: API server back: live after ${Math.round((performance.now() - start) / 100) / 10} s, and the exact state`,
    );

    await bridge.stop("SIGKILL");
    await p.untilState("reconnecting");
    await namespace.deletePod("db-1");
    await bridge.start();
    await p.untilState("live", 40_000);
    await assertEqualsCluster(p, namespace, "the bridge is back");
    await p.page.getByRole("button", { name: "Sign out" }).click();
    await p.untilState("signed-out");
    await p.close();
  } finally {
    await p?.context.close().catch(() => {});
    await proxy?.stop();
    await bridge?.stop();
    await gate.close().catch(() => {});
    await stopControlPlane();
    rmSync(folder, { recursive: true, force: true });
  }
}
