// The host that a proxy names to the bridge. A proxy does not pass Host on: the answer and the log of the bridge name
// the remedy. A client sends X-Forwarded-Host: it has no effect.
import { Bridge, get } from "./control_plane.mjs";
import { PROXIES, Proxy } from "./proxies.mjs";
import { waitFor } from "./processes.mjs";

/// The documented files without the one setting that passes Host on.
const WRONG = [
  ["nginx", "        proxy_set_header Host $http_host;\n"],
  ["apache", "    ProxyPreserveHost On\n"],
];

/// Sends a WebSocket request as a page of this origin does.
export function upgrade(port, target, origin) {
  const headers = {
    Connection: "Upgrade",
    Upgrade: "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    Host: origin.split("//")[1],
    Origin: origin,
  };
  return get(port, target, { headers });
}

const expectAll = (what, text, parts) => {
  const missing = parts.filter((part) => !text.includes(part));
  if (missing.length > 0)
    throw new Error(`${what} does not contain ${missing.map((part) => `'${part}'`).join(", ")}: ${text}`);
};

export async function wrongHost({ folder, tls, bridge, log }) {
  for (const [name, line] of WRONG) {
    const edit = (text) => {
      if (!text.includes(line)) throw new Error(`${name}: the documented file does not contain '${line.trim()}'`);
      return text.replaceAll(line, "");
    };
    const proxy = await Proxy.start(name, { folder, tls, bridge: bridge.port, edit, label: `${name}-wrong-host` });
    try {
      await checkRefusal({ name, line, proxy, bridge, log });
    } finally {
      await proxy.stop();
    }
  }
}

async function checkRefusal({ name, line, proxy, bridge, log }) {
  for (const target of ["/ws", "/ws", "/api/websocket"]) {
    const { status, text } = await upgrade(proxy.port, target, proxy.http);
    if (status !== 403) throw new Error(`${name} without '${line.trim()}': expected 403, found ${status} ${text}`);
    expectAll(`the answer behind ${name}`, text, [proxy.http, `127.0.0.1:${bridge.port}`, "Host", "CORS_ORIGIN"]);
  }
  const lines = await waitFor(`the bridge logs the refused Origin ${proxy.http}`, 5000, () => {
    const found = bridge.process
      .logText()
      .split("\n")
      .filter((logged) => logged.includes(proxy.http));
    return found.length > 0 && found;
  });
  if (lines.length !== 1) throw new Error(`expected one log line a minute, found:\n${lines.join("\n")}`);
  expectAll("the log line", lines[0], ["INFO", `127.0.0.1:${bridge.port}`]);
  log(`${name} without '${line.trim()}': 403, ${lines[0].trim()}`);
}

/// A bridge that trusts the proxies: a client cannot choose the host with a header of its own.
export async function forgedHost({ folder, tls, binary, namespace, log }) {
  const bridge = new Bridge(folder, binary, namespace, "bridge-trusting", ["--trusted-proxies", "127.0.0.0/8"]);
  await bridge.start();
  for (const name of PROXIES) {
    const proxy = await Proxy.start(name, { folder, tls, bridge: bridge.port, label: `${name}-trusted` });
    const status = async (headers) => (await get(proxy.port, "/api/v1/stats", { headers })).status;
    const [own, forged] = [await status({}), await status({ Host: "evil.example", "X-Forwarded-Host": "localhost" })];
    if (own !== 200 || forged !== 403) throw new Error(`${name}: expected 200 and 403, found ${own} and ${forged}`);
    await proxy.stop();
  }
  await bridge.stop();
  log("no proxy passes the X-Forwarded-Host of a client on");
}
