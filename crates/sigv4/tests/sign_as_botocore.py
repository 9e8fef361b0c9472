"""Signs as botocore does, for botocore.rs: one request a line, fields between tabs.

kind, service, region, method, host, path, query, body (hex), then headers: name, value, name, value...
With the argument `endpoints` then, on lines that begin with `host`, what it signs for at each endpoint.
"""

import datetime
import hashlib
import io
import sys
from unittest import mock

try:
    import botocore
    import botocore.auth
    import botocore.awsrequest
    import botocore.session
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    from botocore.endpoint_provider import EndpointProvider
    from botocore.auth import get_current_datetime
except ImportError as error:
    sys.exit(f"botocore is not installed, or is another version than this is for: {error}")

NOW = datetime.datetime(2026, 11, 21, 12, 0, 0, tzinfo=datetime.timezone.utc)
KEYS = ("AKIAPLACEHOLDER23456", "placeholder/placeholder+placeholder/0123")

REQUESTS = [
    ("bedrock", "eu-central-1", "POST", "https://bedrock-runtime.eu-central-1.amazonaws.com/model/anthropic.claude%3A0/converse", b'{"a":1}', {"Content-Type": "application/json"}),
    ("bedrock", "us-east-1", "POST", "https://bedrock-runtime.us-east-1.amazonaws.com/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprofile%2Fx/invoke", b"{}", {}),
    ("dynamodb", "us-west-2", "POST", "https://dynamodb.us-west-2.amazonaws.com/", b"{}", {"X-Amz-Target": "DynamoDB_20120810.ListTables", "Content-Type": "application/x-amz-json-1.0"}),
    ("sts", "us-east-1", "POST", "https://sts.amazonaws.com/", b"Action=GetCallerIdentity&Version=2011-06-15", {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}),
    ("iam", "us-east-1", "GET", "https://iam.amazonaws.com/?Version=2010-05-08&Action=ListUsers&Marker=a%2Fb%20c&Empty=", b"", {}),
    ("lambda", "eu-west-1", "POST", "https://lambda.eu-west-1.amazonaws.com/2015-03-31/functions/f%3Aalias/invocations?Qualifier=%24LATEST", b"x", {"X-Amz-Log-Type": "  Tail   now "}),
    ("execute-api", "eu-west-1", "GET", "https://abc.execute-api.eu-west-1.amazonaws.com/prod//x/./y/../z/", b"", {}),
    ("s3", "eu-central-1", "GET", "https://bucket.s3.eu-central-1.amazonaws.com/", b"", {}),
    ("s3", "eu-central-1", "GET", "https://bucket.s3.eu-central-1.amazonaws.com/?list-type=2&prefix=a%2F%C3%BC&delimiter=%2F", b"", {}),
    ("s3", "eu-central-1", "GET", "https://bucket.s3.eu-central-1.amazonaws.com/?acl", b"", {}),
    ("s3", "eu-central-1", "PUT", "https://bucket.s3.eu-central-1.amazonaws.com/a//b/../%C3%BC%20%2B~key%3D1", b"body", {"X-Amz-Acl": "private", "Content-MD5": "hBotaJrYa9FhFEdFPCLG/A=="}),
    ("s3express", "us-east-1", "GET", "https://b--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com/key", b"", {}),
]


def line(*fields):
    for field in fields:
        assert "\t" not in field and "\n" not in field, field
    print("\t".join(fields))


def now(remove_tzinfo=False):
    return NOW.replace(tzinfo=None) if remove_tzinfo else NOW


def emit(kind, service, region, request):
    prepared = request.prepare()
    scheme, _, rest = prepared.url.partition("://")
    assert scheme == "https"
    host, slash, target = rest.partition("/")
    path, _, query = (slash + target).partition("?")
    headers = [part for name, value in prepared.headers.items() for part in (name, value.decode() if isinstance(value, bytes) else value)]
    body = prepared.body or b""
    line(kind, service, region, request.method, host, path, query, body.hex(), *headers)


