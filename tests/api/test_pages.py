"""The page's files and what goes with them; what it does in a browser is tests/browser's business."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.pages import CONTENT_TYPES, FOLDER, Pages
from handler.errors import ServiceFault

from ..support import http_event

if TYPE_CHECKING:
    from handler.api.results import Status
    from handler.aws.store import TaskStore

MOST_BYTES = 60_000
ROOT = Path(__file__).parents[2]


def get(status: Status, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    reply: dict[str, Any] = status.handle(http_event("GET", path, headers=headers), None)
    return reply["statusCode"], reply["body"], {name: values[0] for name, values in reply["multiValueHeaders"].items()}


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_each_file_is_served_once_and_then_confirmed(status: Status, file: Path) -> None:
    path = "/" if file.name == "index.html" else f"/page/{file.name}"
    code, body, headers = get(status, path)
    assert (code, body, headers["Content-Type"]) == (200, file.read_text(), CONTENT_TYPES[file.suffix])
    assert headers["Cache-Control"] == "no-cache"
    code, body, again = get(status, path, **{"If-None-Match": headers["ETag"]})
    assert (code, body, again["ETag"]) == (304, "", headers["ETag"])
    assert get(status, path, **{"If-None-Match": '"another"'})[0] == 200


@pytest.mark.parametrize("name", ["index.html", "nothing.js", "..%2fstatus.py", "../status.py", "", "a/b.js"])
def test_nothing_else_is_served(status: Status, name: str) -> None:
    assert get(status, f"/page/{name}")[0] == 404


def test_only_gets(status: Status) -> None:
    reply = status.handle(http_event("HEAD", "/"), None)
    assert (reply["statusCode"], reply["body"]) == (200, "")
    assert status.handle(http_event("PUT", "/"), None)["statusCode"] == 405


def test_a_stage_without_a_slash_in_both_formats(status: Status) -> None:
    assert status.handle(http_event("GET", "/", version="1.0"), None)["statusCode"] == 200
    event = http_event("GET", "/prod", version="2.0")
    event["requestContext"]["stage"] = "prod"
    assert status.handle(event, None)["statusCode"] == 200


def test_the_policy_lets_through_the_bucket_and_no_one_else(status: Status, store: TaskStore) -> None:
    policy = dict(part.split(" ", 1) for part in get(status, "/")[2]["Content-Security-Policy"].split("; "))
    origin = re.match(r"https?://[^/]+", store.presign_any())
    assert origin is not None
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == "'self'"
    assert policy["img-src"].split() == ["'self'", "data:", "blob:", origin[0]]
    assert policy["connect-src"].split() == ["'self'", origin[0]]
    assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])


def test_without_credentials_the_page_comes_all_the_same() -> None:
    def sign() -> str:
        raise ServiceFault("no credentials")

    reply = Pages(sign)._file("index.html", type("Call", (), {"headers": {}})())
    assert "img-src 'self' data: blob: https:;" in reply.headers["Content-Security-Policy"]


def test_the_page_is_light_and_asks_nobody_else() -> None:
    texts = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert sum(len(text.encode()) for text in texts.values()) <= MOST_BYTES
    for name, text in texts.items():
        elsewhere = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s'\"]*", text)) - {"http://www.w3.org/2000/svg"}
        assert elsewhere == set(), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), name


def test_a_wheel_carries_the_page(tmp_path: Path) -> None:
    script = "from setuptools import build_meta as b; import sys; b.build_wheel(sys.argv[1])"
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "handler"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"handler/api/page/{file.name}" for file in FOLDER.iterdir()} <= names
    assert "handler/README.md" not in names  # for those who read the repository


def test_every_field_of_the_card_becomes_one_of_the_form(status: Status) -> None:
    """What the form draws from: each parameter has a type it knows, and numbers their limits."""
    parameters = json.loads(status.handle(http_event("GET", "/models"), None)["body"])["models"][0]["parameters"]
    for one in parameters:
        assert one["type"] in {"string", "integer", "number"}
        if one["type"] != "string" and one["name"] != "seed":
            assert one["least"] is not None
            assert one["most"] is not None
