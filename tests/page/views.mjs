// Every view against `demo`: what it shows, search, sort, filters, detail, the address, the width of a phone, the keyboard.
import { check, same, until } from "./browser.mjs";
import { instance, scripted } from "./scripted_page.mjs";

const sorted = (list) => [...list].sort();

async function get(bridge, path) {
  const response = await fetch(`${bridge.url}api/v1/${path}`);
  return response.json();
}

/** The pools by name, with the counts of the page: only Running instances are ready. */
async function pools(bridge) {
  const [all, instances] = await Promise.all([get(bridge, "pools"), get(bridge, "instances")]);
  const usable = (workload) =>
    instances.filter(
      ({ workloadRef, poolStatus, phase }) => workloadRef === workload && poolStatus === "ready" && phase === "Running",
    ).length;
  return all
    .map((pool) => ({ ...pool, ready: usable(pool.workloadRef) }))
    .sort((a, b) => (a.workloadRef < b.workloadRef ? -1 : 1));
}

/** Freezes nothing: the page and the GETs are compared until they agree. */
async function agree(what, page, expected) {
  await until(`${what}: the page agrees with the GETs`, async () => {
    const [found, wanted] = await Promise.all([page(), expected()]);
    return JSON.stringify(found) === JSON.stringify(wanted);
  });
}

