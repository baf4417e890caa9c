// node report.mjs CHROMIUM REPORT.html FOLDER: draws a report as a screen in light and in dark shows it, and as paper does, and
// says on stdout what the page asked for. There is no network.
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';

const [executablePath, report, folder] = process.argv.slice(2);
// Each look, and whether all of the page is shown, or what fits a page of documentation.
const looks = [
  { name: 'report', colorScheme: 'light', media: 'screen', fullPage: false },
  { name: 'report-light', colorScheme: 'light', media: 'screen', fullPage: true },
  { name: 'report-dark', colorScheme: 'dark', media: 'screen', fullPage: true },
  { name: 'report-print', colorScheme: 'light', media: 'print', fullPage: true },
];
const browser = await chromium.launch({ executablePath });
const asked = [];
try {
  const context = await browser.newContext({ offline: true, viewport: { width: 1200, height: 1500 } });
  const page = await context.newPage();
  page.on('request', (request) => asked.push(request.url()));
  const own = pathToFileURL(report).href;
  await page.goto(own);
  for (const { name, fullPage, ...media } of looks) {
    await page.emulateMedia(media);
    await page.screenshot({ path: join(folder, `${name}.png`), fullPage });
  }
  console.log(JSON.stringify(asked.filter((url) => url !== own)));
} finally {
  await browser.close();
}
