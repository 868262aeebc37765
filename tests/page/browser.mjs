// Chromium, and pages that record everything that must not happen.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export class Failure extends Error {}

export function check(condition, what) {
  if (!condition) throw new Failure(what);
}

export function same(found, expected, what) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)];
  check(a === b, `${what}: ${a} instead of ${b}`);
}

/** Waits until `look` returns something that is not false, and returns it. */
export async function until(what, look, boundMs = 15_000) {
  const end = performance.now() + boundMs;
  let last;
  for (;;) {
    try {
      const found = await look();
      if (found) return found;
    } catch (error) {
      last = error;
    }
    if (performance.now() > end)
      throw new Failure(`${what}: not within ${boundMs / 1000} s${last ? ` (${last.message})` : ""}`);
    await sleep(50);
  }
}

export class Chromium {
  constructor(modules) {
    const require = createRequire(path.join(modules, "x.js"));
    this.playwright = require("playwright-core");
    this.axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
  }

  async start() {
    const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
    const args = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
    this.browser = await this.playwright.chromium.launch({ executablePath, args, headless: true });
    return this;
  }

  /** Opens a page. `expected`: console errors that the test causes, such as those of refused connections. */
  async open(url, { expected = [], ...options } = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
    const page = await context.newPage();
    const wrong = [];
    const note = (text) => {
      if (!expected.some((pattern) => pattern.test(text)) && wrong.length < 20) wrong.push(text);
    };
    page.on(
      "console",
      (message) => ["error", "warning"].includes(message.type()) && note(`${message.text()} ${message.location().url}`),
    );
    page.on("pageerror", (error) => note(`${error.stack}`));
    page.on("dialog", (dialog) => (note(`a dialog: ${dialog.message()}`), dialog.dismiss()));
    await page.goto(url);
    return new Page(page, context, wrong, this.axe);
  }

  async stop() {
    await this.browser?.close();
  }
}

export class Page {
  constructor(page, context, wrong, axe) {
    Object.assign(this, { page, context, wrong, axe });
  }

  status() {
    return this.page.getAttribute("#status", "data-state");
  }

  async untilState(state, boundMs = 15_000) {
    await until(`the state ${state}`, async () => (await this.status()) === state, boundMs).catch(async (error) => {
      throw new Failure(
        `${error.message}; it is ${await this.status().catch(() => "missing")}; the page says ${await this.text("body")}`,
      );
    });
  }

  text(selector) {
    return this.page.locator(selector).innerText({ timeout: 2000 });
  }

  banner() {
    return this.text(".banners");
  }

  rows(kind) {
    return this.page
      .locator(`[data-${kind}]`)
      .evaluateAll((rows, kind) => rows.map((row) => row.getAttribute(`data-${kind}`)), kind);
  }

  /** Clicks a row until its detail is open. A click can arrive although it reports a timeout. */
  async openDetail(selector) {
    const dialog = this.page.locator("dialog.detail[open]");
    await until(`the detail of ${selector}`, async () => {
      if ((await dialog.count()) === 1) return true;
      await this.page.locator(selector).first().click({ timeout: 1000 });
      return false;
    });
  }

  /** Runs axe with all its rules. It is evaluated by the debugger, which the policy of the page does not stop. */
  async assertAccessible(what) {
    await this.page.evaluate(this.axe);
    const { violations } = await this.page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    const found = violations.map(
      ({ id, nodes }) =>
        `${id}: ${nodes
          .slice(0, 3)
          .map(({ target, failureSummary }) => `${target} ${failureSummary}`)
          .join("; ")}`,
    );
    check(found.length === 0, `axe, ${what}: ${found.join("\n")}`);
  }

  async assertFits(what) {
    const { scrollWidth, clientWidth } = await this.page.evaluate(() => document.documentElement);
    const wide = await this.page.evaluate(() => [
      document.documentElement.scrollWidth,
      document.documentElement.clientWidth,
    ]);
    check(
      wide[0] <= wide[1],
      `${what}: the page is ${wide[0]} px wide in ${wide[1]} px ${scrollWidth ?? clientWidth ?? ""}`,
    );
  }

  /** Closes the page. Fails if the console has shown an error. */
  async close() {
    await this.context.close();
    check(this.wrong.length === 0, `the console shows: ${this.wrong.join("\n")}`);
  }
}
