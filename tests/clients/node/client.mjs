// Runs one npm client against the bridge. Prints one JSON line for each message and each change of its state, as
// tests/clients/run describes.
//
// usage: node client.mjs CLIENT BASE_URL
import { createRequire } from "node:module";
import { setTimeout as wait } from "node:timers/promises";

const require = createRequire(import.meta.url);
const [name, base] = process.argv.slice(2);
const RETRY_MS = 1000;
const OPEN = "open";

let lastEventId = "";
const print = (line) => process.stdout.write(`${JSON.stringify({ t: Date.now(), ...line })}\n`);
const state = (kind, detail) => print({ state: kind, detail: detail === undefined ? undefined : String(detail) });

/** Prints a message and remembers its cursor. */
function message(text) {
  // Some libraries deliver a block without data as an event without data.
  print({ message: text ?? "" });
  lastEventId = JSON.parse(text).id ?? lastEventId;
}
/** The text of an error with its causes. */
const describe = (error) => [error?.message ?? error?.type ?? error, error?.cause?.code ?? error?.cause?.message].filter(Boolean).join(": ");

const sseUrl = `${base}/api/sse`;
const plainWsUrl = `${base.replace("http", "ws")}/api/websocket`;
const wsUrl = () => (lastEventId ? `${plainWsUrl}?lastEventId=${lastEventId}` : plainWsUrl);
const headers = () => (lastEventId ? { "Last-Event-ID": lastEventId } : {});

/** Connects again after each end, as programs do whose library does not. */
async function loop(readOneStream) {
  for (;;) {
    state("connect", lastEventId);
    try {
      await readOneStream();
      state("end");
    } catch (error) {
      state("error", describe(error));
    }
    await wait(RETRY_MS);
  }
}

/** A class with the interface of the browser's EventSource. It reconnects by itself. */
function eventSource(EventSource, options) {
  const source = new EventSource(sseUrl, options);
  source.onopen = () => state(OPEN);
  source.onmessage = (event) => message(event.data);
  source.onerror = (event) => state(source.readyState === 2 ? "gave up" : "error", describe(event));
}

/** A class with the interface of the browser's WebSocket, once. */
const webSocketOnce = (WebSocket) =>
  new Promise((resolve) => {
    const socket = new WebSocket(wsUrl());
    socket.onopen = () => state(OPEN);
    socket.onmessage = (event) => message(event.data);
    socket.onerror = () => {};
    socket.onclose = (event) => {
      state("close", `${event.code} ${event.reason}`.trim());
      resolve();
    };
  });
const webSocketLoop = async (WebSocket) => {
  for (;;) {
    state("connect", lastEventId);
    await webSocketOnce(WebSocket);
    await wait(RETRY_MS);
  }
};
/** Handlers for a class that has the interface of the browser's WebSocket and reconnects by itself. */
function follow(socket) {
  socket.onopen = () => state(OPEN);
  socket.onmessage = (event) => message(event.data);
  socket.onerror = () => {};
  socket.onclose = (event) => state("close", `${event.code} ${event.reason ?? ""}`.trim());
}

async function fetchOk() {
  const response = await fetch(sseUrl, { headers: headers() });
  if (!response.ok) throw new Error(`status ${response.status}`);
  state(OPEN);
  return response;
}
/** The parser that most programs write: blocks end with an empty line, `data: ` starts the data. */
async function splitBlocks(chunks) {
  let rest = "";
  for await (const chunk of chunks) {
    const blocks = (rest + chunk).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      for (const line of block.split("\n")) if (line.startsWith("data: ")) message(line.slice(6));
    }
  }
}
/** What a browser has and these libraries use. */
function browserGlobals() {
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
}

const { WebSocket: Ws } = await import("ws");

async function fetchEventSource(onclose) {
  browserGlobals();
  const { fetchEventSource } = await import("@microsoft/fetch-event-source");
  await fetchEventSource(sseUrl, {
    onmessage: (event) => message(event.data),
    onclose: () => {
      state("end");
      onclose?.();
    },
    onerror: (error) => state("error", describe(error)),
  });
  state("gave up");
}

