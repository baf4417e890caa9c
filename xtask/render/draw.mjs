// node draw.mjs CHROMIUM PROMETHEUS DRAWING.json PICTURE.png: draws one dashboard, and says on stdout what came of each
// panel.
import { readFile, writeFile } from 'node:fs/promises';
import { chromium } from 'playwright-core';

const WIDTH = 1600;
const PATIENCE_MS = 120_000;

const [executablePath, prometheus, drawingFile, picture] = process.argv.slice(2);
const drawing = JSON.parse(await readFile(drawingFile, 'utf8'));
const panels = drawing.items.filter((item) => item.panel).length;
const browser = await chromium.launch({ executablePath });
try {
  const page = await browser.newPage({ viewport: { width: WIDTH, height: 1000 }, timezoneId: 'UTC' });
  page.setDefaultTimeout(PATIENCE_MS);
  page.on('pageerror', (error) => console.error(`page: ${error}`));
  // A page of Prometheus' own origin may ask its API.
  const address = `${prometheus}/drawn`;
  const body = '<!doctype html><meta charset="utf-8"><title>drawn</title><div id="page"></div>';
  await page.route(address, (route) => route.fulfill({ contentType: 'text/html', body }));
  await page.goto(address);
  await page.addStyleTag({ path: 'page.css' });
  await page.addScriptTag({ path: 'page.js' });
  await page.evaluate(([drawing, width]) => window.drawDashboard(drawing, width), [drawing, WIDTH]);
  const done = (panels) => {
    const drawn = Object.values(window.panels);
    return drawn.length === panels && drawn.every((panel) => panel.done);
  };
  await page.waitForFunction(done, panels);

  // Data are there; charts are when two pictures are the same.
  let before;
  let shot = await page.screenshot({ fullPage: true });
  const until = Date.now() + PATIENCE_MS;
  while (!before?.equals(shot)) {
    if (Date.now() > until) throw new Error('the page does not come to rest');
    await page.waitForTimeout(500);
    before = shot;
    shot = await page.screenshot({ fullPage: true });
  }
  await writeFile(picture, shot);

  const told = await page.evaluate(() => {
    const sections = document.querySelectorAll('[data-panel]');
    return [...sections].map((section) => ({
      ...window.panels[section.dataset.panel],
      alerts: [...section.querySelectorAll('[role=alert]')].map((alert) => alert.textContent),
    }));
  });
  console.log(JSON.stringify(told));
} finally {
  await browser.close();
}
