"""What the API says where there is nothing to do: paths, methods, sizes, types; and where it believes it is."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.routing import Api, Call, Reply, json_reply
from handler.contract.health import report
from handler.contract.paths import PATHS
from handler.contract.request import MAX_BODY
from handler.errors import Internal, QuotaExceeded, ServiceFault, SettingsError

from ..support import Clock, answer_of, http_event

if TYPE_CHECKING:
    from handler.api.results import Status
    from handler.api.submission import Submit
    from handler.aws.store import TaskStore
    from handler.settings import Settings

VERSIONS = ["1.0", "2.0"]


def headers_of(response: dict[str, Any]) -> dict[str, str]:
    """In either format, each header once."""
    many = response.get("multiValueHeaders", {})
    return {**response.get("headers", {}), **{name: value for name, (value,) in many.items()}}


def envelope(response: dict[str, Any]) -> tuple[int, str]:
    status, body = answer_of(response)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    return status, body["error"]["code"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/generate", "POST, OPTIONS"),
        ("GET", "/generate", "POST, OPTIONS"),
        ("PATCH", "/results/mine", "GET, HEAD, DELETE, OPTIONS"),
        ("PUT", "/health", "GET, HEAD, OPTIONS"),
        ("BREW", "/generate/mine/retry", "POST, OPTIONS"),
    ],
)
def test_a_method_that_the_path_does_not_take(status: Status, method: str, path: str, allow: str, version: str) -> None:
    response = status.handle(http_event(method, path, version=version), None)
    assert envelope(response) == (405, "INVALID_REQUEST")
    assert headers_of(response)["Allow"] == allow


@pytest.mark.parametrize(("method", "path"), [("POST", "/results/mine"), ("DELETE", "/generate"), ("POST", "/health")])
def test_the_other_handler_says_the_same(submit: Submit, method: str, path: str) -> None:
    response = submit.handle(http_event(method, path, body="{}"), None)
    assert envelope(response) == (405, "INVALID_REQUEST")
    assert "OPTIONS" in headers_of(response)["Allow"]


def test_every_path_has_its_handler(submit: Submit, status: Status) -> None:
    served = {*submit._api._routes, *status._api._routes}
    assert served == {f"{method} {path}" for path, methods in PATHS.items() for method in methods}


@pytest.mark.parametrize("path", ["/nothing", "/results/a/b", "/results//", "/generate/a/b", "//health", ""])
def test_nothing_there(status: Status, path: str) -> None:
    assert envelope(status.handle(http_event("GET", path), None)) == (404, "NOT_FOUND")
    assert envelope(status.handle(http_event("OPTIONS", path), None)) == (404, "NOT_FOUND")


@pytest.mark.parametrize("path", ["/health/", "/results/", "/"])
def test_a_slash_at_the_end_is_forgiven(status: Status, path: str) -> None:
    assert status.handle(http_event("GET", path), None)["statusCode"] == 200


@pytest.mark.parametrize("version", VERSIONS)
def test_options(status: Status, version: str) -> None:
    response = status.handle(http_event("OPTIONS", "/results/mine", version=version), None)
    assert (response["statusCode"], response["body"]) == (204, "")
    assert headers_of(response)["Allow"] == "GET, HEAD, DELETE, OPTIONS"


@pytest.mark.parametrize("version", VERSIONS)
def test_head_is_a_get_without_a_body(submit: Submit, status: Status, version: str) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    got = status.handle(http_event("GET", "/results/mine", version=version), None)
    told = status.handle(http_event("HEAD", "/results/mine", version=version), None)
    assert (told["statusCode"], told["body"]) == (200, "")
    assert headers_of(told) == {**headers_of(got), "Content-Length": str(len(got["body"].encode()))}
    assert status.handle(http_event("HEAD", "/results/nobody"), None)["statusCode"] == 404
    seen = {"If-None-Match": headers_of(got)["ETag"]}
    same = status.handle(http_event("HEAD", "/results/mine", version=version, headers=seen), None)
    assert (same["statusCode"], "Content-Length" in headers_of(same)) == (304, False)


@pytest.mark.parametrize("path", ["/health", "/", "/page/icon.svg", "/results/Füchse", "/docs"])
def test_the_length_of_a_head_is_that_of_a_get(status: Status, path: str) -> None:
    """In bytes, of errors too; 0 would say that there is nothing."""
    got, told = (status.handle(http_event(method, path), None) for method in ("GET", "HEAD"))
    assert got["statusCode"] == told["statusCode"]
    assert int(headers_of(told)["Content-Length"]) == len(got["body"].encode()) > 0
    assert "Content-Length" not in headers_of(got), "API Gateway's to tell"


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "image/png", "application/jsonx", "?"]
)
def test_a_body_that_is_not_json(submit: Submit, store: TaskStore, kind: str) -> None:
    event = http_event("POST", "/generate", body='{"prompt": "fox"}', headers={"Content-Type": kind})
    response = submit.handle(event, None)
    assert envelope(response) == (415, "INVALID_REQUEST")
    assert json.loads(response["body"])["error"]["details"][0]["field"] == "Content-Type"
    assert store.read("fresh-id") is None


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.a+json",
        "application/x-www-form-urlencoded",
    ],
)
def test_what_counts_as_json(submit: Submit, kind: str) -> None:
    """The last is curl's and urllib's word for a body of which nobody told them anything."""
    event = http_event("POST", "/generate", body='{"prompt": "fox"}', headers={"content-type": kind})
    assert submit.handle(event, None)["statusCode"] == 202


@pytest.mark.parametrize("encoded", [False, True])
def test_a_body_that_is_too_large(submit: Submit, encoded: bool) -> None:
    def event(size: int) -> dict[str, Any]:
        body = '{"prompt": "fox"}'.ljust(size)
        sent = base64.b64encode(body.encode()).decode() if encoded else body
        return {**http_event("POST", "/generate", body=sent), "isBase64Encoded": encoded}

    assert submit.handle(event(MAX_BODY), None)["statusCode"] == 202
    assert envelope(submit.handle(event(MAX_BODY + 1), None)) == (413, "INVALID_REQUEST")


def test_when_to_come_again(submit: Submit, status: Status, settings: Settings, store: TaskStore, clock: Clock) -> None:
    store.write_health(report(settings, clock(), card=None, reason="gone"))
    response = submit.handle(http_event("POST", "/generate", body='{"prompt": "fox"}'), None)
    assert envelope(response) == (503, "MODEL_UNAVAILABLE")
    assert headers_of(response)["Retry-After"] == "30"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("fault", "status", "code", "after"),
    [
        (QuotaExceeded("none left of 10 today", 3599.2), 429, "QUOTA_EXCEEDED", "3600"),
        (ServiceFault("S3 failed to read"), 503, "INTERNAL", "5"),
        (ZeroDivisionError("a secret"), 500, "INTERNAL", None),
        (SettingsError("BUCKET='secret': no bucket"), 500, "INTERNAL", None),
        (Internal("in /opt/secret/weights"), 500, "INTERNAL", None),
    ],
)
def test_faults_on_our_side(
    fault: Exception,
    status: int,
    code: str,
    after: str | None,
    version: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The caller gets a sentence of ours and an id; the log has the rest under that id."""
    fault.__cause__ = OSError("http://secret.host/bucket/key")

    def route(_: Call) -> Reply:
        raise fault

    response = Api({"GET /health": route})(http_event("GET", "/health", version=version), None)
    assert envelope(response) == (status, code)
    assert headers_of(response).get("Retry-After") == after
    assert headers_of(response)["Cache-Control"] == "no-store"
    assert "secret" not in response["body"]
    if status != 429:
        (record,) = caplog.records
        told = vars(record)
        assert f"under id {told['id']}" in response["body"]
        log = caplog.text + str(told.get("cause"))
        assert "http://secret.host/bucket/key" in log
        assert str(fault) in log