export async function views(context) {
  const { chromium, bridge, url } = context;
  const p = await chromium.open(url);
  await p.untilState("live", 5000);
  check((await p.text(".connection")).includes("demo / boilerhouse"), "the connection is in the header");
  await until("the rate", async () => /Events\/s\s*[1-9]/.test(await p.text(".freshness")), 20_000);

  // Instances
  await agree(
    "instances",
    () => p.rows("instance"),
    async () => sorted((await get(bridge, "instances")).map(({ name }) => name)),
  );
  await p.page.getByLabel("Workload").selectOption("browser");
  await agree(
    "filter",
    () => p.rows("instance"),
    async () =>
      sorted(
        (await get(bridge, "instances")).filter(({ workloadRef }) => workloadRef === "browser").map(({ name }) => name),
      ),
  );
  check((await p.page.evaluate(() => location.hash)).includes("workload=browser"), "the filter is in the address");
  await p.page.reload();
  await p.untilState("live");
  same(await p.page.getByLabel("Workload").inputValue(), "browser", "the filter after a reload");
  await p.page.getByLabel("Search").fill("no such thing");
  await until("the empty list", async () => (await p.text(".empty")).includes("No instance matches"));
  await p.page.getByRole("button", { name: "Clear filters" }).click();
  await p.page.getByRole("button", { name: /^Instance/ }).click();
  await until("descending order", async () => {
    const names = await p.rows("instance");
    return names.length > 3 && JSON.stringify(names) === JSON.stringify(sorted(names).reverse());
  });
  same(await p.page.locator("th[aria-sort=descending]").count(), 1, "the sorted column");
  await p.page.getByLabel("Search").fill("boilerhouse.dev/pool-status=ready");
  await agree(
    "label search",
    async () => sorted(await p.rows("instance")),
    async () =>
      sorted(
        (await get(bridge, "instances")).filter(({ poolStatus }) => poolStatus === "ready").map(({ name }) => name),
      ),
  );
  await p.page.getByRole("button", { name: "Clear filters" }).click();

  // Detail
  const [target] = await get(bridge, "instances");
  await p.page.goto(`${url}#instances?show=${encodeURIComponent(`instance/${target.name}`)}`);
  const dialog = p.page.locator("dialog.detail");
  await until("the dialog", async () => (await dialog.innerText()).includes(target.uid));
  const text = await dialog.innerText();
  for (const [key, value] of Object.entries(target.labels)) {
    if (key !== "boilerhouse.dev/pool-status" && key !== "boilerhouse.dev/tenant")
      check(text.includes(key) && text.includes(value), `the label ${key} is shown`);
  }
  await until("the last activity", async () => !(await dialog.innerText()).includes("…"));
  await p.page.keyboard.press("Escape");
  await until("the end of the dialog", async () => (await dialog.count()) === 0);

  // Tenants
  await p.page.getByRole("link", { name: "Tenants" }).click();
  await agree(
    "tenants",
    () => p.rows("tenant"),
    async () => (await get(bridge, "tenants")).map(({ tenantId }) => tenantId),
  );
  await agree(
    "claims",
    () => p.rows("claim"),
    async () => (await get(bridge, "tenants")).flatMap(({ claims }) => claims.map(({ name }) => name)),
  );
  await p.openDetail("[data-tenant]");
  await until("the detail of a tenant", async () => (await dialog.innerText()).includes("Claims"));
  await p.page.goBack();
  await until("back closes the dialog", async () => (await dialog.count()) === 0);

  // Pools
  await p.page.getByRole("link", { name: "Pools" }).click();
  await agree(
    "pools",
    async () => sorted(await p.rows("pool")),
    async () => (await pools(bridge)).map(({ workloadRef }) => workloadRef),
  );
  await agree(
    "counts",
    async () =>
      sorted(
        await p.page
          .locator("[data-pool]")
          .evaluateAll((all) =>
            all.map((card) => [card.dataset.pool, ...[...card.querySelectorAll("dd")].map((one) => one.textContent)].join(" ")),
          ),
      ),
    async () => (await pools(bridge)).map(({ workloadRef, ready, warming, acquired }) => [workloadRef, ready, warming, acquired].join(" ")),
  );
  await until("the charts", async () => (await p.page.locator("svg.chart path[d^=M]").count()) === 9);
  await p.page.getByRole("button", { name: "Show its instances" }).first().click();
  check(
    (await p.page.evaluate(() => location.hash)).startsWith("#instances?workload="),
    "a pool leads to its instances",
  );

  // Events
  await p.page.getByRole("link", { name: "Events" }).click();
  await until("events", async () => (await p.page.locator("[data-type]").count()) > 5);
  await p.page.getByLabel("Instances", { exact: true }).uncheck();
  await p.page.getByLabel("Pools", { exact: true }).uncheck();
  await until("filtered types", async () => (await p.page.locator("[data-type=instance]").count()) === 0);
  await p.page.getByLabel("Search").fill("tenant.claimed");
  await until("filtered text", async () => {
    const types = await p.page.locator("[data-type] td.type").allInnerTexts();
    return types.length > 0 && types.every((type) => type === "tenant.claimed");
  });
  await p.page
    .getByRole("button", { name: "Clear filters" })
    .click({ timeout: 500 })
    .catch(() => p.page.getByLabel("Search").fill(""));
  await p.page.getByRole("button", { name: "Pause" }).click();
  const before = await p.page.locator("[data-type]").first().getAttribute("id");
  const paused = /^Paused at \d\d:\d\d:\d\d\. ([1-9]\d*) new since then/;
  await until("new events during the pause", async () => paused.test(await p.text(".summary")));
  same(await p.page.locator("[data-type]").first().getAttribute("id"), before, "the first row during the pause");
  const list = () => p.page.locator("[data-type]").evaluateAll((rows) => rows.map((row) => row.cells[2].innerText));
  const scroller = p.page.locator(".scroller");
  await scroller.evaluate((scroller) => (scroller.scrollTop = 60));
  const [frozen, [, waiting]] = [await list(), paused.exec(await p.text(".summary"))];
  await p.page.getByRole("link", { name: "Pools" }).click();
  await until("another view", async () => (await p.rows("pool")).length > 0);
  await p.page.goBack();
  await until("the pause after a change of the view", async () => Number(paused.exec(await p.text(".summary"))[1]) >= Number(waiting));
  same(await list(), frozen, "the rows of the pause after a change of the view");
  same(await scroller.evaluate(({ scrollTop }) => scrollTop), 60, "the place in the paused list");
  await scroller.evaluate((scroller) => (scroller.scrollTop = 0));
  await p.page.locator("[data-type]").first().click();
  const event = await until("the JSON of an event", async () => JSON.parse(await p.text("dialog pre")));
  const link = new URL(await p.page.evaluate(() => location.href));
  if (event.key) check(link.hash.includes(encodeURIComponent(event.key)), `the address has the key of the event: ${link.hash}`);
  await p.page.keyboard.press("Escape");
  await p.page.getByRole("button", { name: "Continue" }).click();
  await p.close();
  await problems(context);
}

