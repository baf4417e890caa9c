// HTTP/1.1 inside TLS on Node, which has OpenSSL inside its own program.
const fs = require("fs"), https = require("https");
const [cert, key] = process.argv.slice(2).map((file) => fs.readFileSync(file));
const large = Buffer.alloc(300000, "x");
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const server = https.createServer({ cert, key }, async (request, response) => {
  for await (const _ of request);
  if (request.method === "POST") {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.flushHeaders();
    await wait(30);
    for (let n = 0; n < 20 && !response.destroyed; n += 1) {
      response.write(`data: {"token": ${n % 10}, "text": "equal in length"}\n\n`);
      await wait(5);
    }
    if (response.destroyed) return;
    response.end();
  } else {
    const body = request.url === "/large" ? large : Buffer.from("small");
    response.writeHead(200, { "Content-Length": body.length });
    response.end(body);
  }
  console.log(JSON.stringify({ path: request.url }));
});
server.keepAliveTimeout = 60000;
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