def test_what_is_no_base64_is_said_in_our_words(submit: Submit) -> None:
    event = http_event("POST", "/generate", body="{") | {"isBase64Encoded": True}
    code, answer = answer_of(submit.handle(event, None))
    assert (code, answer["error"]["details"]) == (422, [{"field": "body", "message": "is not base64"}])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("text", ["fox \U0001f98a", "Füchse", "half \ud83e", "\udd8a", "\ud83e or \udd8a", '\u2028"\\'])
def test_json_is_utf_8(text: str, version: str) -> None:
    """Not \\u escapes, twice the bytes; but for halves of a surrogate pair, which UTF-8 has no form of."""
    api = Api({"GET /health": lambda _: json_reply(200, {text: [text]})})
    response = api(http_event("GET", "/health", version=version), None)
    sent = response["body"].encode("utf-8")
    assert json.loads(sent) == {text: [text]}
    if not any("\ud800" <= one <= "\udfff" for one in text):
        assert json.dumps(text, ensure_ascii=False).encode() in sent
    assert all((name + value).isascii() for name, value in headers_of(response).items())


@pytest.mark.parametrize("escaped", ["\\ud800", "\\udd8a\\ud83e", "\\ud83e\\udd8a"])
def test_what_callers_send_comes_back_as_utf_8(submit: Submit, escaped: str) -> None:
    """Field names, prompts and paths of theirs are in our answers."""
    for body in (
        f'{{"prompt": "fox", "{escaped}": 1}}',
        f'{{"prompt": "{escaped}"}}',
        f'{{"prompt": 1, "{escaped}": 2}}',
    ):
        response = submit.handle(http_event("POST", "/generate", body=body), None)
        assert response["statusCode"] in {202, 422}
        json.loads(response["body"].encode("utf-8"))
    path = json.loads(f'"/results/{escaped}"')
    response = submit.handle(http_event("DELETE", path), None)
    assert response["statusCode"] == 404
    json.loads(response["body"].encode("utf-8"))
    assert all((name + value).isascii() for name, value in headers_of(response).items())


