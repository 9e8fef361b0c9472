"""Clients in a sandbox, each as its users use it. Prints a line for each: its name, and what came of it."""

import os
import subprocess
import sys
import traceback

BODY = [{"role": "user", "content": "say it"}]


def requests():
    import requests

    session = requests.Session()
    answer = session.get("https://docs.example/guide?a=1&b=2", timeout=30)
    assert answer.json() == {"path": "/guide?a=1&b=2", "method": "GET"}, answer.text
    return session.post("https://docs.example/guide", timeout=30).status_code


def openai():
    import openai

    client = openai.OpenAI(max_retries=0, timeout=30)
    assert [model.id for model in client.models.list()] == ["m"]
    whole = client.chat.completions.create(model="m", messages=BODY).choices[0].message.content
    pieces = client.chat.completions.create(model="m", messages=BODY, stream=True)
    return whole, "".join(piece.choices[0].delta.content for piece in pieces)


def anthropic():
    import anthropic

    client = anthropic.Anthropic(max_retries=0, timeout=30)
    asked = {"model": "m", "max_tokens": 9, "messages": BODY}
    whole = client.messages.create(**asked).content[0].text
    with client.messages.stream(**asked) as stream:
        return whole, "".join(stream.text_stream)


def boto3():
    import boto3

    client = boto3.client("bedrock-runtime", region_name="us-east-1")
    asked = [{"role": "user", "content": [{"text": "say it"}]}]
    return client.converse(modelId="a.model-v1:0", messages=asked)["output"]["message"]["content"][0]["text"]


def websocket():
    from websockets.sync.client import connect

    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    with connect("wss://api.openai.com/v1/realtime?model=m", additional_headers=headers) as socket:
        socket.send("over a socket")
        return socket.recv()


def grpcio():
    import grpc

    metadata = [("authorization", f"Bearer {os.environ['XAI_API_KEY']}")]
    # Its own roots are compiled in; the variable that it reads names those of the sandbox.
    with grpc.secure_channel("api.x.ai:443", grpc.ssl_channel_credentials()) as channel:
        call = channel.unary_unary("/xai_api.Chat/GetCompletion")
        said, ended = call.with_call(b"it", metadata=metadata, timeout=30)
        trailers = dict(ended.trailing_metadata())
        try:
            channel.unary_unary("/xai_api.Other/Any")(b"it", metadata=metadata, timeout=30)
            other = "allowed"
        except grpc.RpcError as error:
            other = error.code().name
    return said, trailers["heard"], other


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def git():
    status, said = run("git", "clone", "-q", "git@github.com:acme/web", "/tmp/web")
    assert status == 0, said
    at = ["git", "-C", "/tmp/web", "-c", "user.name=a", "-c", "user.email=a@example.com"]
    run(*at, "commit", "-q", "--allow-empty", "-m", "from a sandbox")
    status, said = run(*at, "push", "-q", "origin", "HEAD:refs/heads/agent/one")
    assert status == 0, said
    status, said = run(*at, "push", "-q", "origin", "HEAD:refs/heads/main")
    assert status != 0 and "403" in said, said
    return "cloned, pushed, refused"


def gh():
    assert os.environ["GH_TOKEN"].startswith("ghp_")
    os.environ |= {"GH_CONFIG_DIR": "/tmp/gh", "GH_PROMPT_DISABLED": "1"}
    status, login = run("gh", "api", "user", "--jq", ".login")
    assert status == 0, login
    status, issues = run("gh", "issue", "list", "-R", "acme/web", "--json", "title", "--jq", ".[].title")
    assert status == 0, issues
    mutation = "mutation { createIssue(input: {}) { issue { number } } }"
    status, number = run("gh", "api", "graphql", "-f", f"query={mutation}", "--jq", ".data.createIssue.issue.number")
    assert status == 0, number
    refused = []
    for words in (["-X", "DELETE", "repos/acme/web"], ["graphql", "-f", "query=mutation { createRepository { x } }"]):
        status, said = run("gh", "api", *words)
        assert status != 0 and "HTTP 403" in said, said
        refused.append("refused")
    status, said = run("gh", "auth", "status")
    assert status == 0 and "as robot" in said, said
    return ", ".join([login.strip(), issues.strip(), number.strip(), *refused])


def lfs():
    status, said = run("git", "clone", "-q", "git@github.com:acme/big", "/tmp/big")
    assert status == 0, said
    at = ["git", "-C", "/tmp/big", "-c", "user.name=a", "-c", "user.email=a@example.com"]
    contents = {f"{name}.bin": bytes([name]) * (300_000 + name) for name in range(4)}
    for name, data in contents.items():
        with open(f"/tmp/big/{name}", "wb") as file:
            file.write(data)
    for words in (["lfs", "install"], ["lfs", "track", "*.bin"], ["add", "-A"], ["commit", "-q", "-m", "large"]):
        status, said = run(*at, *words)
        assert status == 0, said
    status, said = run(*at, "push", "-q", "origin", "HEAD:refs/heads/main")
    assert status != 0 and "403" in said, said
    status, said = run(*at, "push", "-q", "origin", "HEAD:refs/heads/agent/one")
    assert status == 0, said
    status, said = run("git", "clone", "-q", "-b", "agent/one", "git@github.com:acme/big", "/tmp/again")
    assert status == 0, said
    for name, data in contents.items():
        with open(f"/tmp/again/{name}", "rb") as file:
            assert file.read() == data, name
    return "refused, uploaded, downloaded"


for name in sys.argv[1:]:
    try:
        print(name, globals()[name](), flush=True)
    except BaseException:
        print(name, "FAILED", traceback.format_exc().replace("\n", " | "), flush=True)
