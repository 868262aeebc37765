// A page of a scripted bridge.
import { PageBridge } from "./servers.mjs";

/** Chromium reports refused connections and error statuses by itself. */
export const NETWORK = [/Failed to load resource/, /WebSocket connection to .* failed/, /net::ERR/];

export const instance = (name, more = {}) => ({
  name,
  uid: `uid-${name}`,
  phase: "Running",
  workloadRef: "web",
  tenantId: "alice",
  createdAt: new Date().toISOString(),
  ...more,
});

/** A scripted bridge and a page of it. */
export async function scripted(context, prepare, test, options = {}) {
  const server = new PageBridge(context.bridge.port);
  server.state = () => ({
    connectionId: "x",
    snapshotAt: new Date().toISOString(),
    instances: [instance("one")],
    claims: [],
    pools: [],
  });
  prepare(server);
  await server.start();
  const p = await context.chromium.open(`${server.url}${options.hash ?? ""}`, { expected: NETWORK, ...options });
  try {
    await test(p, server);
    await p.close();
  } finally {
    await p.context.close().catch(() => {});
    await server.stop();
  }
}

export const isStream = ({ path }) => path === "/api/sse" || path === "/api/websocket";