const claim = (name, phase, instanceId) => ({
  name,
  uid: `uid-${name}`,
  tenantId: "alice",
  workloadRef: "web",
  phase,
  instanceId,
});

/** Failed instances, claims in Error, pools that are short, and acquired instances without a claim. */
async function problems(context) {
  const pooled = (name, workloadRef, poolStatus, phase = "Running") => instance(name, { workloadRef, poolStatus, phase });
  const prepare = (server) => {
    server.state = () => ({
      connectionId: "x",
      snapshotAt: new Date().toISOString(),
      instances: [
        pooled("db-0", "db", "ready"),
        pooled("full-0", "full", "ready"),
        pooled("full-1", "full", "ready"),
        pooled("web-0", "web", "ready", "Failed"),
        pooled("web-1", "web", "acquired"),
        pooled("web-2", "web", "acquired"),
      ],
      claims: [claim("held", "Active", "web-1"), claim("broken", "Error")],
      pools: [
        { workloadRef: "db", warming: 0, ready: 1, acquired: 0 },
        { workloadRef: "full", warming: 0, ready: 2, acquired: 0 },
        { workloadRef: "web", warming: 0, ready: 1, acquired: 2 },
      ],
    });
  };
  await scripted(context, prepare, async (p, server) => {
    await p.untilState("live");
    const numbers = await p.text(".numbers");
    check(numbers.includes("3 ready in 3 pools"), `only Running instances are ready: ${numbers}`);
    const bad = () => p.page.locator(".numbers .problem[data-tone=bad]").allInnerTexts();
    same(await bad(), ["1 Failed", "1 claim in Error", "web: empty"], "the problems in the header");
    await p.page.getByRole("link", { name: "1 Failed" }).click();
    await until("the Failed instance", async () => JSON.stringify(await p.rows("instance")) === '["web-0"]');
    same(
      await p.page.getByLabel("Phase").locator("option").allInnerTexts(),
      ["any", "Pending (0)", "Running (5)", "Succeeded (0)", "Failed (1)", "Unknown (0)"],
      "the phases of instances",
    );
    await p.page.getByRole("link", { name: "1 claim in Error" }).click();
    await until("the claim in Error", async () => JSON.stringify(await p.rows("claim")) === '["broken"]');
    same(
      await p.page.getByLabel("Phase of the claim").locator("option").allInnerTexts(),
      ["any", "Pending (0)", "Active (1)", "Releasing (0)", "Released (0)", "ReleaseFailed (0)", "Error (1)"],
      "the phases of claims",
    );
    check((await p.text(".summary")).includes("1 of 2 claims"), await p.text(".summary"));
    await p.page.getByRole("link", { name: "web: empty" }).click();
    await until("the pools", async () => (await p.rows("pool")).length === 3);
    same(await p.rows("pool"), ["web", "db", "full"], "the pool with the fewest ready instances is first");
    const web = await p.text("[data-pool=web]");
    for (const words of ["empty", "1 Failed", "1 not usable", "acquired (1 with an active claim)"])
      check(web.includes(words), `${words} is on the card: ${web}`);
    const tones = () => p.page.locator("[data-pool]").evaluateAll((all) => all.map(({ dataset }) => dataset.tone));
    same(await tones(), ["bad", "wait", null], "the tones of the cards");
    await until("the lowest number", async () => /lowest ready in \d+ s: 0/.test(await p.text("[data-pool=web]")), 20_000);
    await p.assertAccessible("pools that are short");
    for (const [name, words] of [["web-1", "held"], ["web-2", "none: released"], ["db-0", "none$"]]) {
      await p.page.goto(`${server.url}#instances?show=instance/${name}`);
      const row = p.page.locator("dialog .fields div").filter({ has: p.page.getByText("Claim", { exact: true }) });
      await until(`the claim of ${name}`, async () => new RegExp(`^Claim\\s+${words}`).test(await row.innerText()));
    }
    // An object without events, an event that has a key, and one that this page does not have.
    await until("no events", async () => /Nothing since \d\d:\d\d:\d\d, when this page was opened/.test(await p.text("dialog")));
    const failed = { ...instance("web-1", { workloadRef: "web", phase: "Failed", poolStatus: "acquired" }) };
    server.broadcast({ type: "instance.state", id: "c2", time: "", name: "web-1", phase: "Failed", key: "k.2.x", instance: failed });
    await p.page.goto(`${server.url}#events?show=event/k.2.x`);
    await until("the event by its key", async () => JSON.parse(await p.text("dialog pre")).key === "k.2.x");
    await p.page.goto(`${server.url}#events?show=event/k.3.x`);
    await until("an event of another page", async () => /This page does not have this event/.test(await p.text("dialog")));
    await p.page.keyboard.press("Escape");
    // A tab leads to the last filters of its view.
    await p.page.goto(`${server.url}#instances?phase=Failed`);
    await until("the filter", async () => (await p.rows("instance")).length === 2);
    await p.page.getByRole("link", { name: "Tenants" }).click();
    await p.page.getByRole("link", { name: "Instances" }).click();
    await until("the filter after another view", async () => (await p.rows("instance")).length === 2);
    same(await p.page.getByLabel("Phase").inputValue(), "Failed", "the filter after another view");
    // The neighbour of an active row that goes is active.
    await p.page.keyboard.press("ArrowDown");
    const active = () => p.page.locator("tr[aria-selected=true]").getAttribute("data-instance", { timeout: 1000 });
    await until("the active row", async () => (await active()) === "web-0");
    const gone = { ...instance("web-0", { workloadRef: "web" }), phase: "Deleted" };
    server.broadcast({ type: "instance.state", id: "c3", time: "", name: "web-0", phase: "Deleted", key: "k.4.x", instance: gone });
    await until("the neighbour", async () => (await active()) === "web-1");
  });
}

