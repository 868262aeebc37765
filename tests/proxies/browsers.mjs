// Chromium and Firefox, and pages in them.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { waitFor } from "./processes.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const PAGE_CODE = readFileSync(path.join(HERE, "page.js"), "utf8");
const EXECUTABLES = {
  chromium: process.env.CHROMIUM ?? "/usr/bin/chromium",
  firefox: process.env.FIREFOX ?? "/usr/bin/firefox-esr",
};
export const BROWSERS = Object.keys(EXECUTABLES);

/// Returns the code block of docs/how-to/clients.md that starts with this comment.
function documentedCode(firstLine) {
  const text = readFileSync(path.join(HERE, "../../docs/how-to/clients.md"), "utf8");
  const block = text
    .split("```js\n")
    .slice(1)
    .map((rest) => rest.split("```")[0])
    .find((code) => code.startsWith(firstLine));
  if (!block) throw new Error(`docs/how-to/clients.md has no js block that starts with '${firstLine}'`);
  return block;
}

/// Starts a browser without a window. Chromium speaks its own protocol with puppeteer, Firefox speaks WebDriver BiDi.
export async function launch(name, modules) {
  const puppeteer = createRequire(path.join(modules, "package.json"))("puppeteer-core");
  return puppeteer.launch({
    browser: name === "firefox" ? "firefox" : "chrome",
    executablePath: EXECUTABLES[name],
    headless: true,
    acceptInsecureCerts: true,
    // Chromium's sandbox does not start as root.
    args: name === "chromium" && process.getuid() === 0 ? ["--no-sandbox"] : [],
    protocolTimeout: 60_000,
  });
}

/// One page of a proxy's origin, with open streams.
export class StreamPage {
  static async open(browser, label, origin, paths, knownPod) {
    const opened = new StreamPage();
    Object.assign(opened, { label, paths });
    opened.page = await (await browser.createBrowserContext()).newPage();
    // A document of the origin. The page at / forbids connections (Content-Security-Policy), this one does not.
    await opened.page.goto(`${origin}/api/v1/health`, { timeout: 30_000 });
    await opened.page.evaluate(PAGE_CODE);
    await opened.page.evaluate((options) => window.watchStreams(options), {
      paths,
      knownPod,
      eventSourceCode: documentedCode("// An EventSource"),
      webSocketCode: documentedCode("// A WebSocket"),
    });
    return opened;
  }

  report() {
    return this.page.evaluate(() => window.report());
  }

  /// Waits until every stream of the page satisfies the condition.
  async until(what, boundMs, condition) {
    let report = [];
    await waitFor(what, boundMs, async () => (report = await this.report()).every(condition), 200).catch((error) => {
      const missing = report.filter((record) => !condition(record));
      throw new Error(`${this.label}: ${error.message}: ${JSON.stringify(missing.map(({ seen, ...rest }) => rest))}`);
    });
    return report;
  }

  /// Sends GETs at once and returns the pairs of target and status that are not 200.
  async failedGets(targets) {
    const answers = await this.page.evaluate((list) => window.sendGets(list), targets);
    return answers.filter(([, status]) => status !== 200);
  }
}
