// The pictures of the documents, in docs/images. Each is below 200 KB.
import { mkdirSync, statSync } from "node:fs";
import path from "node:path";
import { check, sleep } from "./browser.mjs";

const FOLDER = path.join(import.meta.dirname, "../../docs/images");
const MAX_BYTES = 200_000;

export async function screenshots({ chromium, url, log }) {
  mkdirSync(FOLDER, { recursive: true });
  const sizes = [];
  const shot = async (p, name) => {
    const file = path.join(FOLDER, `dashboard-${name}.png`);
    await p.page.screenshot({ path: file });
    const { size } = statSync(file);
    check(size < MAX_BYTES, `${name}.png has ${size} bytes`);
    sizes.push(`${name} ${Math.round(size / 1000)} KB`);
  };
  const light = await chromium.open(url, { viewport: { width: 1100, height: 560 } });
  await light.untilState("live");
  // The charts need some history.
  await sleep(25_000);
  for (const view of ["instances", "tenants", "pools", "events"]) {
    await light.page.goto(`${url}#${view}`);
    await sleep(700);
    await shot(light, view);
  }
  await light.page.goto(`${url}#instances`);
  await light.openDetail("[data-instance]");
  await sleep(500);
  await shot(light, "detail");
  await light.close();
  const dark = await chromium.open(url, { viewport: { width: 360, height: 640 }, colorScheme: "dark" });
  await dark.untilState("live");
  await sleep(700);
  await shot(dark, "phone");
  await dark.close();
  log(`screenshots: ${sizes.join(", ")}`);
}