/** The page by keyboard alone. */
export async function keyboard({ chromium, bridge, url }) {
  const p = await chromium.open(url);
  const { keyboard } = p.page;
  const focused = () => p.page.evaluate(() => document.activeElement.id || document.activeElement.tagName);
  const hash = () => p.page.evaluate(() => location.hash);
  await p.untilState("live");
  await until("rows", async () => (await p.rows("instance")).length > 3);
  await keyboard.press("/");
  same(await focused(), "search", "the focus after /");
  await keyboard.type("browser");
  await until("the search", async () => (await p.rows("instance")).every((name) => name.startsWith("browser")));
  await keyboard.press("ArrowDown");
  same(await focused(), "TABLE", "the focus after the arrow");
  await keyboard.press("ArrowDown");
  await keyboard.press("Enter");
  await until("the detail", async () => (await p.text("dialog h2")).startsWith("browser"));
  check((await hash()).includes("show=instance"), "the detail is in the address");
  await keyboard.press("Tab");
  check(
    await p.page.evaluate(() => document.activeElement.closest("dialog") !== null),
    "the focus stays in the dialog",
  );
  await keyboard.press("Escape");
  await until("the end of the dialog", async () => (await p.page.locator("dialog").count()) === 0);
  same(await focused(), "TABLE", "the focus after the dialog");
  for (const [key, view] of [
    ["2", "#tenants"],
    ["3", "#pools"],
    ["4", "#events"],
    ["1", "#instances?q=browser"],
  ]) {
    await keyboard.press(key);
    same(await hash(), view, `the view of the key ${key}`);
    const title = { 1: "Instances", 2: "Tenants", 3: "Pools", 4: "Events" }[key];
    await until(`the focus on ${title}`, async () => (await p.page.evaluate(() => document.activeElement.innerText)) === title);
  }
  await keyboard.press("End");
  await keyboard.press("?");
  await until("the help", async () => (await p.text("dialog.help")).includes("Keys"));
  await keyboard.press("Escape");
  await until("the end of the help", async () => (await p.page.locator("dialog").count()) === 0);
  await keyboard.press("4");
  await keyboard.press("p");
  await until("the pause", async () => (await p.text(".summary")).includes("Paused"));
  await keyboard.press("p");
  // From the start, Tab reaches everything that can be used, and the focus can be seen.
  await keyboard.press("1");
  await p.page.evaluate(() => {
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
  });
  const reached = new Set();
  for (let step = 0; step < 25; step++) {
    await keyboard.press("Tab");
    const found = await p.page.evaluate(() => {
      const element = document.activeElement;
      const shown =
        element.closest(".scroller") && element.tagName === "TABLE" ? element.closest(".scroller") : element;
      const { outlineStyle, outlineWidth } = getComputedStyle(shown);
      return {
        name: element.innerText?.slice(0, 20) || element.id || element.tagName,
        tag: element.tagName,
        outline: `${outlineStyle} ${outlineWidth}`,
      };
    });
    if (found.tag === "BODY") break;
    check(/^(solid|auto) [1-9]/.test(found.outline), `the focus of ${found.name} is visible: ${found.outline}`);
    reached.add(found.tag === "TABLE" ? "TABLE" : found.name.trim());
  }
  for (const name of ["?", "Tenants", "Events", "search", "TABLE"])
    check(reached.has(name), `Tab reaches ${name}: ${[...reached].join(", ")}`);
  await p.close();
}

