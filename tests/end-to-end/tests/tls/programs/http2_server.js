// HTTP/2 inside TLS on Node, which has OpenSSL inside its own program: events, lines, answers,
// gRPC.
const fs = require("fs"), http2 = require("http2");
const [cert, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function message(text) {
  const bytes = Buffer.from(text), head = Buffer.alloc(5);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

async function events(stream, count) {
  stream.respond({ ":status": 200, "content-type": "text/event-stream" });
  for (let n = 0; n < count && !stream.destroyed; n += 1) {
    await wait(n === 0 ? 30 : 5);
    if (!stream.destroyed) stream.write(`data: {"token": ${n}}\n\n`);
  }
  if (!stream.destroyed) stream.end("data: [DONE]\n\n");
}

async function lines(stream, count) {
  stream.respond({ ":status": 200, "content-type": "application/x-ndjson" });
  for (let n = 0; n < count; n += 1) {
    await wait(5);
    stream.write(`{"response":"token ${n}","done":false}\n`);
  }
  stream.end('{"done":true,"prompt_eval_count":11,"eval_count":6}\n');
}

async function grpc(stream, count, status) {
  stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
  stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": String(status) }));
  for (let n = 0; n < count; n += 1) {
    await wait(5);
    stream.write(message(`token ${n}`));
  }
  stream.end();
}

const server = http2.createSecureServer({ cert, key });
server.on("stream", async (stream, headers) => {
  const path = headers[":path"];
  stream.on("error", () => {});
  stream.on("close", () => console.log(JSON.stringify({ path })));
  stream.resume();
  if (path === "/missing") {
    stream.respond({ ":status": 404 });
    stream.end("no");
  } else if (path === "/health") {
    stream.respond({ ":status": 204 }, { endStream: true });
  } else if (path === "/large") {
    stream.respond({ ":status": 200 });
    stream.end(Buffer.alloc(300000, "x"));
  } else if (path === "/v1/models") {
    stream.respond({ ":status": 200, "content-type": "application/json" });
    stream.end('{\n "data": [{"id": "m"},\n {"id": "n"}]\n}\n');
  } else if (path === "/api/generate") {
    await lines(stream, 6);
  } else if (path.endsWith("/ModelStreamInfer")) {
    await grpc(stream, 7, 0);
  } else if (path.endsWith("/ModelInfer")) {
    await grpc(stream, 0, 5);
  } else {
    await events(stream, Number(path.split("=")[1]));
  }
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