const clients = {
  "native fetch": () => loop(async () => splitBlocks((await fetchOk()).body.pipeThrough(new TextDecoderStream()))),
  "@microsoft/fetch-event-source": () => fetchEventSource(),
  "@microsoft/fetch-event-source, onclose": () =>
    fetchEventSource(() => {
      throw new Error("reconnect");
    }),
  "@sanity/eventsource": async () => eventSource(require("@sanity/eventsource")),
  axios: async () => {
    const { default: axios } = await import("axios");
    await loop(async () => {
      const { data } = await axios.get(sseUrl, { headers: headers(), responseType: "stream" });
      state(OPEN);
      data.setEncoding("utf8");
      await splitBlocks(data);
    });
  },
  "event-source-plus": async () => {
    const { EventSourcePlus } = await import("event-source-plus");
    new EventSourcePlus(sseUrl).listen({
      onMessage: (event) => message(event.data),
      onResponse: () => state(OPEN),
      onRequestError: ({ error }) => state("error", describe(error)),
      onResponseError: ({ response, error }) => state("error", describe(error) || response?.status),
    });
  },
  "event-source-polyfill": async () => eventSource(require("event-source-polyfill").EventSourcePolyfill),
  "eventsource 2": async () => eventSource(require("eventsource-2")),
  "eventsource 3": async () => eventSource((await import("eventsource-3")).EventSource),
  "eventsource 4": async () => eventSource((await import("eventsource-4")).EventSource),
  "eventsource-client": async () => {
    const { createEventSource } = await import("eventsource-client");
    createEventSource({
      url: sseUrl,
      onMessage: ({ data }) => message(data),
      onConnect: () => state(OPEN),
      // The library calls this after a clean end and after an error.
      onScheduleReconnect: ({ delay }) => state("error", `reconnect in ${delay} ms`),
    });
  },
  "eventsource-parser": async () => {
    const { EventSourceParserStream } = await import("eventsource-parser/stream");
    await loop(async () => {
      const text = (await fetchOk()).body.pipeThrough(new TextDecoderStream());
      for await (const { data } of text.pipeThrough(new EventSourceParserStream())) message(data);
    });
  },
  "extended-eventsource": async () => eventSource((await import("extended-eventsource")).EventSource),
  "fetch-event-stream": async () => {
    const { events } = await import("fetch-event-stream");
    await loop(async () => {
      for await (const { data } of events(await fetchOk())) message(data);
    });
  },
  "launchdarkly-eventsource": async () => eventSource(require("launchdarkly-eventsource").EventSource),
  "launchdarkly-eventsource, readTimeoutMillis": async () =>
    eventSource(require("launchdarkly-eventsource").EventSource, { readTimeoutMillis: 45_000 }),
  "parse-sse": async () => {
    const { parseServerSentEvents } = await import("parse-sse");
    await loop(async () => {
      for await (const { data } of parseServerSentEvents(await fetchOk())) message(data);
    });
  },
  "reconnecting-eventsource": async () => {
    const Reconnecting = require("reconnecting-eventsource").default;
    eventSource(Reconnecting, { eventSourceClass: (await import("eventsource-4")).EventSource });
  },
  "undici EventSource": async () => eventSource((await import("undici")).EventSource),

  "faye-websocket": async () => webSocketLoop(require("faye-websocket").Client),
  "isomorphic-ws": async () => webSocketLoop((await import("isomorphic-ws")).default),
  "it-ws": async () => {
    const { connect } = await import("it-ws/client");
    await loop(async () => {
      const stream = connect(wsUrl());
      for await (const bytes of stream.source) message(new TextDecoder().decode(bytes));
    });
  },
  partysocket: async () => follow(new (await import("partysocket")).WebSocket(wsUrl, [], { WebSocket: Ws })),
  "reconnecting-websocket": async () => {
    const Reconnecting = require("reconnecting-websocket");
    follow(new (Reconnecting.default ?? Reconnecting)(wsUrl, [], { WebSocket: Ws }));
  },
  "robust-websocket": async () => {
    const listeners = new EventTarget();
    Object.assign(browserGlobals() ?? globalThis, {
      WebSocket: Ws,
      addEventListener: listeners.addEventListener.bind(listeners),
      removeEventListener: listeners.removeEventListener.bind(listeners),
    });
    Object.defineProperty(globalThis, "navigator", { value: { onLine: true }, configurable: true });
    globalThis.Event.prototype.initEvent ??= () => {};
    globalThis.document.createEvent = () => Object.assign(new Event("x"), { initCustomEvent() {} });
    follow(new (require("robust-websocket"))(wsUrl));
  },
  rxjs: async () => {
    const { defer, repeat, retry } = await import("rxjs");
    const { webSocket } = await import("rxjs/webSocket");
    const closeObserver = { next: ({ code, reason }) => state("close", `${code} ${reason}`.trim()) };
    defer(() => webSocket({ url: wsUrl(), WebSocketCtor: Ws, closeObserver, openObserver: { next: () => state(OPEN) } }))
      .pipe(retry({ delay: RETRY_MS }), repeat({ delay: RETRY_MS }))
      .subscribe((event) => message(JSON.stringify(event)));
  },
  sockette: async () => {
    globalThis.WebSocket = Ws;
    const Sockette = require("sockette");
    new Sockette(plainWsUrl, {
      onopen: () => state(OPEN),
      onmessage: (event) => message(event.data),
      onclose: (event) => state("close", `${event.code} ${event.reason}`.trim()),
    });
  },
  "sturdy-websocket": async () => {
    const { default: Sturdy } = require("sturdy-websocket");
    const socket = new Sturdy(plainWsUrl, { wsConstructor: Ws });
    follow(socket);
    socket.ondown = (event) => state("close", `${event.code} ${event.reason}`.trim());
  },
  "undici WebSocket": async () => webSocketLoop((await import("undici")).WebSocket),
  websocket: async () => webSocketLoop(require("websocket").w3cwebsocket),
  "websocket-as-promised": async () => {
    const { default: Wsp } = await import("websocket-as-promised");
    await loop(async () => {
      const socket = new Wsp(wsUrl(), { createWebSocket: (url) => new Ws(url), extractMessageData: String });
      socket.onMessage.addListener(message);
      const closed = new Promise((resolve) => socket.onClose.addListener(resolve));
      await socket.open();
      state(OPEN);
      // With ws, the library passes the code and not an event.
      state("close", await closed);
    });
  },
  "websocket-ts": async () => {
    globalThis.WebSocket = Ws;
    const { ConstantBackoff, WebsocketBuilder } = await import("websocket-ts");
    new WebsocketBuilder(plainWsUrl)
      .withBackoff(new ConstantBackoff(RETRY_MS))
      .onOpen(() => state(OPEN))
      .onMessage((_, event) => message(event.data))
      .onClose((_, event) => state("close", `${event.code} ${event.reason}`.trim()))
      .build();
  },
  ws: () => webSocketLoop(Ws),
};

// The timers of some libraries do not keep the process alive. A program that uses them does.
setInterval(() => {}, 60_000);
if (!clients[name]) throw new Error(`unknown client: ${name}; known: ${Object.keys(clients).join(", ")}`);
await clients[name]();
