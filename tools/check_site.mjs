// Looks at pages in headless Chromium: screenshots, axe-core, and how fast a table loads and sorts.
// Started by tools/check_site.py with a JSON job on stdin; prints one JSON object.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import path from "node:path";

const job = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(path.join(job.modules, "x.js"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const found = { complaints: [], requests: [], axe: [], wide: [], shots: [], times: [], table: {} };

for (const { name, file } of job.pages) {
  for (const width of [1280, 390]) {
    for (const colorScheme of ["light", "dark"]) {
      const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme });
      const page = await context.newPage();
      page.on("console", (message) => found.complaints.push(`${name}: ${message.text()}`));
      page.on("pageerror", (error) => found.complaints.push(`${name}: ${error}`));
      page.on("request", (request) => {
        if (!request.url().startsWith("file:")) found.requests.push(request.url());
      });
      await page.goto(pathToFileURL(file).href);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      if (over > 0) found.wide.push(`${name} at ${width}: ${over} pixels too wide`);
      if (job.out) {
        // Rows far below are laid out when they come near, which a picture of all cannot wait for.
        await page.evaluate(() => document.querySelector(".records-box")?.style.setProperty("content-visibility", "visible"));
        const shot = path.join(job.out, `${name}-${width}-${colorScheme}.png`);
        const height = Math.min(await page.evaluate(() => document.documentElement.scrollHeight), 3200);
        await page.screenshot({ path: shot, fullPage: true, clip: { x: 0, y: 0, width, height } });
        found.shots.push(shot);
      }
      // Of a long page one look is enough: its rows are alike.
      if (file === job.table && found.looked) { await context.close(); continue; }
      found.looked ||= file === job.table;
      // Evaluated by the debugger, so the page's policy does not need to allow it.
      await page.evaluate(axe);
      const result = await page.evaluate(() => globalThis.axe.run(document, {
        rules: { "scrollable-region-focusable": { enabled: true } },
      }));
      for (const { id, impact, nodes } of result.violations) {
        found.axe.push({ page: name, width, colorScheme, id, impact, count: nodes.length, first: nodes[0].html.slice(0, 200) });
      }
      await context.close();
    }
  }
}

if (job.table) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  for (let round = 0; round < job.rounds; round += 1) {
    await page.goto(pathToFileURL(job.table).href);
    found.times.push(await page.evaluate(async () => {
      const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
      await drawn();
      const navigation = performance.getEntriesByType("navigation")[0];
      const times = { load: navigation.loadEventEnd - navigation.startTime, sort: [], filter: 0 };
      // In view, so that a sort pays for laying out what it moves.
      document.getElementById("records").scrollIntoView();
      await drawn();
      for (const button of document.querySelectorAll("#records thead button")) {
        const begun = performance.now();
        button.click();
        await drawn();
        times.sort.push(performance.now() - begun);
      }
      const find = document.getElementById("find");
      const begun = performance.now();
      find.value = "xsa ada";
      find.dispatchEvent(new Event("input"));
      await drawn();
      times.filter = performance.now() - begun;
      return times;
    }));
  }
  // By keyboard alone: skip link, then a heading that sorts both ways, then the filter.
  await page.goto(pathToFileURL(job.table).href);
  await page.keyboard.press("Tab");
  found.table.skip = await page.evaluate(() => document.activeElement.className);
  const dates = () => page.$$eval("#records tbody tr:not([hidden]) time", (all) => all.map((each) => each.dateTime));
  const sorted = () => page.$$eval("#records thead th", (all) => all.map((each) => [each.textContent, each.getAttribute("aria-sort")]).filter(([, way]) => way));
  await page.locator("#records thead button", { hasText: "date" }).focus();
  await page.keyboard.press("Enter");
  found.table.up = { dates: await dates(), sorted: await sorted() };
  await page.keyboard.press("Space");
  found.table.down = { dates: await dates(), sorted: await sorted() };
  await page.locator("#records thead button", { hasText: "gain" }).focus();
  await page.keyboard.press("Enter");
  found.table.gains = await page.$$eval("#records tbody tr", (all) => all.map((each) => each.cells[2].dataset.value));
  await page.locator("#find").focus();
  await page.keyboard.type("xsa");
  found.table.found = await page.$$eval("#records tbody tr:not([hidden])", (all) => all.map((each) => each.textContent));
  found.table.away = await page.locator("svg.wide .mark.away").count();
  found.table.shown = await page.locator("#shown").textContent();
  await page.locator("#find").fill("no such words");
  found.table.none = await page.locator("#shown").textContent();
  await context.close();
}
await browser.close();
console.log(JSON.stringify(found));
