"""The APIs of two models, as far as an agent needs them to do one task: run a line of shell, and say so.

    model.py CERTIFICATE KEY REAL LOG

Prints its port. Whoever comes without the credential REAL is sent away. LOG gets a line for each request:
its method, path, and whether its credential was the real one.
"""

import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CERTIFICATE, KEY, REAL, LOG = sys.argv[1:]
LINE = "echo written by an agent > task.txt; env > seen.txt; cat ~/.claude.json ~/.codex/auth.json >> seen.txt"
lock = threading.Lock()


def of_anthropic(request):
    """The events of one answer of the Messages API."""
    tools = {tool.get("name") for tool in request.get("tools", [])}
    is_done = any(
        isinstance(part, dict) and part.get("type") == "tool_result"
        for message in request["messages"]
        for part in (message["content"] if isinstance(message["content"], list) else [])
    )
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": request["model"]}
    message |= {"content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": message | {"usage": {"input_tokens": 9, "output_tokens": 1}}}
    if "Bash" in tools and not is_done:
        block = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}
        written = json.dumps({"command": LINE, "description": "Does the task"})
        half = len(written) // 2
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in (written[:half], written[half:])]
        reason = "tool_use"
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": word} for word in ("The task ", "is done.")]
        reason = "end_turn"
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    ending = {"stop_reason": reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 9}}
    yield {"type": "message_stop"}


def of_openai(request):
    """The events of one answer of the Responses API."""
    tools = {tool.get("name") for tool in request.get("tools", [])}
    items = request["input"] if isinstance(request["input"], list) else []
    is_done = any(item.get("type") == "function_call_output" for item in items)
    calls = {
        "exec_command": {"cmd": LINE},
        "shell_command": {"command": LINE},
        "shell": {"command": ["sh", "-c", LINE]},
    }
    tool = next((name for name in calls if name in tools), None)
    yield {"type": "response.created", "response": {"id": "resp_1"}}
    if tool and not is_done:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": tool}
        item["arguments"] = json.dumps(calls[tool])
    else:
        said = {"type": "output_text", "text": "The task is done.", "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [said]}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    usage = {"input_tokens": 9, "output_tokens": 9, "total_tokens": 18}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    yield {"type": "response.completed", "response": {"id": "resp_1", "output": [item], "usage": usage}}


APIS = {"/v1/messages": of_anthropic, "/v1/responses": of_openai}


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        given = {self.headers.get("x-api-key"), self.headers.get("authorization", "").removeprefix("Bearer ")}
        is_real = REAL in given
        with lock, open(LOG, "a") as log:
            print(self.command, self.path, "real" if is_real else "ANOTHER", file=log)
        path = self.path.split("?")[0]
        if not is_real:
            self.send(401, {"error": {"type": "authentication_error", "message": "no such key"}})
        elif "upgrade" in self.headers:
            self.send(426, {"error": {"type": "invalid_request_error", "message": "not over a WebSocket"}})
        elif self.command != "POST" or path not in APIS:
            self.send(404, {"error": {"type": "not_found_error", "message": "no such thing"}})
        else:
            events = APIS[path](json.loads(body))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in events:
                self.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.chunk(b"")

    do_GET = do_POST = do_HEAD = answer

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
# The handshake is each connection's own affair.
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
