// Opens a URL with npm's ws and reconnects with the last id. Prints the lines of eventsource.mjs, and
//   {"closed": {code, reason, error}}   the connection ended, or was rejected
//
// usage: node websocket.mjs <URL>
import { WebSocket } from "ws";

const RECONNECT_DELAY_MS = 250;
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let lastEventId;

function connect() {
  const url = new URL(process.argv[2]);
  if (lastEventId) url.searchParams.set("lastEventId", lastEventId);
  print({ request: { lastEventId } });
  const socket = new WebSocket(url);
  let error;
  socket.on("upgrade", (response) => print({ response: { status: response.statusCode, headers: response.headers } }));
  socket.on("message", (text) => {
    const data = JSON.parse(text);
    lastEventId = data.id ?? lastEventId;
    print({ event: { listener: "message", id: data.id, data } });
  });
  socket.on("error", ({ message }) => (error = message));
  socket.on("close", (code, reason) => {
    print({ closed: { code, reason: reason.toString(), error } });
    setTimeout(connect, RECONNECT_DELAY_MS);
  });
}
connect();
