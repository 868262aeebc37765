// The servers of these tests: a scripted bridge that serves the page, a proxy with a path prefix, and `demo`.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import path from "node:path";
import { ScriptedBridge } from "../../clients/js/test/scripted.js";

const ROOT = path.join(import.meta.dirname, "../..");
const FILES = path.join(ROOT, "src/http/assets/dashboard");
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};
/** Where the page comes from: the files of this checkout, while the page is changed, or the bridge under test. */
export const FROM_FILES = process.env.PAGE_FROM === "files";
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/** The file of a path of the page, or nothing. */
function file(pathname) {
  if (pathname === "/") return path.join(FILES, "index.html");
  if (pathname === "/client.js") return path.join(ROOT, "clients/js/client.js");
  const found = /^\/assets\/((vendor\/)?[a-z]+\.(js|css|svg))$/.exec(pathname);
  return found && path.join(FILES, found[1]);
}

/** Answers a request for the page from the files. Returns false for other paths. */
function serveFile(pathname, response) {
  const name = file(pathname);
  if (!name) return false;
  const headers = {
    "content-type": TYPES[path.extname(name)],
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
  };
  response.writeHead(200, headers).end(readFileSync(name));
  return true;
}

/** Passes a request on. A refused connection is a 502, as with a real proxy. */
function forward(port, pathname, request, response) {
  const options = { host: "127.0.0.1", port, path: pathname, method: request.method, headers: request.headers };
  const passed = http.request(options, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
    answer.on("error", () => response.destroy());
    response.on("close", () => answer.destroy());
  });
  passed.on("error", () => {
    if (response.headersSent) return response.destroy();
    response.writeHead(502, { "content-type": "text/html" }).end("<html><h1>502 Bad Gateway</h1></html>");
  });
  request.pipe(passed);
}

/** A bridge of this test, with the page. `assets` is the port of a real bridge. */
export class PageBridge extends ScriptedBridge {
  /** Answers before the page. */
  answer = () => false;

  constructor(assets) {
    super();
    this.intercept = (record, response) => {
      if (this.answer(record, response)) return true;
      if (!file(record.path)) return false;
      if (FROM_FILES) return serveFile(record.path, response);
      const request = http.get(
        { host: "127.0.0.1", port: assets, path: record.path, headers: { accept: record.headers.accept ?? "" } },
        (answer) => {
          response.writeHead(answer.statusCode, answer.headers);
          answer.pipe(response);
        },
      );
      request.on("error", () => response.destroy());
      return true;
    };
  }
}

/** A proxy that serves a bridge below a prefix. */
export class Proxy {
  requests = [];
  /** Answers instead of the bridge, if it returns true. */
  answer = () => false;
  stripsUpgrade = false;
  #sockets = new Set();

  constructor(bridgePort, prefix = "/") {
    Object.assign(this, { bridgePort, prefix });
  }

  /** @param {{ key: string, cert: string }} [tls] */
  async start(tls) {
    const create = tls ? (answer) => https.createServer(tls, answer) : http.createServer;
    this.server = create((request, response) => {
      const inner = this.#inner(request.url);
      this.requests.push(request.url);
      if (inner === undefined) return response.writeHead(404).end();
      const { pathname } = new URL(inner, "http://x");
      if (this.answer(pathname, request, response)) return;
      if (FROM_FILES && serveFile(pathname, response)) return;
      forward(this.bridgePort, inner, request, response);
    });
    this.server.on("upgrade", (request, socket, head) => this.#upgrade(request, socket, head));
    this.server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
    await new Promise((done) => this.server.listen(0, "127.0.0.1", done));
    this.url = `http${tls ? "s" : ""}://127.0.0.1:${this.server.address().port}${this.prefix}`;
    return this;
  }

  #inner(url) {
    return url.startsWith(this.prefix) ? `/${url.slice(this.prefix.length)}` : undefined;
  }

  #upgrade(request, socket, head) {
    const inner = this.#inner(request.url);
    this.requests.push(request.url);
    if (inner === undefined || this.stripsUpgrade || this.answer(inner, request, undefined)) {
      socket.end("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
      return;
    }
    const upstream = net.connect(this.bridgePort, "127.0.0.1", () => {
      const headers = Object.entries(request.headers).map(([name, value]) => `${name}: ${value}\r\n`);
      upstream.write(`GET ${inner} HTTP/1.1\r\n${headers.join("")}\r\n`);
      upstream.write(head);
      upstream.pipe(socket).pipe(upstream);
    });
    for (const [one, other] of [
      [upstream, socket],
      [socket, upstream],
    ]) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
  }

  /** Ends all connections. */
  cut() {
    for (const socket of this.#sockets) socket.destroy();
  }

  async stop() {
    this.cut();
    await new Promise((done) => this.server.close(done));
  }
}

const running = new Set();

/** One process of the bridge: `demo`, or `serve` with other arguments. */
export class Bridge {
  constructor(binary, args = ["demo", "--speed", "3"], env = {}) {
    Object.assign(this, { binary, args, env, port: 0 });
  }

  async start() {
    const args = [...this.args, "--port", String(this.port)];
    this.child = spawn(this.binary, args, { env: { ...process.env, ...this.env }, stdio: ["ignore", "pipe", "pipe"] });
    running.add(this);
    const { child } = this;
    this.ended = new Promise((done) => child.once("close", () => (running.delete(this), done())));
    let text = "";
    await new Promise((done, failed) => {
      for (const output of [child.stdout, child.stderr]) {
        output.on("data", (data) => {
          if (text.length < 20_000) text += data;
          const found = /http:\/\/127\.0\.0\.1:(\d+)/.exec(text);
          if (found) done((this.port = Number(found[1])));
        });
      }
      child.once("exit", () => failed(new Error(`the bridge has ended: ${text}`)));
    });
    this.url = `http://127.0.0.1:${this.port}/`;
    return this;
  }

  async stop(signal = "SIGKILL") {
    if (!running.has(this)) return;
    this.child.kill(signal);
    await this.ended;
  }
}

export async function stopAll() {
  await Promise.all([...running].map((bridge) => bridge.stop()));
}
