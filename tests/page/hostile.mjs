// Names, labels, details and event texts that hold HTML, scripts, URLs and more, in every place: nothing of them runs.
import { check, same, until } from "./browser.mjs";
import { PageBridge } from "./servers.mjs";

const RUN = "window.ran=(window.ran||0)+1";
const PAYLOADS = [
  `<script>${RUN}</script>`,
  `</script><script>${RUN}</script>`,
  `<img src=x onerror=${RUN}>`,
  `<img src=x onerror="${RUN}">`,
  `"><img src=x onerror=${RUN}>`,
  `'><img src=x onerror=${RUN}>`,
  `<svg onload=${RUN}>`,
  `<svg/onload=${RUN}>`,
  `<svg><script>${RUN}</script></svg>`,
  `<svg><animate onbegin=${RUN} attributeName=x dur=1s>`,
  `<body onload=${RUN}>`,
  `<iframe src="javascript:${RUN}"></iframe>`,
  `<iframe srcdoc="<script>parent.ran=1</script>"></iframe>`,
  `<a href="javascript:${RUN}">x</a>`,
  `javascript:${RUN}`,
  `JaVaScRiPt:${RUN}`,
  `java\tscript:${RUN}`,
  `\u0001javascript:${RUN}`,
  `data:text/html,<script>${RUN}</script>`,
  `data:text/javascript,${RUN}`,
  `vbscript:${RUN}`,
  `//evil.example/x.js`,
  `https://evil.example/<script>`,
  `" onmouseover="${RUN}`,
  `' onfocus='${RUN}' autofocus='`,
  `" autofocus onfocus=${RUN} x="`,
  `<input autofocus onfocus=${RUN}>`,
  `<details open ontoggle=${RUN}>`,
  `<video><source onerror=${RUN}></video>`,
  `<audio src=x onerror=${RUN}>`,
  `<object data="javascript:${RUN}">`,
  `<embed src="javascript:${RUN}">`,
  `<math><mtext><img src=x onerror=${RUN}></mtext></math>`,
  `<form action="javascript:${RUN}"><button>x</button></form>`,
  `<base href="https://evil.example/">`,
  `<meta http-equiv=refresh content="0;url=https://evil.example/">`,
  `<link rel=stylesheet href=https://evil.example/x.css>`,
  `<style>*{display:none}</style>`,
  `<style>@import 'https://evil.example/x.css';</style>`,
  `style="background:url(javascript:${RUN})"`,
  `expression(${RUN})`,
  `</title><script>${RUN}</script>`,
  `</textarea><script>${RUN}</script>`,
  `<!--<img src=x onerror=${RUN}>-->`,
  `<![CDATA[<img src=x onerror=${RUN}>]]>`,
  `&lt;script&gt;${RUN}&lt;/script&gt;`,
  `&#60;img src=x onerror=${RUN}&#62;`,
  `\${${RUN}}`,
  `{{constructor.constructor('${RUN}')()}}`,
  `\`-${RUN}-\``,
  `'-${RUN}-'`,
  `");${RUN}//`,
  `__proto__`,
  `constructor`,
  `toString`,
  `hasOwnProperty`,
  `../../etc/passwd`,
  `%3Cscript%3E${RUN}%3C/script%3E`,
  `?show=instance/x&q=<script>`,
  `#instances?show=tenant/<img>`,
  `\u202Egnp.exe`,
  `a\u0000b`,
  `\uD83D\uDE00\uFEFF`,
  `${"x".repeat(5000)}`,
  `line\nline\r\nline`,
  `<x onclick=${RUN}>x</x>`,
  `<marquee onstart=${RUN}>`,
  `<template><script>${RUN}</script></template>`,
  `<noscript><img src=x onerror=${RUN}></noscript>`,
  `<portal src="javascript:${RUN}">`,
];

const objects = (index, payload) => {
  const labels = { [payload]: payload, "boilerhouse.dev/managed": payload };
  return {
    instance: {
      name: payload,
      uid: `i${index}`,
      phase: payload,
      workloadRef: payload,
      tenantId: payload,
      poolStatus: payload,
      ip: payload,
      createdAt: payload,
      labels,
      later: { [payload]: payload },
    },
    claim: {
      name: payload,
      uid: `c${index}`,
      tenantId: payload,
      workloadRef: payload,
      phase: payload,
      instanceId: payload,
      endpoint: { host: payload, port: 80 },
      source: payload,
      claimedAt: payload,
      detail: payload,
      labels,
    },
    pool: { workloadRef: payload, warming: 1, ready: 2, acquired: 3 },
  };
};