def rest(at: str, /, **about: Any) -> dict[str, Any]:
    event = http_event("POST", at)
    return {**event, "requestContext": {**event["requestContext"], **about}}


@pytest.mark.parametrize(
    ("event", "base"),
    [
        (
            rest("/generate", domainName="a1.execute-api.eu-central-1.amazonaws.com", stage="v1", path="/v1/generate"),
            "https://a1.execute-api.eu-central-1.amazonaws.com/v1",
        ),
        (rest("/generate", domainName="api.example.com", stage="v1", path="/generate"), "https://api.example.com"),
        (  # under a base path of a custom domain: both paths begin with it, what the resource matched does not
            rest("/art/generate", domainName="api.example.com", stage="v1", path="/art/generate")
            | {"resource": "/{proxy+}", "pathParameters": {"proxy": "generate"}},
            "https://api.example.com/art",
        ),
        (rest("/generate", domainName="api.example.com", stage="v1"), "https://api.example.com/v1"),
        (
            http_event("POST", "/generate", version="2.0")
            | {"requestContext": {"domainName": "f.lambda-url.aws", "stage": "$default", "http": {"method": "POST"}}},
            "https://f.lambda-url.aws",
        ),
        (
            http_event("POST", "/v1/generate", version="2.0")
            | {"requestContext": {"domainName": "h.aws", "stage": "v1", "http": {"method": "POST"}}},
            "https://h.aws/v1",
        ),
        (http_event("POST", "/generate", headers={"Host": "127.0.0.1:8000"}), "http://127.0.0.1:8000"),
        (http_event("POST", "/generate", headers={"Host": 'a"b'}), ""),
        (http_event("POST", "/generate"), ""),
    ],
)
def test_where_the_api_is(submit: Submit, event: dict[str, Any], base: str) -> None:
    response = submit.handle({**event, "body": '{"prompt": "fox"}'}, None)
    status, told = answer_of(response)
    assert status == 202
    assert told["status_url"] == told["cancel_url"] == f"{base}/results/fresh-id"
    assert told["result_url"] == f"{base}/results/fresh-id?wait=20"
    assert headers_of(response)["Location"] == told["status_url"]


@pytest.mark.parametrize(
    ("resource", "held", "sent", "path"),
    [
        ("/{proxy+}", "results/t1", "/results/t1", "/results/t1"),
        ("/{proxy+}", "results/t1", "/pictures/results/t1", "/results/t1"),
        ("/{proxy+}", "results/t1", "/pictures/results/t1/", "/results/t1/"),
        ("/page/{proxy+}", "form.js", "/pictures/page/form.js", "/page/form.js"),
        ("/", None, "/pictures", "/"),
        ("/", None, "/", "/"),
        ("/", None, "", ""),
        ("/{proxy+}", "results/a b", "/results/a%20b", "/results/a%20b"),  # told in two ways: the path stands
        ("/generate", None, "/generate", "/generate"),  # an API of somebody's own, with resources by name
    ],
)
def test_a_custom_domains_base_path_is_no_part_of_ours(resource: str, held: str | None, sent: str, path: str) -> None:
    event = http_event("GET", sent) | {"resource": resource, "pathParameters": held and {"proxy": held}, "path": sent}
    assert Call(event).path == path


def test_bytes_travel_as_base64() -> None:
    api = Api(
        {"GET /docs": lambda _: Reply(200, b"\xff\x00", "image/png"), "GET /health": lambda _: json_reply(200, {})}
    )
    response = api(http_event("GET", "/docs"), None)
    assert (response["isBase64Encoded"], base64.b64decode(response["body"])) == (True, b"\xff\x00")
    assert headers_of(response) == {"Content-Type": "image/png", "X-Content-Type-Options": "nosniff"}
