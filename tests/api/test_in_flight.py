"""A tenant has only so many tasks at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from handler.api.submission import Submit
from handler.errors import QuotaExceeded

from ..support import answer_of, http_event

if TYPE_CHECKING:
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings


@pytest.fixture
def submit(settings: Settings, store: TaskStore, queue: TaskQueue) -> Submit:
    return Submit(replace(settings, tenant_tasks=2, tenants="header"), store, queue)


def ask(submit: Submit, task_id: str, tenant: str = "alice") -> None:
    submit.for_tenant(tenant).submit(json.dumps({"prompt": "fox", "task_id": task_id}))


def test_the_third_waits_until_one_has_ended(submit: Submit) -> None:
    ask(submit, "a")
    ask(submit, "b")
    with pytest.raises(QuotaExceeded, match="2 tasks may be pending or running at a time, and as many are") as full:
        ask(submit, "c")
    assert full.value.retry_after == 5
    ask(submit, "a")  # the same again is no other
    ask(submit, "c", "bob")  # and another tenant has its own
    submit.for_tenant("alice").cancel("a")
    ask(submit, "c")


def test_those_that_have_ended_and_are_still_listed_do_not_count(submit: Submit, store: TaskStore) -> None:
    for name in ("a", "b"):
        ask(submit, name)
        submit.for_tenant("alice").cancel(name)
        store.for_tenant("alice").open(name)
        store.for_tenant("alice").open(name, again=True)
    assert list(store.for_tenant("alice").open_here()) == ["a", "b"]
    ask(submit, "c")


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "of which nobody knows"])
def test_no_number_of_ended_ones_hides_those_that_run(submit: Submit, store: TaskStore, marked: bool) -> None:
    """Places of what has ended, before all others in the list: a page of 1,000 of them, and some without a mark."""
    alice = store.for_tenant("alice")
    for number in range(1010 if marked else 70):
        alice.open(f"a{number:04}")
        if marked:
            alice.close(f"a{number:04}", left=True)
    ask(submit, "x")
    ask(submit, "y")
    with pytest.raises(QuotaExceeded):
        ask(submit, "z")
    assert list(islice(alice.open_here(), 2)) == (["x", "y"] if marked else ["a0000", "a0001"])


def test_it_is_answered_as_the_budget_is(submit: Submit) -> None:
    for number in range(3):
        event = http_event(
            "POST", "/generate", body=f'{{"prompt": "fox", "task_id": "t-{number}"}}', headers={"X-API-Key": "alice"}
        )
        answer = submit.handle(event, None)
    code, body = answer_of(answer)
    assert (code, body["error"]["code"]) == (429, "QUOTA_EXCEEDED")
    assert answer["multiValueHeaders"]["Retry-After"] == ["5"]
