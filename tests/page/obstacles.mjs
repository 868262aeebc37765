// Every obstacle between the page and the stream has words of its own, and passes: errors of the bridge, pages of proxies,
// no WebSocket, no credential.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Failure, check, same, until } from "./browser.mjs";
import { isStream, scripted } from "./scripted_page.mjs";
import { Proxy } from "./servers.mjs";

/** Every obstacle has words of its own. */
export async function obstacles(context) {
  const cases = {
    "503 before the first sync": [
      ({ server }) =>
        (server.answer = (record, response) =>
          isStream(record) &&
          server.json(response, 503, { code: "NOT_READY", message: "wait" }, { "retry-after": "1" })),
      "reconnecting",
      /first sync/,
    ],
    "a rejection over SSE": [
      ({ server }) => {
        server.stripsUpgrade = true;
        server.onStream = (stream) => (
          stream.send({ type: "stream.closing", reason: "not ready", retryAfterMs: 1000 }),
          stream.end()
        );
      },
      "reconnecting",
      /first sync/,
    ],
    "a cluster that the bridge cannot read": [
      ({ server }) => {
        server.stripsUpgrade = true;
        const closing = { type: "stream.closing", reason: "not ready", detail: "pods: forbidden", retryAfterMs: 1000 };
        // A bridge waits before it answers. Meanwhile the last cause stays.
        let wait = 0;
        server.onStream = (stream) => {
          setTimeout(() => (stream.send(closing), stream.end()), wait);
          wait = 3000;
        };
      },
      "reconnecting",
      /cannot read the cluster yet \(pods: forbidden\).*Connecting again/s,
    ],
    403: [
      ({ server }) =>
        (server.answer = (record, response) =>
          isStream(record) && server.json(response, 403, { code: "FORBIDDEN", message: "origin 'x' is not allowed" })),
      "reconnecting",
      /refuses this access.*origin 'x' is not allowed/s,
    ],
    "an HTML page": [
      ({ server }) =>
        (server.answer = (record, response) => {
          if (!isStream(record)) return false;
          response.writeHead(200, { "content-type": "text/html" }).end("<html>Please sign in</html>");
          return true;
        }),
      "reconnecting",
      /another page instead of the stream/,
    ],
    "a redirect": [
      ({ server }) =>
        (server.answer = (record, response) => {
          if (!isStream(record)) return false;
          response.writeHead(302, { location: "https://login.example/" }).end();
          return true;
        }),
      "reconnecting",
      /proxy before the bridge redirects/,
    ],
    "502 of a proxy": [
      ({ server }) =>
        (server.answer = (record, response) => {
          if (!isStream(record)) return false;
          response.writeHead(502, { "content-type": "text/html" }).end("<html>Bad Gateway</html>");
          return true;
        }),
      "reconnecting",
      /HTTP 502/,
    ],
  };
  for (const [name, [prepare, state, words]] of Object.entries(cases)) {
    await scripted(
      context,
      (server) => prepare({ server }),
      async (p, server) => {
        await p.untilState(state);
        await until(`${name}: the banner`, async () => words.test(await p.banner())).catch(async () => {
          throw new Failure(`${name}: the banner says: ${await p.banner()}`);
        });
        check((await p.rows("instance")).length === 0, `${name}: no row`);
        // The obstacle passes.
        server.answer = () => false;
        server.stripsUpgrade = false;
        server.onStream = (stream) =>
          stream.send({ type: "state.initial", id: "c1", reason: "connect", ...server.state() });
        await p.page
          .getByRole("button", { name: "Try now" })
          .click({ timeout: 2000 })
          .catch(() => {});
        await p.untilState("live", 20_000);
      },
    );
  }
  context.log(`each of ${Object.keys(cases).length} obstacles has its words, and passes`);
}

/** A proxy that removes Upgrade: the page works over SSE, and says so. */
export async function noUpgrade(context) {
  await scripted(
    context,
    (server) => (server.stripsUpgrade = true),
    async (p) => {
      await p.untilState("live", 20_000);
      check(/server-sent events/.test(await p.banner()), `the banner says so: ${await p.banner()}`);
      same(await p.rows("instance"), ["one"], "the rows");
    },
  );
}

