// Checked with tsc by tests/page/run: client.d.ts describes client.js, and reads well in TypeScript.
import * as declared from "../client.js";
// The declarations that tsc derives from client.js.
import * as derived from "derived/client.js";

type Exports = keyof typeof declared;
const names: Record<keyof typeof derived, true> = {} as Record<Exports, true>;
const client: declared.BridgeClient = {} as derived.BridgeClient;
const parser: declared.SseParser = {} as derived.SseParser;
const dedupe: declared.Dedupe = {} as derived.Dedupe;
const backoff: declared.Backoff = {} as derived.Backoff;
const error: declared.BridgeError = {} as derived.BridgeError;
const make: (options: declared.Options) => declared.BridgeClient = (options) => new derived.BridgeClient(options);

export async function read(): Promise<string | undefined> {
    const bridge = new declared.BridgeClient({ url: "http://localhost", instanceFilter: { labels: { team: null } } });
    bridge.addEventListener("stale", ({ detail }) => detail.reason === "silent");
    bridge.addEventListener("error", ({ detail }) => detail.kind === "upgrade");
    for await (const event of bridge) {
        if (!declared.isKnown(event)) continue;
        if (event.type === "instance.state") return event.instance.workloadRef;
        if (event.type === "tenant.claimed") return event.source;
        // @ts-expect-error: a heartbeat has no name.
        if (event.type === "heartbeat") return event.name;
    }
    return undefined;
}
export default { names, client, parser, dedupe, backoff, error, make };
