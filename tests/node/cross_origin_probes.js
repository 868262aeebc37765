// What web pages can learn of a bridge, in Chromium. Prints a JSON object: page -> probe -> outcome.
//
// usage: node cross_origin_probes.js <JSON: page -> {its url, the base URL by which it calls the bridge, the key that it knows, the key
// by which the browser has signed in at the bridge itself}>
//
// The names evil.example and app.example are led to loopback, as a rebinding DNS server would do.
"use strict";
const { existsSync } = require("node:fs");
const { join } = require("node:path");
const { chromium } = require("playwright-core");

const BROWSERS = ["chromium", "chromium-browser", "google-chrome"];

// Runs inside the page. Each probe ends within its bound, whatever happens to it.
async function probes({ base, key, bound }) {
  const authorization = `Bearer ${key ?? "none"}`;
  const gets = "instances, instances/present, tenants, pools, stats, connections, health".split(", ");
  const paths = [...gets.map((name) => `/api/v1/${name}`), "/livez", "/readyz?verbose", "/metrics", "/"];
  const present = `${base}/api/v1/instances/present`;
  const absent = `${base}/api/v1/instances/absent`;
  const within = (body) =>
    Promise.race([
      new Promise(body).catch((error) => error.name),
      new Promise((resolve) => setTimeout(resolve, bound, "nothing")),
    ]);
  const fetched = (url, options) =>
    within((resolve, reject) => {
      const read = async (answer) => {
        const text = await answer.text();
        const names = text.match(/"(name|code)":"[^"]*"/g) || [text.trim()];
        const tagged = answer.headers.get("etag") ? ["etag"] : [];
        return [answer.type, answer.status, ...tagged, names[0]].join(" ");
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
  // Both in one word, so that a difference between what is there and what is not shows.
  const both = async (probe) => `${await probe(present)}, ${await probe(absent)}`;
  const framed = (start) =>
    within((resolve) => {
      const frame = Object.assign(document.createElement("iframe"), { name: `frame${Math.random()}` });
      frame.onload = () => {
        let text = "unreadable";
        try {
          text = frame.contentDocument.documentElement.textContent;
        } catch {
          // Another origin's, as it should be.
        }
        if (text !== "") resolve(text.match(/"(name|code)":"[^"]*"/)?.[0] ?? text.slice(0, 40));
      };
      start(frame);
    });
  const outcome = {};
  const heard = (source, resolve) => {
    const done = (what) => {
      source.close();
      resolve(what);
    };
    source.onmessage = ({ data }) => done(JSON.parse(data).type);
    source.onerror = () => done("error");
  };
  const socket = (path) => within((resolve) => heard(new WebSocket(`${base.replace("http", "ws")}${path}`), resolve));
  const events = (path, options) => within((resolve) => heard(new EventSource(`${base}${path}`, options), resolve));
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
    const answer = await fetched(`${base}${path}`, { credentials: "include" });
    statuses.add(answer.split(" ", 2).join(" "));
  }
  outcome["every get"] = [...statuses].join(", ");
  // What a page that knows the key does to get streams.
  outcome.ticket = await within((resolve, reject) => {
    const asked = fetch(`${base}/api/v1/tickets`, { method: "POST", headers: { authorization } });
    const used = async ({ ticket, code }) => {
      if (!ticket) return code;
      const path = (stream) => `/api/${stream}?token=${encodeURIComponent(ticket)}`;
      return `${await socket(path("websocket"))}, ${await events(path("sse"))}`;
    };
    asked.then((answer) => answer.json()).then(used).then(resolve, reject);
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

// Runs inside the bridge's own page.
async function session(key) {
  const answer = await fetch("/api/v1/session", { method: "POST", headers: { authorization: `Bearer ${key}` } });
  return answer.status;
}

async function main() {
  const pages = JSON.parse(process.argv[2]);
  const paths = process.env.PATH.split(":").flatMap((dir) => BROWSERS.map((name) => join(dir, name)));
  const executablePath = paths.find((path) => existsSync(path));
  if (!executablePath) throw new Error("chromium is missing: apt-get install chromium, or tests/run, which does");
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
        const status = await page.evaluate(session, signIn);
        if (status !== 200) throw new Error(`${name}: the sign-in is answered with ${status}`);
      }
      await page.goto(url);
      outcomes[name] = await page.evaluate(probes, { base, key, bound: 10_000 });
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
