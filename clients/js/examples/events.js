// Prints the events of a bridge, one line each: node examples/events.js http://localhost:3000 [key]
import { BridgeClient, isKnown } from "../client.js";

const [url = "http://localhost:3000", token] = process.argv.slice(2);
const client = new BridgeClient({ url, token });
client.addEventListener("error", ({ detail }) => console.error(`${detail.kind}: ${detail.message}`));
client.addEventListener("stale", ({ detail }) => console.error(detail.isStale ? `stale: ${detail.reason}` : "live"));
process.once("SIGINT", () => client.close());

for await (const event of client) {
  if (!isKnown(event)) console.log(event.type, "(a type of a later release)");
  else if (event.type === "instance.state") console.log(event.time, event.name, event.phase, event.tenantId ?? "");
  else console.log(event.type);
}
