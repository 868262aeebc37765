// Waits until a workload has a ready instance, and prints it: node examples/ready.js http://localhost:3000 browser
import { BridgeClient } from "../client.js";

const [url, workloadRef] = process.argv.slice(2);
const client = new BridgeClient({
  url,
  types: ["instance"],
  instanceFilter: { workloadRef, poolStatus: "ready" },
  signal: AbortSignal.timeout(60_000),
});
for await (const _ of client) {
  const [instance] = client.state.instances.values();
  if (!instance) continue;
  console.log(instance.name, instance.ip);
  client.close();
}
