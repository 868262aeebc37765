// Runs the parts of tests/page/run. usage: node main.mjs quick|full <folder with node_modules> <binary of the bridge> [part...]
import path from "node:path";
import * as banners from "./banners.mjs";
import { Chromium } from "./browser.mjs";
import { cluster } from "./cluster.mjs";
import { hostile } from "./hostile.mjs";
import { load } from "./load.mjs";
import * as obstacles from "./obstacles.mjs";
import { replicas } from "./replicas.mjs";
import { screenshots } from "./screenshots.mjs";
import { stopAll as stopControlPlanes } from "../proxies/processes.mjs";
import { Bridge, Proxy, stopAll as stopServers } from "./servers.mjs";
import { accessible, keyboard, views } from "./views.mjs";

const PARTS = { views, keyboard, accessible, ...banners, ...obstacles, cluster, replicas, hostile, load, screenshots };
/** A part that hangs fails, and ends the run. */
const PART_BOUND_MS = 240_000;
/** Parts with more waits. */
const LONG_PART_BOUND_MS = { replicas: 900_000 };
/** Pictures are only taken when they are asked for. */
const ON_REQUEST = ["screenshots"];

const [form, modules, binary, ...asked] = process.argv.slice(2);
const names = asked.length > 0 ? asked : Object.keys(PARTS).filter((name) => !ON_REQUEST.includes(name));
const unknown = names.filter((name) => !PARTS[name]);
if (unknown.length > 0) {
  console.error(`unknown part ${unknown.join(", ")}; there are ${Object.keys(PARTS).join(", ")}`);
  process.exit(2);
}

/** tests/page/run puts the packages below the target folder. */
const target = path.dirname(modules);
const start = Date.now();
const log = (text) => console.log(`${((Date.now() - start) / 1000).toFixed(1).padStart(6)} s  ${text}`);
const failures = [];
const stopAll = () => Promise.allSettled([stopServers(), stopControlPlanes()]);
const chromium = new Chromium(modules);
let proxy;
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stopAll().finally(() => process.exit(1)));
try {
  const bridge = await new Bridge(binary).start();
  // Every part below a prefix, because the page must not know where it is.
  proxy = await new Proxy(bridge.port, "/some/prefix/").start();
  await chromium.start();
  log(`Chromium ${chromium.browser.version()}`);
  for (const name of names) {
    let timer;
    let hangs = false;
    const boundMs = LONG_PART_BOUND_MS[name] ?? PART_BOUND_MS;
    const bound = new Promise(
      (_, failed) => (timer = setTimeout(() => {
          hangs = true;
          failed(new Error(`it does not end within ${boundMs / 1000} s`));
        }, boundMs)),
    );
    try {
      await Promise.race([PARTS[name]({ chromium, bridge, url: proxy.url, binary, log, form, modules, target }), bound]);
      log(`passed: ${name}`);
    } catch (error) {
      failures.push(name);
      log(`FAILED: ${name}: ${error.stack}`);
    }
    clearTimeout(timer);
    // It would go on beside the next part.
    if (hangs) break;
  }
} finally {
  await chromium.stop();
  await proxy?.stop();
  await stopAll();
}
log(failures.length === 0 ? "passed" : `failed: ${failures.join(", ")}`);
process.exit(failures.length === 0 ? 0 : 1);
