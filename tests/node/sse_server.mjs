// A server of event streams with npm's better-sse, as an upstream of the relay. Each client gets one event with every field,
// and then a count. Prints its port.
//
// usage: node sse_server.mjs <PORT>
import { createServer } from "node:http";
import { createSession } from "better-sse";

const server = createServer(async (request, response) => {
  const session = await createSession(request, response, { keepAlive: 1000 });
  session.push({ text: "line 1\nline 2" }, "greeting", "start");
  let count = 0;
  const timer = setInterval(() => session.push(++count, "count", String(count)), 50);
  session.on("disconnected", () => clearInterval(timer));
});
server.listen(Number(process.argv[2]), "127.0.0.1", () => process.stdout.write(`${server.address().port}\n`));
