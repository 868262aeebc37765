// Opens a URL with npm's EventSource and lets it reconnect by itself. Prints one JSON line for each step:
//   {"request": {lastEventId}}         it sends a request, with the last id if it has one
//   {"response": {status, headers}}    the response head
//   {"event": {listener, id, data}}    an event; listener is "onmessage" or the name of the event
//   {"gaveUp": message}                it does not reconnect any more
//
// usage: node eventsource.mjs <URL>
import { EventSource } from "eventsource";

const NAMES = [
  "state.initial",
  "instance.state",
  "pool.instance.ready",
  "claim.state",
  "tenant.claimed",
  "tenant.released",
  "pool.depth",
  "upstream.down",
  "upstream.up",
  "matrix-down",
  "matrix-up",
  "heartbeat",
  "stream.closing",
];
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const source = new EventSource(process.argv[2], {
  // Prints the request and the response, and changes nothing.
  fetch: async (url, init) => {
    print({ request: { lastEventId: init.headers["Last-Event-ID"] } });
    const response = await fetch(url, init);
    print({ response: { status: response.status, headers: Object.fromEntries(response.headers) } });
    return response;
  },
});
const printEvent = (listener) => (event) => print({ event: { listener, id: event.lastEventId, data: JSON.parse(event.data) } });
source.onmessage = printEvent("onmessage");
for (const name of NAMES) source.addEventListener(name, printEvent(name));
source.onerror = (error) => {
  if (source.readyState === EventSource.CLOSED) print({ gaveUp: error.message });
};