/** Signing in and out, with a key of a scripted bridge. */
export async function signIn(context) {
  let isSignedIn = false;
  const keys = [];
  const prepare = (server) => {
    server.answer = (record, response) => {
      const { method, path, headers } = record;
      if (path === "/api/v1/session") {
        keys.push(headers.authorization);
        if (method === "DELETE") {
          isSignedIn = false;
          response.writeHead(204).end();
          return true;
        }
        if (headers.authorization !== "Bearer right")
          return server.json(response, 401, { code: "UNAUTHORIZED", message: "invalid API key" });
        isSignedIn = true;
        return server.json(
          response,
          200,
          { expiresAt: "" },
          { "set-cookie": "boilerhouse_bridge=1; Path=/; HttpOnly; SameSite=Strict" },
        );
      }
      const isAllowed = headers.cookie?.includes("boilerhouse_bridge=1") && isSignedIn;
      if (!path.startsWith("/api/") || path === "/api/v1/health" || isAllowed) return false;
      return server.json(response, 401, { code: "UNAUTHORIZED", message: "missing Authorization header" });
    };
  };
  await scripted(context, prepare, async (p, server) => {
    await p.untilState("signed-out");
    await p.assertAccessible("sign-in");
    same(await p.page.evaluate(() => document.activeElement.id), "key", "the focus is in the form");
    await p.page.keyboard.type("wrong");
    await p.page.keyboard.press("Enter");
    await until("the refusal", async () => (await p.text(".error")).includes("does not accept this key"));
    same(await p.page.inputValue("#key"), "", "the key is gone from the form");
    await p.page.fill("#key", "right");
    await p.page.getByRole("button", { name: "Sign in" }).click();
    await p.untilState("live");
    same(await p.rows("instance"), ["one"], "the rows after the sign-in");
    const stored = await p.page.evaluate(() =>
      JSON.stringify([
        { ...localStorage },
        { ...sessionStorage },
        document.cookie,
        document.documentElement.outerHTML,
        location.href,
      ]),
    );
    check(!stored.includes('right"'), "the key is kept nowhere");
    check(
      server.requests.every(({ headers, path }) => path === "/api/v1/session" || !headers.authorization),
      "the key is in one request only",
    );
    await p.page.reload();
    await p.untilState("live");
    await p.page.getByRole("button", { name: "Sign out" }).click();
    await p.untilState("signed-out");
    same((await p.rows("instance")).length, 0, "rows after the sign-out");
    same(keys, ["Bearer wrong", "Bearer right", undefined], "the requests of the session");
  });
}

/** A proxy with TLS before a bridge without it, below a path: the page uses wss by itself. */
export async function tls({ chromium, bridge }) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "page-tls-"));
  const [keyFile, certFile] = ["key.pem", "certificate.pem"].map((name) => path.join(folder, name));
  const kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const name = ["-subj", "/CN=127.0.0.1", "-keyout", keyFile, "-out", certFile];
  execFileSync("openssl", ["req", ...kind, ...name], { stdio: "ignore" });
  const proxy = await new Proxy(bridge.port, "/deep/down/").start({
    key: readFileSync(keyFile),
    cert: readFileSync(certFile),
  });
  const p = await chromium.open(proxy.url, { ignoreHTTPSErrors: true });
  const sockets = [];
  p.page.on("websocket", (socket) => sockets.push(socket.url()));
  try {
    await p.page.reload();
    await p.untilState("live");
    await until("rows", async () => (await p.rows("instance")).length > 3);
    check(
      sockets.every((url) => url.startsWith(proxy.url.replace("https", "wss"))) && sockets.length > 0,
      `sockets: ${sockets}`,
    );
    await p.close();
  } finally {
    await p.context.close().catch(() => {});
    await proxy.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A key of one tenant gets no pools, and the page says why. */
export async function tenantKey(context) {
  const prepare = (server) => {
    server.answer = ({ path, headers }, response) =>
      path === "/api/v1/connections" &&
      !headers.cookie &&
      server.json(response, 401, { code: "UNAUTHORIZED", message: "no" });
  };
  await scripted(
    context,
    prepare,
    async (p) => {
      await p.untilState("live");
      await until("the words", async () => /sees one tenant/.test(await p.text(".empty")));
    },
    { hash: "#pools" },
  );
}
