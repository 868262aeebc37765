// A server that speaks the endpoints of a bridge and says what a test wants. It listens on loopback.
import { createHash } from "node:crypto";
import http from "node:http";

const HEARTBEAT_MS = 15_000;

/** The frame of a text message, or of a close with a code. */
function frame(opcode, payload) {
  const { length } = payload;
  const head =
    length < 126
      ? Buffer.from([0x80 | opcode, length])
      : length < 65_536
        ? Buffer.from([0x80 | opcode, 126, length >> 8, length & 255])
        : Buffer.from([0x80 | opcode, 127, 0, 0, 0, 0, ...[24, 16, 8, 0].map((bits) => (length >>> bits) & 255)]);
  return Buffer.concat([head, payload]);
}

class SseStream {
  constructor(response) {
    this.response = response;
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
  }

  send(event) {
    this.raw(typeof event === "string" ? event : JSON.stringify(event), event.id);
  }

  raw(data, id) {
    this.response.write(`${id ? `id: ${id}\n` : ""}data: ${data}\n\n`);
  }

  end() {
    this.response.end();
  }

  cut() {
    this.response.destroy();
  }
}

class WebSocketStream {
  constructor(request, socket) {
    this.socket = socket;
    const key = `${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`;
    const accept = createHash("sha1").update(key).digest("base64");
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    );
    // A close frame of the client is answered. Nothing else that it sends matters.
    socket.on("data", ([first]) => (first & 15) === 8 && this.end(1000, ""));
    socket.on("error", () => {});
  }

  send(event) {
    this.raw(typeof event === "string" ? event : JSON.stringify(event));
  }

  raw(data) {
    this.socket.write(frame(1, Buffer.from(data)));
  }

  end(code = 1012, reason = "draining") {
    this.socket.end(frame(8, Buffer.concat([Buffer.from([code >> 8, code & 255]), Buffer.from(reason)])));
  }

  cut() {
    this.socket.destroy();
  }
}

export class ScriptedBridge {
  /** All requests: `{ method, path, query, headers }`. */
  requests = [];
  streams = new Set();
  /** What a stream starts with. `cursor` is the one of the request. */
  onStream = (stream) => stream.send({ type: "state.initial", id: "c1", reason: "connect", ...this.state() });
  state = () => ({ connectionId: "x", snapshotAt: "", instances: [], claims: [], pools: [] });
  /** `true`: the server answers an upgrade as a plain GET, as after a proxy that removes `Upgrade`. */
  stripsUpgrade = false;
  /** Answers a request before everything else, if it returns true. */
  intercept = () => false;
  heartbeatMs = HEARTBEAT_MS;
  #sockets = new Set();

  async start(port = 0) {
    this.server = http.createServer((request, response) => this.#answer(request, response));
    this.server.on("upgrade", (request, socket) => this.#upgrade(request, socket));
    this.server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
    await new Promise((done, failed) => this.server.once("error", failed).listen(port, "127.0.0.1", done));
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}/`;
    this.timer = setInterval(() => this.heartbeat(), this.heartbeatMs);
    return this;
  }

  heartbeat(more = {}) {
    this.broadcast({
      type: "heartbeat",
      id: this.cursor,
      timestamp: new Date().toISOString(),
      upstream: "live",
      upstreamAgeMs: 5,
      ...more,
    });
  }

  broadcast(event) {
    for (const stream of this.streams) stream.send(event);
  }

  async stop() {
    clearInterval(this.timer);
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((done) => this.server.close(done));
  }

  json(response, status, body, headers = {}) {
    response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(body));
    return true;
  }

  #record(request) {
    const { pathname, searchParams } = new URL(request.url, this.url);
    const { method, headers } = request;
    const record = { method, path: pathname, query: Object.fromEntries(searchParams), headers };
    if (this.requests.length < 10_000) this.requests.push(record);
    return record;
  }

  #open(stream, connection, record) {
    this.streams.add(stream);
    connection.on("close", () => this.streams.delete(stream));
    this.onStream(stream, record.headers["last-event-id"] ?? record.query.lastEventId, record);
  }

  #answer(request, response) {
    const record = this.#record(request);
    if (this.intercept(record, response)) return;
    switch (record.path) {
      case "/api/sse":
        return this.#open(new SseStream(response), response, record);
      case "/api/v1/health":
        return this.json(response, 200, { status: "ok" });
      case "/api/v1/connections":
        return this.json(response, 200, [{ id: "x", name: "scripted", namespace: "test", state: "live" }]);
      default:
        return this.json(response, 404, { code: "NOT_FOUND", message: "no such path" });
    }
  }

  #upgrade(request, socket) {
    const record = this.#record(request);
    socket.on("error", () => {});
    if (this.stripsUpgrade || record.path !== "/api/websocket") {
      const text = '{"code":"UPGRADE_REQUIRED","message":"this endpoint requires WebSocket"}';
      socket.end(`HTTP/1.1 426 Upgrade Required\r\nContent-Length: ${text.length}\r\nConnection: close\r\n\r\n${text}`);
      return;
    }
    const refused = {
      writeHead: (status) => ({ end: () => socket.end(`HTTP/1.1 ${status} No\r\nConnection: close\r\n\r\n`) }),
    };
    if (this.intercept(record, refused)) return;
    this.#open(new WebSocketStream(request, socket), socket, record);
  }
}