export async function hostile({ chromium, bridge, log }) {
  const all = PAYLOADS.map((payload, index) => objects(index, payload));
  const server = new PageBridge(bridge.port);
  server.state = () => ({
    connectionId: "x",
    snapshotAt: new Date().toISOString(),
    reason: PAYLOADS[2],
    instances: all.map(({ instance }) => instance),
    claims: all.map(({ claim }) => claim),
    pools: all.map(({ pool }) => pool),
  });
  server.onStream = (stream) => stream.send({ type: "state.initial", id: "c1", ...server.state() });
  server.answer = ({ path }, response) => {
    if (path === "/api/v1/connections")
      return server.json(response, 200, [{ id: "x", name: PAYLOADS[2], namespace: PAYLOADS[4], state: PAYLOADS[0] }]);
    if (path === "/api/v1/instances") return server.json(response, 200, [{ lastActivity: PAYLOADS[2] }]);
    return false;
  };
  await server.start();
  const p = await chromium.open(server.url);
  const outside = [];
  p.page.on("request", (request) => !request.url().startsWith(server.url) && outside.push(request.url()));
  try {
    await p.untilState("live");
    const events = () =>
      PAYLOADS.forEach((payload, index) => {
        const { instance, claim } = objects(index, payload);
        const common = { time: payload, name: payload, key: `k${index}` };
        server.broadcast({
          type: "instance.state",
          ...common,
          phase: payload,
          previousPhase: payload,
          tenantId: payload,
          cause: payload,
          instance,
        });
        server.broadcast({
          type: "claim.state",
          ...common,
          key: `l${index}`,
          phase: payload,
          tenantId: payload,
          claim,
        });
        server.broadcast({
          type: "tenant.claimed",
          ...common,
          key: `m${index}`,
          tenantId: payload,
          workloadRef: payload,
          source: payload,
        });
        server.broadcast({ type: payload, ...common, resource: payload, reason: payload });
        server.broadcast(payload);
      });
    events();
    await until("the names are text", async () => (await p.rows("instance")).length > 15);
    let seen = 0;
    for (const [view, selector] of [
      ["instances", "[data-instance]"],
      ["tenants", "[data-tenant], [data-claim]"],
      ["events", "[data-type]"],
    ]) {
      await p.page.goto(`${server.url}#${view}`);
      await until(`rows of ${view}`, async () => (await p.page.locator(selector).count()) > 0);
      // The whole list goes through the document.
      const height = await p.page.evaluate(() => document.querySelector(".scroller").scrollHeight);
      for (let top = 0; top < height; top += 500) {
        await p.page.evaluate((top) => (document.querySelector(".scroller").scrollTop = top), top);
        await p.page.waitForTimeout(40);
      }
    }
    await p.page.goto(`${server.url}#pools`);
    await until("the charts", async () => (await p.page.locator("svg.chart path").count()) > 100);
    for (const payload of PAYLOADS) {
      for (const kind of ["instance", "claim", "tenant"]) {
        await p.page.evaluate(
          (hash) => (location.hash = hash),
          `#${kind === "tenant" ? "tenants" : "instances"}?${new URLSearchParams({ show: `${kind}/${payload}`, q: payload, phase: payload })}`,
        );
        if (payload.length > 300) continue;
        await until(
          `the dialog of ${kind} ${payload}`,
          async () => (await p.page.locator("dialog[open] h2").textContent()).trim() === payload.trim(),
          5000,
        );
        seen += 1;
      }
    }
    // What must not be there, whatever the policy of the page would have stopped.
    const found = await p.page.evaluate(() => ({
      ran: window.ran ?? 0,
      elements: [
        ...document.querySelectorAll(
          "body script, body style, body img, iframe, object, embed, base, body link, body meta, video, audio, math, marquee, template, portal",
        ),
      ].map((element) => element.outerHTML.slice(0, 80)),
      handlers: [...document.querySelectorAll("*")].flatMap((element) =>
        [...element.attributes].filter(({ name }) => name.startsWith("on")).map(({ name }) => name),
      ),
      // A hash may carry filters, percent-encoded. It never leaves the page.
      links: [...document.querySelectorAll("[href], [src], [action]")]
        .map((element) => element.getAttribute("href") ?? element.getAttribute("src") ?? element.getAttribute("action"))
        .filter((target) => !/^(#[a-z]+(\?[A-Za-z0-9%&=+*._-]*)?|assets\/[a-z]+\.(js|css|svg))$/.test(target)),
      polluted: ["ran", "uid", "name"].filter((key) => key in {}),
    }));
    same(found, { ran: 0, elements: [], handlers: [], links: [], polluted: [] }, "what the payloads have left");
    same(outside, [], "requests to other hosts");
    check(p.wrong.length === 0, `the console: ${p.wrong[0]}`);
    log(
      `${PAYLOADS.length} payloads in names, labels, phases, details, events and the address; ${seen} dialogs: nothing ran`,
    );
    await p.close();
  } finally {
    await p.context.close().catch(() => {});
    await server.stop();
  }
}
