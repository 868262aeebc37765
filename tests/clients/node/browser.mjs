// Runs one client in Chromium, on a page of another origin than the bridge. Prints the lines of client.mjs.
//
// usage: node browser.mjs CLIENT BASE_URL, with the URL of the page in PAGE_URL and the browser in CHROMIUM
import { chromium } from "playwright-core";

const [name, base] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
const page = await browser.newPage();
await page.exposeBinding("print", (_, line) => void process.stdout.write(`${line}\n`));
page.on("pageerror", (error) => process.stderr.write(`${error}\n`));
await page.goto(process.env.PAGE_URL);

// This function runs in the page.
await page.evaluate(
  async ({ name, base }) => {
    const send = (line) => window.print(JSON.stringify({ t: performance.timeOrigin + performance.now(), ...line }));
    const state = (state, detail) => send({ state, detail: detail === undefined ? undefined : String(detail) });
    let lastEventId = "";
    const message = (text) => {
      send({ message: text });
      lastEventId = JSON.parse(text).id ?? lastEventId;
    };
    const url = `${base}/api/sse`;

    const eventSource = (EventSource) => {
      const source = new EventSource(url);
      source.onopen = () => state("open");
      source.onmessage = (event) => message(event.data);
      source.onerror = () => state(source.readyState === 2 ? "gave up" : "error");
    };
    const webSocket = () => {
      const query = lastEventId ? `?lastEventId=${lastEventId}` : "";
      state("connect", lastEventId);
      const socket = new WebSocket(`${base.replace("http", "ws")}/api/websocket${query}`);
      socket.onopen = () => state("open");
      socket.onmessage = (event) => message(event.data);
      socket.onclose = (event) => {
        state("close", `${event.code} ${event.reason}`.trim());
        setTimeout(webSocket, 1000);
      };
    };
    const fetchEventSource = async (onclose) => {
      const library = await import("/@microsoft/fetch-event-source/lib/esm/index.js");
      const end = library.fetchEventSource(url, {
        onmessage: (event) => message(event.data),
        onclose: () => {
          state("end");
          onclose?.();
        },
        onerror: (error) => state("error", error.message),
      });
      end.then(() => state("gave up"));
    };
    const sse = async (options) => {
      const { SSE } = await import("/sse.js/lib/sse.js");
      const source = new SSE(url, options);
      source.onopen = () => state("open");
      source.onmessage = (event) => message(event.data);
      source.onerror = (event) => state("error", `status ${event.responseCode}`);
      source.onreadystatechange = (event) => event.readyState === SSE.CLOSED && state("end");
    };
    const clients = {
      "EventSource of Chromium": () => eventSource(EventSource),
      "WebSocket of Chromium": webSocket,
      "fetch-event-source, Chromium": () => fetchEventSource(),
      "fetch-event-source, Chromium, onclose": () =>
        fetchEventSource(() => {
          throw new Error("reconnect");
        }),
      "event-source-polyfill, Chromium": async () => {
        await import("/event-source-polyfill/src/eventsource.min.js");
        eventSource(window.EventSourcePolyfill);
      },
      "sse.js, Chromium": () => sse({}),
      "sse.js, Chromium, autoReconnect": () => sse({ autoReconnect: true }),
    };
    if (!clients[name]) throw new Error(`unknown client: ${name}`);
    await clients[name]();
  },
  { name, base },
);
