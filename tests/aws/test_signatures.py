"""What only an emulator with signatures can show: MiniStack refuses URLs that are expired or were touched."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from handler.aws.store import TaskStore

if TYPE_CHECKING:
    from handler.settings import Settings

pytestmark = pytest.mark.emulators
KEY = "tasks/a/1/0.png"


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


@pytest.fixture
def url(store: TaskStore) -> str:
    store.put_image(KEY, b"png", "image/png")
    store.put_image("tasks/b/1/0.png", b"png", "image/png")
    return store.presign(KEY)


def test_a_url_as_signed_is_served(url: str) -> None:
    assert status_of(url) == 200


def test_another_key_is_refused(url: str) -> None:
    assert status_of(url.replace("tasks/a/", "tasks/b/")) == 403


def test_a_longer_life_is_refused(url: str) -> None:
    assert status_of(url.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200")) == 403


def test_a_forged_signature_is_refused(url: str) -> None:
    head, _, signature = url.rpartition("X-Amz-Signature=")
    forged = ("0" if signature[0] != "0" else "1") + signature[1:]
    assert status_of(f"{head}X-Amz-Signature={forged}") == 403


def test_without_its_signature_it_is_refused(url: str) -> None:
    assert status_of(url.partition("?")[0]) == 403


def test_an_expired_url_is_refused(settings: Settings, url: str) -> None:
    brief = TaskStore(replace(settings, url_lifetime=1)).presign(KEY)
    assert status_of(brief) == 200
    time.sleep(2.1)
    assert status_of(brief) == 403
