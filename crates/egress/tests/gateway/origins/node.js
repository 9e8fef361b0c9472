// An origin that tells, in `x-seen`, what Node's parser saw. Prints its port.
const http = require("http");

let requests = 0;
let errors = 0;
const server = http.createServer((request, response) => {
  if (request.url === "/counts" && request.headers.host === "counts") {
    return response.end(JSON.stringify({ requests, errors }));
  }
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    requests += 1; // One that breaks off is none.
    const seen = [request.method, request.url, Buffer.concat(pieces).toString("hex")];
    response.setHeader("x-seen", JSON.stringify(seen));
    response.end("ok");
  });
});
server.on("clientError", (error, socket) => {
  // A connection that ends is no error of what was sent on it.
  if (error.code !== "ECONNRESET" && error.code !== "HPE_INVALID_EOF_STATE") errors += 1;
  socket.destroy();
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