async function assertLargeButtons(p, where) {
  const small = await p.page.locator("button:visible").evaluateAll((all) =>
    all
      .map((button) => [button.innerText || button.ariaLabel, button.getBoundingClientRect()])
      .filter(([, { width, height }]) => width < 32 || height < 32)
      .map(([name, { width, height }]) => `${name}: ${width} x ${height}`),
  );
  same(small, [], `${where}: buttons that are too small`);
}

/** axe and the width of a phone, in both colours, in every view and dialog. */
export async function accessible({ chromium, url, log }) {
  let states = 0;
  for (const colorScheme of ["light", "dark"]) {
    for (const viewport of [
      { width: 1280, height: 800 },
      { width: 360, height: 720 },
    ]) {
      const p = await chromium.open(url, { colorScheme, viewport });
      await p.untilState("live");
      const assertGood = async (what) => {
        const where = `${what}, ${colorScheme}, ${viewport.width} px`;
        await p.assertAccessible(where);
        await p.assertFits(where);
        if (viewport.width === 360) await assertLargeButtons(p, where);
        states += 1;
      };
      for (const view of ["instances", "tenants", "pools", "events"]) {
        await p.page.goto(`${url}#${view}`);
        await until(view, async () => (await p.page.locator("main section").count()) === 1);
        if (view === "pools") await until("charts", async () => (await p.page.locator("svg.chart").count()) > 0);
        await assertGood(view);
        const filters = p.page.getByRole("button", { name: /^Filters/ });
        const isNarrow = viewport.width === 360 && view !== "pools";
        same(await filters.count(), isNarrow ? 1 : 0, `${view}: the button of the filters`);
        if (!isNarrow) continue;
        const fields = p.page.locator("main select:visible, main input[type=checkbox]:visible");
        same(await fields.count(), 0, `${view}: filters before the button is used`);
        await filters.click();
        check((await fields.count()) > 0, `${view}: the button shows the filters`);
        await assertGood(`${view} with filters`);
      }
      await p.page.goto(`${url}#instances`);
      await p.openDetail("[data-instance]");
      await assertGood("detail");
      await p.page.keyboard.press("Escape");
      await p.page.getByRole("button", { name: "Help" }).click();
      await assertGood("help");
      await p.close();
    }
  }
  log(`axe finds nothing in ${states} states (light and dark, 1280 and 360 px wide)`);
}
