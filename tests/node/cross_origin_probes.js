// Probes what web pages can read from a bridge, in Chromium. Prints a JSON object: page -> probe -> outcome.
//
// usage: node cross_origin_probes.js <JSON: page -> {url, base, key, signIn}>
//
// url is the URL of the page, base the base URL by which the page calls the bridge. key is the API key that the page
// has. signIn is the API key with which the browser gets a session cookie before it loads the page. key and signIn are
// optional.
//
// The names evil.example and app.example resolve to loopback, as with a rebinding DNS server.
"use strict";
const { existsSync } = require("node:fs");
const { join } = require("node:path");
const { chromium } = require("playwright-core");

const BROWSERS = ["chromium", "chromium-browser", "google-chrome"];

// Runs inside the page. Each probe ends within timeoutMs.
async function probes({ base, key, timeoutMs }) {
  const authorization = `Bearer ${key ?? "none"}`;
  const gets = "instances, instances/present, tenants, pools, stats, connections, health".split(", ");
  const paths = [...gets.map((name) => `/api/v1/${name}`), "/livez", "/readyz?verbose", "/metrics", "/"];
  const present = `${base}/api/v1/instances/present`;
  const absent = `${base}/api/v1/instances/absent`;
  const within = (body) =>
    Promise.race([
      new Promise(body).catch((error) => error.name),
      new Promise((resolve) => setTimeout(resolve, timeoutMs, "timeout")),
    ]);
  const fetched = (url, options) =>
    within((resolve, reject) => {
      const read = async (response) => {
        const text = await response.text();
        const names = text.match(/"(name|code)":"[^"]*"/g) || [text.trim()];
        const tagged = response.headers.get("etag") ? ["etag"] : [];
        return [response.type, response.status, ...tagged, names[0]].join(" ");
      };
      fetch(url, options).then(read).then(resolve, reject);
    });
  const loaded = (tag, attributes) =>
    within((resolve) => {
      const element = Object.assign(document.createElement(tag), attributes);
      element.onload = () => resolve("load");
      element.onerror = () => resolve("error");
      document.documentElement.append(element);
    });
  // Joins the outcomes for an existing and a missing instance. A page must not see a difference.
  const both = async (probe) => `${await probe(present)}, ${await probe(absent)}`;
  const framed = (start) =>
    within((resolve) => {
      const frame = Object.assign(document.createElement("iframe"), { name: `frame${Math.random()}` });
      frame.onload = () => {
        let text = "unreadable";
        try {
          text = frame.contentDocument.documentElement.textContent;
        } catch {
          // The document of another origin is not accessible.
        }
        if (text !== "") resolve(text.match(/"(name|code)":"[^"]*"/)?.[0] ?? text.slice(0, 40));
      };
      start(frame);
    });
  const outcome = {};
  const firstMessage = (source, resolve) => {
    const finish = (result) => {
      source.close();
      resolve(result);
    };
    source.onmessage = ({ data }) => finish(JSON.parse(data).type);
    source.onerror = () => finish("error");
  };
  const socket = (path) => within((resolve) => firstMessage(new WebSocket(`${base.replace("http", "ws")}${path}`), resolve));
  const events = (path, options) => within((resolve) => firstMessage(new EventSource(`${base}${path}`, options), resolve));
  outcome.websocket = await socket("/ws");
  outcome["websocket of all"] = await socket("/api/websocket");
  outcome.eventsource = await events("/api/sse");
  outcome["eventsource with credentials"] = await events("/api/sse", { withCredentials: true });
  outcome.fetch = await fetched(`${base}/api/v1/instances`);
  outcome["fetch with credentials"] = await fetched(`${base}/api/v1/instances`, { credentials: "include" });
  outcome["fetch with headers"] = await fetched(`${base}/api/v1/instances`, {
    headers: { authorization, "if-none-match": '"none"' },
  });
  const statuses = new Set();
  for (const path of paths) {
    const result = await fetched(`${base}${path}`, { credentials: "include" });
    statuses.add(result.split(" ", 2).join(" "));
  }
  outcome["every get"] = [...statuses].join(", ");
  // A page with the key gets a ticket and opens streams with it.
  outcome.ticket = await within((resolve, reject) => {
    const request = fetch(`${base}/api/v1/tickets`, { method: "POST", headers: { authorization } });
    const openStreams = async ({ ticket, code }) => {
      if (!ticket) return code;
      const path = (stream) => `/api/${stream}?token=${encodeURIComponent(ticket)}`;
      return `${await socket(path("websocket"))}, ${await events(path("sse"))}`;
    };
    request.then((response) => response.json()).then(openStreams).then(resolve, reject);
  });
  outcome["fetch without cors"] = await both((url) => fetched(url, { mode: "no-cors" }));
  outcome["fetch of an error"] = await fetched(`${base}/api/v1/nothing`);
  outcome["fetch of a probe"] = await fetched(`${base}/livez`);
  outcome.post = await fetched(`${base}/api/v1/instances`, { method: "POST", body: "x" });
  outcome.script = await both((src) => loaded("script", { src }));
  outcome.module = await both((src) => loaded("script", { type: "module", src }));
  outcome.image = await both((src) => loaded("img", { src }));
  outcome.style = await both((href) => loaded("link", { rel: "stylesheet", href }));
  outcome.frame = await framed((frame) => {
    frame.src = `${base}/api/v1/instances`;
    document.documentElement.append(frame);
  });
  outcome.form = await framed((frame) => {
    const form = Object.assign(document.createElement("form"), {
      action: `${base}/api/v1/instances`,
      method: "post",
      target: frame.name,
    });
    document.documentElement.append(frame, form);
    form.submit();
  });
  const timed = performance.getEntriesByType("resource").filter((entry) => entry.name.startsWith(base));
  outcome.timing = timed.some((entry) => entry.responseStatus || entry.transferSize || entry.encodedBodySize)
    ? "sizes or statuses"
    : "nothing";
  return outcome;
}

// Runs inside a page of the bridge's own origin. Requests a session cookie and returns the status.
async function signInWith(key) {
  const response = await fetch("/api/v1/session", { method: "POST", headers: { authorization: `Bearer ${key}` } });
  return response.status;
}

async function main() {
  const pages = JSON.parse(process.argv[2]);
  const paths = process.env.PATH.split(":").flatMap((dir) => BROWSERS.map((name) => join(dir, name)));
  const executablePath = paths.find((path) => existsSync(path));
  if (!executablePath) throw new Error("chromium is missing: run apt-get install chromium, or tests/run, which installs it");
  const browser = await chromium.launch({
    executablePath,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP app.example 127.0.0.1",
    ],
  });
  try {
    const outcomes = {};
    for (const [name, { url, base, key, signIn }] of Object.entries(pages)) {
      const context = await browser.newContext();
      const page = await context.newPage();
      if (signIn) {
        await page.goto(`${base}/livez`);
        const status = await page.evaluate(signInWith, signIn);
        if (status !== 200) throw new Error(`${name}: POST /api/v1/session returned ${status}`);
      }
      await page.goto(url);
      outcomes[name] = await page.evaluate(probes, { base, key, timeoutMs: 10_000 });
      await context.close();
    }
    console.log(JSON.stringify(outcomes, null, 1));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
