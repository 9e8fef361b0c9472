"""What clients talk to: small servers behind one port, and one for gRPC, which take the real credentials only.

    origin.py CERTIFICATE KEY GRPC-PORT-FILE REPOSITORIES LOG

Prints its port. LOG gets a line for each request that came with a real credential. Python's own library, and
grpcio.
"""

import base64
import gzip
import hashlib
import hmac
import json
import os
import ssl
import subprocess
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, urlsplit

import grpc

CERTIFICATE, KEY, GRPC_PORT, REPOSITORIES, LOG = sys.argv[1:]
REAL = {name: os.environ[name] for name in os.environ if name.startswith("REAL_")}
lock = threading.Lock()
objects = {}


def note(*words):
    with lock, open(LOG, "a") as log:
        print(*words, file=log)


def sigv4(handler, body):
    """Whether a request is signed with the real keys, as AWS's documents describe it."""
    algorithm, _, rest = handler.headers.get("authorization", "").partition(" ")
    fields = dict(field.strip().split("=", 1) for field in rest.split(",") if "=" in field)
    if algorithm != "AWS4-HMAC-SHA256":
        return False
    access, day, region, service, _ = fields["Credential"].split("/")
    url = urlsplit(handler.path)
    path = url.path if service == "s3" else quote(url.path, safe="/-_.~")
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(url.query, True))
    names = fields["SignedHeaders"].split(";")
    headers = "".join(f"{name}:{' '.join(handler.headers[name].split())}\n" for name in names)
    hashed = handler.headers.get("x-amz-content-sha256") or hashlib.sha256(body).hexdigest()
    if hashed != hashlib.sha256(body).hexdigest():
        return False
    query = "&".join(f"{key}={value}" for key, value in pairs)
    canonical = "\n".join([handler.command, path, query, headers, fields["SignedHeaders"], hashed])
    scope = f"{day}/{region}/{service}/aws4_request"
    date = handler.headers["x-amz-date"]
    text = "\n".join([algorithm, date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    identifier, secret = REAL["REAL_AWS"].split(":")
    key = ("AWS4" + secret).encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return access == identifier and hmac.compare_digest(signature, fields["Signature"])


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def body(self):
        if "chunked" in self.headers.get("transfer-encoding", ""):
            whole = b""
            while length := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def send(self, status, value, kind="application/json", headers=()):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def answer(self):
        host = self.headers["host"].split(":")[0]
        body = self.body()
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        if host == "docs.example":
            return self.send(200, {"path": self.path, "method": self.command})
        if host == "github.com":
            return self.lfs(body) if "/info/lfs/" in self.path else self.git(body)
        if host == "api.github.com":
            return self.github(body)
        if host == "store.example":
            return self.store(body)
        if host.endswith(".amazonaws.com"):
            is_real = sigv4(self, body)
        else:
            real = REAL["REAL_ANTHROPIC" if host == "api.anthropic.com" else "REAL_OPENAI"]
            is_real = real in (bearer, self.headers.get("x-api-key"))
        if not is_real:
            return self.send(401, {"error": {"message": "no such credential"}})
        note(host, self.command, self.path, self.headers.get("user-agent", "-").split()[0])
        if "upgrade" in self.headers:
            return self.websocket()
        if host.endswith(".amazonaws.com"):
            said = {"output": {"message": {"role": "assistant", "content": [{"text": "heard"}]}}}
            said |= {"stopReason": "end_turn", "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}}
            return self.send(200, said | {"metrics": {"latencyMs": 1}})
        asked = json.loads(body) if body else {}
        if host == "api.anthropic.com":
            return self.messages(asked)
        if self.path == "/v1/models":
            return self.send(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
        return self.chat(asked)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def stream(self, events):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in [*events, ""]:
            data = event.encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

    def chat(self, asked):
        common = {"id": "c", "created": 1, "model": "m"}
        if not asked.get("stream"):
            choice = {"index": 0, "finish_reason": "stop"}
            choice["message"] = {"role": "assistant", "content": "heard"}
            return self.send(200, common | {"object": "chat.completion", "choices": [choice]})
        words = [{"index": 0, "delta": {"content": word}} for word in ("he", "ard")]
        chunks = [common | {"object": "chat.completion.chunk", "choices": [word]} for word in words]
        self.stream([f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"])

    def messages(self, asked):
        message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
        message["usage"] = {"input_tokens": 1, "output_tokens": 1}
        if not asked.get("stream"):
            content = [{"type": "text", "text": "heard"}]
            return self.send(200, message | {"content": content, "stop_reason": "end_turn"})
        block = {"type": "text", "text": ""}
        events = [{"type": "message_start", "message": message | {"content": [], "stop_reason": None}}]
        events.append({"type": "content_block_start", "index": 0, "content_block": block})
        for word in ("he", "ard"):
            delta = {"type": "text_delta", "text": word}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        events.append({"type": "content_block_stop", "index": 0})
        ending = {"stop_reason": "end_turn", "stop_sequence": None}
        events.append({"type": "message_delta", "delta": ending, "usage": {"output_tokens": 2}})
        events.append({"type": "message_stop"})
        self.stream([f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events])

    def websocket(self):
        """Sends one frame back, and the end when the client has said it."""
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        for name, value in (("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        first, second = self.rfile.read(2)
        mask = self.rfile.read(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(second & 127)))
        self.wfile.write(bytes([first, len(data)]) + data)
        self.wfile.flush()
        if self.rfile.read(2):
            self.wfile.write(b"\x88\x02\x03\xe8")
        self.close_connection = True

    def github(self, body):
        """What gh asks for, of those parts of the API that it does."""
        if self.headers.get("authorization") != f"token {REAL['REAL_GITHUB']}":
            return self.send(401, {"message": "Bad credentials"})
        note("api.github.com", self.command, self.path, "gh")
        if self.path in ("/", "/user"):
            return self.send(200, {"login": "robot"}, headers=[("x-oauth-scopes", "repo, read:org")])
        if self.path != "/graphql":
            return self.send(404, {"message": "Not Found"})
        asked = json.loads(body)["query"]
        if "mutation" in asked:
            return self.send(200, {"data": {"createIssue": {"issue": {"number": 2}}}})
        if "UserCurrent" in asked:
            return self.send(200, {"data": {"viewer": {"login": "robot"}}})
        issues = {"nodes": [{"title": "a fault"}], "totalCount": 1}
        issues["pageInfo"] = {"hasNextPage": False, "endCursor": ""}
        self.send(200, {"data": {"repository": {"hasIssuesEnabled": True, "issues": issues}}})

    def is_git(self):
        login = base64.b64encode(f"x-access-token:{REAL['REAL_GITHUB']}".encode()).decode()
        return self.headers.get("authorization") == f"Basic {login}"

    def lfs(self, body):
        """Git LFS: of every two objects one is on this host and one on another."""
        if not self.is_git():
            return self.send(401, b"", "text/plain", [("lfs-authenticate", "Basic")])
        note("github.com", self.command, self.path, "git-lfs")
        if self.path.startswith("/acme/big.git/info/lfs/objects/") and self.command != "POST":
            return self.object(body)
        if not self.path.endswith("/objects/batch"):
            return self.send(404, {"message": "no locks here"}, "application/vnd.git-lfs+json")
        asked = json.loads(body)
        answers = []
        for at, one in enumerate(sorted(asked["objects"], key=lambda one: one["size"])):
            if asked["operation"] == "upload" and one["oid"] in objects:
                answers.append(one)
                continue
            action = {"href": f"https://github.com/acme/big.git/info/lfs/objects/{one['oid']}"}
            if at % 2:
                action = {"href": f"https://store.example/lfs/{one['oid']}?signed=yes"}
                action["header"] = {"X-Store": "of this object"}
            answers.append(one | {"actions": {asked["operation"]: action}})
        self.send(200, {"transfer": "basic", "objects": answers}, "application/vnd.git-lfs+json")

    def store(self, body):
        """Where objects are: who has the address may, and no credential of another host comes along."""
        fields = self.headers.keys()
        if self.headers.get("x-store") != "of this object" or "authorization" in map(str.lower, fields):
            note("store.example", "got a credential, or not its own field:", *self.headers.items())
            return self.send(400, {"message": "not like this"})
        note("store.example", self.command, self.path, "git-lfs")
        self.object(body)

    def object(self, body):
        name = urlsplit(self.path).path.rsplit("/", 1)[1]
        assert len(name) == 64 and name.isalnum(), name
        if self.command == "GET":
            return self.send(200, objects[name], "application/octet-stream")
        if hashlib.sha256(body).hexdigest() != name:
            return self.send(422, {"message": "not this object"})
        objects[name] = body
        self.send(200, b"", "text/plain")

    def git(self, body):
        if not self.is_git():
            return self.send(401, b"", "text/plain", [("www-authenticate", "Basic")])
        note("github.com", self.command, self.path, "git")
        url = urlsplit(self.path)
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        variables = os.environ | {
            "GIT_PROJECT_ROOT": REPOSITORIES,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "robot",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_GIT_PROTOCOL": self.headers.get("git-protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=variables, capture_output=True)
        head, _, data = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(fields.pop("Status", "200").split()[0])
        self.send(status, data, fields.pop("Content-Type", "text/plain"), fields.items())


class Echo(grpc.GenericRpcHandler):
    """Answers every method with what it was asked, to whoever has the credential."""

    def service(self, call):
        sent = dict(call.invocation_metadata)

        def heard(request, context):
            if sent.get("authorization") != f"Bearer {REAL['REAL_XAI']}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such credential")
            note("api.x.ai", "POST", call.method, "grpc")
            context.set_trailing_metadata([("heard", "all")])
            return b"heard " + request

        return grpc.unary_unary_rpc_method_handler(heard)


with open(CERTIFICATE, "rb") as certificate, open(KEY, "rb") as key:
    credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
caller = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Echo()])
port = caller.add_secure_port("127.0.0.1:0", credentials)
caller.start()
with open(GRPC_PORT, "w") as file:
    file.write(str(port))

server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
