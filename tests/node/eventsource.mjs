// npm's EventSource as a page uses it: it is given an address and left alone. Prints JSON lines, in the order of things:
//   {"asked": {lastEventId}}           it connects, and from where
//   {"answered": {status, headers}}
//   {"event": {by, id, data}}          by: "onmessage", or the name that was listened to
//   {"gaveUp": message}                for good
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
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const source = new EventSource(process.argv[2], {
  // Looks on: what passes is not changed.
  fetch: async (url, init) => {
    say({ asked: { lastEventId: init.headers["Last-Event-ID"] } });
    const answer = await fetch(url, init);
    say({ answered: { status: answer.status, headers: Object.fromEntries(answer.headers) } });
    return answer;
  },
});
const taken = (by) => (event) => say({ event: { by, id: event.lastEventId, data: JSON.parse(event.data) } });
source.onmessage = taken("onmessage");
for (const name of NAMES) source.addEventListener(name, taken(name));
source.onerror = (error) => {
  if (source.readyState === EventSource.CLOSED) say({ gaveUp: error.message });
};