def requests():
    for token in (None, "session/token+=="):
        credentials = Credentials(*KEYS, token)
        for service, region, method, url, body, headers in REQUESTS:
            s3 = service.startswith("s3")
            signer = botocore.auth.S3SigV4Auth if s3 else botocore.auth.SigV4Auth
            request = AWSRequest(method=method, url=url, data=body, headers=dict(headers))
            request.context["payload_signing_enabled"] = True
            signer(credentials, service, region).add_auth(request)
            emit("header", service, region, request)
            # With the body's hash in the headers, as others sign too, or without one.
            sha256 = {} if s3 else {"X-Amz-Content-SHA256": hashlib.sha256(body).hexdigest()}
            request = AWSRequest(method=method, url=url, data=body, headers={**headers, **sha256})
            request.context["payload_signing_enabled"] = not s3
            signer(credentials, service, region).add_auth(request)
            emit("header", service, region, request)
            signer = botocore.auth.S3SigV4QueryAuth if s3 else botocore.auth.SigV4QueryAuth
            # It takes no body into an address.
            request = AWSRequest(method=method, url=url, data=b"", headers=dict(headers))
            signer(credentials, service, region).add_auth(request)
            emit("query", service, region, request)


def uploads():
    """What the whole client sends of a stream: chunks, with a checksum after them."""
    session = botocore.session.Session()
    session.set_credentials(*KEYS)
    client = session.create_client("s3", region_name="eu-central-1")

    def send(request, **_):
        fields = [part for name, value in request.headers.items() for part in (name, value.decode() if isinstance(value, bytes) else value)]
        host, slash, target = request.url.removeprefix("https://").partition("/")
        path, _, query = (slash + target).partition("?")
        body = request.body.read() if hasattr(request.body, "read") else request.body or b""
        line("chunked", "s3", "eu-central-1", request.method, host, path, query, body.hex(), *fields)
        return botocore.awsrequest.AWSResponse(request.url, 200, {}, mock.Mock(stream=lambda: []))

    client.meta.events.register("before-send.s3", send)
    for key in ("key", "a b/\u00fc+~"):
        client.put_object(Bucket="bucket", Key=key, Body=io.BytesIO(b"x" * 100_000), ContentType="text/plain")


def endpoints():
    session = botocore.session.Session()
    loader = session.get_component("data_loader")
    partitions = loader.load_data("partitions")
    hosts = set()
    for name in session.get_available_services():
        metadata = loader.load_service_model(name, "service-2")["metadata"]
        rules = loader.load_service_model(name, "endpoint-rule-set-1")
        provider = EndpointProvider(rules, partitions)
        known = rules["parameters"]
        for region in ("us-east-1", "eu-central-1", "us-gov-west-1", "cn-north-1", "eusc-de-east-1"):
            for fips in (False, True):
                for dual in (False, True):
                    wanted = {"Region": region, "UseFIPS": fips, "UseDualStack": dual, "Bucket": "bucket", "AccountId": "123456789012", "RequiresAccountId": True}
                    if name != "s3control":
                        wanted.pop("AccountId"), wanted.pop("RequiresAccountId")
                    parameters = {key: value for key, value in wanted.items() if key in known}
                    try:
                        found = provider.resolve_endpoint(**parameters)
                    except Exception:
                        continue
                    for scheme in found.properties.get("authSchemes") or [{}]:
                        if scheme.get("name") == "sigv4a":
                            continue
                        service = scheme.get("signingName") or metadata.get("signingName") or metadata["endpointPrefix"]
                        hosts.add((found.url.removeprefix("https://").split("/")[0], service, scheme.get("signingRegion") or region))
    for host in sorted(hosts):
        line("host", *host)


line("version", botocore.__version__)
assert callable(get_current_datetime)
with mock.patch("botocore.auth.get_current_datetime", now):
    requests()
    uploads()
if sys.argv[1:] == ["endpoints"]:
    endpoints()
