// npm's ws in a loop that connects again, from the last id it has seen. Prints what eventsource.mjs prints, and
//   {"closed": {code, reason, error}}   the connection ended, or was refused
//
// usage: node websocket.mjs <URL>
import { WebSocket } from "ws";

const PAUSE_MS = 250;
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let lastEventId;

function connect() {
  const url = new URL(process.argv[2]);
  if (lastEventId) url.searchParams.set("lastEventId", lastEventId);
  say({ asked: { lastEventId } });
  const socket = new WebSocket(url);
  let problem;
  socket.on("upgrade", (answer) => say({ answered: { status: answer.statusCode, headers: answer.headers } }));
  socket.on("message", (text) => {
    const data = JSON.parse(text);
    lastEventId = data.id ?? lastEventId;
    say({ event: { by: "message", id: data.id, data } });
  });
  socket.on("error", (error) => (problem = error.message));
  socket.on("close", (code, reason) => {
    say({ closed: { code, reason: reason.toString(), error: problem } });
    setTimeout(connect, PAUSE_MS);
  });
}
connect();
