// Runs the parts of tests/proxies/run. usage: node main.mjs reload|quick|full <target folder> <binary of the bridge>
import { execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { BROWSERS, launch } from "./browsers.mjs";
import { BrowserStreams } from "./browser_streams.mjs";
import { Bridge, ControlPlane, controlPlaneBinaries } from "./control_plane.mjs";
import { forgedHost, wrongHost } from "./host_header.mjs";
import { PROXIES, Proxy } from "./proxies.mjs";
import { stopAll } from "./processes.mjs";
import { reconnects } from "./reconnect.mjs";
import { addresses, reloads } from "./reload.mjs";

const FORMS = {
  // Longer than the 45 s of the documented timeouts.
  quick: { idleMs: 47_000, signals: ["SIGTERM"], restarts: 4 },
  full: { idleMs: 600_000, signals: ["SIGTERM", "SIGKILL"], restarts: 100 },
};

const [form, target, binary] = process.argv.slice(2);
const modules = path.join(target, "proxies");
const start = Date.now();
const log = (text) => console.log(`${((Date.now() - start) / 1000).toFixed(1).padStart(6)} s  ${text}`);

/// Runs one part. A failed part does not keep the others from running.
const failures = [];
async function part(name, action) {
  try {
    await action();
  } catch (error) {
    failures.push(name);
    log(`FAILED: ${name}: ${error.message}`);
  }
}

/// A certificate of localhost, only for this run.
function certificate(folder) {
  const [key, certificate, both] = ["key.pem", "certificate.pem", "both.pem"].map((name) => path.join(folder, name));
  const names = [
    "-subj",
    "/CN=localhost",
    "-addext",
    "subjectAltName=DNS:localhost",
    "-addext",
    "basicConstraints=CA:FALSE",
  ];
  const kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  execFileSync("openssl", ["req", ...kind, ...names, "-keyout", key, "-out", certificate], { stdio: "ignore" });
  writeFileSync(both, readFileSync(certificate, "utf8") + readFileSync(key, "utf8"));
  return { key, certificate, both };
}

async function run(folder) {
  const tls = certificate(folder);
  await part("reload and restart of the proxies", () => reloads({ folder, modules, tls, binary, log }));
  await part("addresses of clients", () => addresses({ folder, tls, binary, log }));
  if (form === "reload") return stopAll();
  const browsers = {};
  try {
    const [plane] = await Promise.all([
      ControlPlane.start(folder, controlPlaneBinaries(target)),
      ...BROWSERS.map(async (name) => (browsers[name] = await launch(name, modules))),
    ]);
    const versions = await Promise.all(Object.values(browsers).map((browser) => browser.version()));
    log(`the API server and the browsers are ready: ${versions.join(", ")}`);
    const namespace = await plane.namespace("browsers");
    const bridge = await new Bridge(folder, binary, namespace, "bridge").start();
    const proxies = await Promise.all(PROXIES.map((name) => Proxy.start(name, { folder, tls, bridge: bridge.port })));
    const { idleMs, signals, restarts } = FORMS[form];
    const streams = new BrowserStreams({ proxies, browsers, bridge, namespace, log });
    await part("streams of browsers", () =>
      streams.run({
        idleMs,
        signals,
        // These parts use other proxies, and the last two use bridges of their own.
        duringIdle: async () => {
          await part("proxies that do not pass Host on", () => wrongHost({ folder, tls, bridge, log }));
          await part("X-Forwarded-Host of a client", () => forgedHost({ folder, tls, binary, namespace, log }));
          await part("reconnect of the dashboard", () => reconnects({ folder, modules, plane, binary, restarts, log }));
        },
      }),
    );
  } finally {
    const closed = Object.values(browsers).map((browser) => browser.close().catch(() => {}));
    await Promise.all([...closed, stopAll()]);
  }
}

const folder = mkdtempSync(path.join(os.tmpdir(), "proxies-"));
// Workers of Apache run as another user.
chmodSync(folder, 0o755);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stopAll().finally(() => process.exit(1)));
await part("the run", () => run(folder));
if (failures.length === 0) {
  log("passed");
  rmSync(folder, { recursive: true, force: true });
} else {
  log(`failed: ${failures.join(", ")}; the logs are in ${folder}`);
  process.exitCode = 1;
}
