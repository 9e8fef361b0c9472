"""An origin that tells, in `x-seen`, what Python's http.server saw, or h11 with that as an argument.
Prints its port."""

import http.server
import json
import socketserver
import sys
import threading

LOCK = threading.Lock()
COUNTS = {"requests": 0, "errors": 0}


def count(what):
    with LOCK:
        COUNTS[what] += 1


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            raise EOFError
        return body

    def serve(self):
        if self.headers.get("host") == "counts":
            return self.answer("x-counts", json.dumps(COUNTS))
        # One that breaks off is none.
        body = self.body()
        count("requests")
        self.answer("x-seen", json.dumps([self.command, self.requestline.split(" ")[1], body.hex()]))

    def answer(self, name, value):
        self.send_response(200)
        self.send_header(name, value)
        text = value.encode()
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def send_error(self, *_):
        count("errors")
        self.close_connection = True

    def log_message(self, *_):
        pass

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = serve


class H11(socketserver.StreamRequestHandler):
    def handle(self):
        import h11

        connection = h11.Connection(h11.SERVER)
        request, body = None, b""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return count("errors")
            if event is h11.NEED_DATA:
                if not (data := self.connection.recv(65536)):
                    return
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                if (b"host", b"counts") in request.headers.raw_items() or dict(request.headers).get(b"host") == b"counts":
                    text = json.dumps(COUNTS).encode()
                    headers = [("content-length", str(len(text)))]
                else:
                    count("requests")
                    seen = [request.method.decode(), request.target.decode(), body.hex()]
                    text = b"ok"
                    headers = [("x-seen", json.dumps(seen)), ("content-length", "2")]
                out = connection.send(h11.Response(status_code=200, headers=headers))
                if request.method != b"HEAD":
                    out += connection.send(h11.Data(data=text))
                out += connection.send(h11.EndOfMessage())
                self.connection.sendall(out)
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
            else:
                return


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_):
        pass


with Server(("127.0.0.1", 0), H11 if sys.argv[1:] == ["h11"] else Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
