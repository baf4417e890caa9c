// The application of app.py on Node: `node node.mjs http PORT` or `node node.mjs http2 PORT`.
//
// Its log is the same, by the clock of process.hrtime (CLOCK_MONOTONIC). A part of the body has
// been sent when the callback of its write says so, the response with the event `finish`.

import { openSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";

const log = openSync(process.env.SERVER_LOG, "a");
const now = () => Number(process.hrtime.bigint()) / 1e9;

const plain = {
  "/v1/completions": [200, '{"choices": [{"text": "all of it"}]}'],
  "/v1/embeddings": [200, `{"data": [${new Array(30_000).fill("0.25").join()}]}`],
  "/upload": [200, "{}"],
  "/v1/models": [200, '{"data": [{"id": "model"}]}'],
  "/health": [200, "{}"],
  "/none": [204, ""],
  "/fail": [500, '{"error": "failed"}'],
};

async function answer(request, response) {
  const line = { n: 0, status: 0, read_s: now(), first_s: null, end_s: null, chunks: 0, aborted: false };
  const url = new URL(request.url, "http://localhost");
  const number = (name) => Number(url.searchParams.get(name) ?? 0);
  line.n = number("n");
  const events = number("events");
  // HTTP/2 emits `finish` for a stream that the client has reset, too.
  const stream = response.stream;
  const isReset = () => Boolean(stream?.rstCode);
  const done = new Promise((resolve) => {
    response.on("finish", () => resolve(isReset()));
    response.on("close", () => resolve(isReset() || !response.writableFinished));
  }).then((aborted) => {
    line.aborted = aborted;
    line.end_s = now();
    writeSync(log, JSON.stringify(line) + "\n");
  });
  const sent = (count) => (error) => {
    if (error) return;
    line.chunks += count;
    line.first_s ??= now();
  };

  for await (const part of request) void part;
  const [status, text] = plain[url.pathname] ?? [404, "{}"];
  line.status = status;
  if (events > 0) {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
    response.flushHeaders?.();
    let part = "";
    for (let event = 0; event < events; event++) {
      part += `data: {"choices": [{"text": "token ${event}"}]}\n\n`;
      if (event % 8 === 3 && event + 1 < events) continue;
      const count = part.split("data:").length - 1;
      await sleep(number("pause"));
      if (response.destroyed || response.writableEnded || stream?.destroyed) return done;
      if (event % 8 === 6) {
        response.write(part.slice(0, 20));
        part = part.slice(20);
      }
      response.write(part, sent(count));
      part = "";
    }
    response.write("data: [DONE]\n\n");
    response.end();
  } else {
    if (number("pause")) await sleep(number("pause"));
    response.writeHead(status, text ? { "content-type": "application/json", "content-length": text.length } : {});
    if (text && request.method !== "HEAD") response.write(text, sent(0));
    response.end();
  }
  return done;
}

const [, , protocol, port] = process.argv;
const quietly = (request, response) => answer(request, response).catch(() => {});
const server = protocol === "http2" ? createHttp2Server(quietly) : createServer(quietly);
if (protocol !== "http2") server.keepAliveTimeout = 75_000;
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 2_048 });
