"""What only an emulator with signatures can show: a form takes what it was signed for, and nothing else."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.uploads import Uploads
from handler.aws.s3 import PresignedPosts
from handler.clock import utc_now
from handler.contract.ids import MAX_UPLOAD, new_id

from ..forms import picture, send_form

if TYPE_CHECKING:
    from handler.aws.store import TaskStore
    from handler.settings import Settings

pytestmark = pytest.mark.emulators


@pytest.fixture
def form(settings: Settings, store: TaskStore) -> dict[str, Any]:
    return Uploads(settings, utc_now, new_id).presign(store, b"")


def sent(form: dict[str, Any], body: bytes, **changed: str) -> int:
    fields = {**form["fields"], **{name.replace("_", "-"): value for name, value in changed.items()}}
    return send_form(form["url"], fields, body)


def taken(store: TaskStore, form: dict[str, Any]) -> bool:
    return store.read_upload(form["upload_id"]) is not None


def test_what_it_was_signed_for_is_taken(form: dict[str, Any], store: TaskStore) -> None:
    body = picture()
    assert sent(form, body) == 204
    found = store.read_upload(form["upload_id"])
    assert found is not None
    assert found.body == body


def test_a_tenants_form_fills_the_tenants_own_place(settings: Settings, store: TaskStore) -> None:
    form = Uploads(settings, utc_now, new_id).presign(store.for_tenant("alice"), b"")
    assert sent(form, picture()) == 204
    assert taken(store.for_tenant("alice"), form)
    assert not taken(store, form)


@pytest.mark.parametrize("size", [0, MAX_UPLOAD + 1])
def test_a_size_out_of_its_range_is_refused(form: dict[str, Any], store: TaskStore, size: int) -> None:
    assert sent(form, bytes(size)) in {400, 403}
    assert not taken(store, form)


def test_the_largest_size_is_taken(form: dict[str, Any], store: TaskStore) -> None:
    assert sent(form, bytes(MAX_UPLOAD)) == 204
    assert taken(store, form)


@pytest.mark.parametrize(
    "changed",
    [
        {"Content_Type": "text/html"},
        {"Content_Type": "image/jpeg"},
        {"key": "uploads/another"},
        {"key": "tasks/a/status.json"},
        {"key": "tenants/alice/uploads/a"},
        {"x_amz_date": "20260101T000000Z"},
        {"x_amz_credential": "somebody/20260101/us-east-1/s3/aws4_request"},
        {"x_amz_signature": "0" * 64},
        {"acl": "public-read"},
        {"success_action_redirect": "https://example.com/"},
    ],
)
def test_a_field_that_was_touched_is_refused(form: dict[str, Any], store: TaskStore, changed: dict[str, str]) -> None:
    assert sent(form, picture(), **changed) in {400, 403}
    assert not taken(store, form)


@pytest.mark.parametrize("name", ["Content-Type", "x-amz-signature", "policy", "x-amz-credential"])
def test_without_a_field_it_is_refused(form: dict[str, Any], store: TaskStore, name: str) -> None:
    del form["fields"][name]
    assert sent(form, picture()) in {400, 403}
    assert not taken(store, form)


def test_a_policy_that_was_written_anew_is_refused(form: dict[str, Any], store: TaskStore) -> None:
    policy = json.loads(base64.b64decode(form["fields"]["policy"]))
    policy["conditions"].append({"acl": "public-read"})
    assert sent(form, picture(), policy=base64.b64encode(json.dumps(policy).encode()).decode()) == 403
    assert not taken(store, form)


def test_an_expired_form_is_refused(settings: Settings, store: TaskStore) -> None:
    url, fields = PresignedPosts(settings).sign(store.upload_key("brief"), "image/png", MAX_UPLOAD, 1)
    time.sleep(2.1)
    assert send_form(url, fields, picture()) == 403
    assert store.read_upload("brief") is None
