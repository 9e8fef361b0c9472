"""What the document of the API cannot say to schemathesis: what there is on this host, and which
refusals depend on what was asked before."""

import os
import re
from urllib.parse import urlencode

import schemathesis

# A directory that may be mounted.
MOUNT = os.environ["SANDFORGE_TEST_MOUNT"]
# The thing has another version by now; the key was used for another request; the mock engine has
# no files.
STATE = {"precondition_failed", "idempotency_mismatch", "unsupported"}
# Said of the host, not of the request.
HOST = {"busy", "engine_unavailable"}
# Half of all 32 bytes are no point of the curve, which no pattern can say.
FIELDS = {"public_key"}
# Of requests about changes.
PATHS = {"path", "paths", "allow_protected"}
# A name that could be taken for an id is refused, and a pattern of ECMA-262 and of Rust both cannot
# say that.
ID = "must not look like a "
# What the tester takes for an ETag, and is none by the pattern in the document.
TAG = re.compile(r'"[0-9]{1,20}"|\*')


def settle(create):
    """Names the one engine that there is, which has neither images, processors nor disks, a directory
    that is there, and rules that are some; there are no credentials."""
    if not isinstance(create, dict):
        return
    create["engine"] = "mock"
    for field in ("image", "cpu", "disk_gb", "min_isolation"):
        create.pop(field, None)
    for field in ("profiles", "credentials", "gateways", "volumes", "caches"):
        create.pop(field, None)
    rules(create)
    if create.get("memory_mb"):
        create["memory_mb"] = min(create["memory_mb"], 1024)
    for mount in create.get("mounts") or []:
        given(mount)


def given(mount):
    """A directory that is there. What is of live ones alone is said of these; what no pattern says of
    paths, such as one with `..` in it, is not."""
    mount["host_path"] = MOUNT
    if mount.get("mode") != "live":
        mount.pop("quota_mb", None)
        mount.pop("allow_protected", None)
    elif mount.get("allow_protected"):
        mount["allow_protected"] = [".git"]


def rules(body):
    """Makes every line one. Without a network none is allowed."""
    for field in ("allow", "deny"):
        if body.get(field):
            body[field] = ["READ example.com/**"] * len(body[field])
    if body.get("allow") and body.get("network") == "offline":
        body["network"] = "allow"


@schemathesis.serializer("application/x-tar")
def tar(context, value):
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


@schemathesis.hook
def filter_query(context, query):
    # A longer line is refused before it is a request of the API's, and the connection ends.
    return not isinstance(query, dict) or len(urlencode(query, doseq=True)) < 12_000


@schemathesis.hook
def before_call(context, case, kwargs):
    body, label = case.body, case.operation.label
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if not is_valid or not isinstance(body, dict):
        return
    if label == "POST /v1/sandboxes":
        settle(body)
    elif label == "PATCH /v1/sandboxes/{sandbox}":
        rules(body)
    elif label == "POST /v1/sandboxes/{sandbox}/mounts":
        body["mode"] = "live"
        given(body)
    elif label.endswith("/fork"):
        # Each is a sandbox; a name gets a number, for which a long one has no room.
        body["count"] = min(body.get("count") or 1, 2)
        body.pop("name", None)
    elif label == "POST /v1/volumes":
        body["size_bytes"] = 64 << 20
    elif label.startswith("PUT ") and "/secrets/" in label:
        # A service has to be known, and a secret has exactly one source.
        case.path_parameters["service"] = "github"
        for field in ("command", "env", "custom", "parameters", "workspace"):
            body.pop(field, None)
        body["value"] = "a-value-of-the-tester"
    elif label == "POST /v1/policy/check":
        settle(body["request"].get("create"))
        if isinstance(body["request"].get("reach"), dict):
            body["request"]["reach"]["url"] = "https://example.com/"
            settle(body["request"]["reach"].get("create"))
        if "mount" in body["request"]:
            given(body["request"]["mount"])


@schemathesis.hook
def filter_failure(context, failure, case, response):
    # A line that is too long is refused before it is a request of the API's.
    if response.status_code in (414, 431):
        return False
    of_changes = "/changes" in case.operation.label
    try:
        problem = response.json()
        code, field = problem.get("code"), problem.get("field")
    except (ValueError, AttributeError):
        return True
    kind = type(failure).__name__
    # No pattern says what a path below a directory is not, such as one with `..` in it.
    if kind == "RejectedPositiveData" and of_changes and field in PATHS:
        return False
    # There is nothing to apply in a sandbox that has changed nothing.
    if of_changes and "has no changes" in problem.get("detail", ""):
        return False
    if kind == "RejectedPositiveData":
        tags = [case.headers.get(name) for name in ("If-Match", "If-None-Match")]
        odd = any(tag is not None and not TAG.fullmatch(tag) for tag in tags)
        return not (code in STATE or field in FIELDS or str(problem.get("detail")).startswith(ID) or odd)
    if kind == "ServerError":
        return code not in HOST
    # What was used of a sandbox that is gone, what ran in it, what it said and what it changed can be
    # asked for a while.
    if kind == "UseAfterFree":
        outlives = case.operation.label.endswith(("/processes", "/changes", "/logs"))
        return problem.get("state") != "destroyed" and not outlives
    return True
