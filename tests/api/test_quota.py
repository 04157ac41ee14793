"""The daily budget: what it holds, whom, and that nothing gets past it or is counted twice."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.quota import KEPT_TASKS, Budget, Spent
from handler.api.submission import Submit
from handler.errors import Conflict, QuotaExceeded, ServiceFault
from handler.settings import Settings
from handler.work.serving import Generate

from ..support import Clock, PlainEngine, answer_of, http_event, record_of, sqs_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore

pytestmark = pytest.mark.contract
DAY = datetime(2026, 1, 2, tzinfo=UTC).date()


@pytest.fixture
def door(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> Callable[..., Submit]:
    return lambda **limits: Submit(replace(settings, **limits), store, queue, now=clock)


def asked(task_id: str, images: int = 1) -> str:
    return json.dumps({"prompt": "fox", "task_id": task_id, "num_images": images})


def spent(store: TaskStore) -> Spent:
    return Spent.of(store.read_spending(DAY))


def test_what_does_not_fit_is_refused_with_what_is_left(door: Callable[..., Submit], store: TaskStore) -> None:
    submit = door(daily_images=5)
    submit.submit(asked("a", 3))
    event = http_event("POST", "/generate", body=asked("b", 4))
    response = submit.handle(event, None)
    code, answer = answer_of(response)
    assert (code, answer["error"]["code"]) == (429, "QUOTA_EXCEEDED")
    left = "2 of 5 images are left today, and it asks for 4"
    assert left in answer["error"]["message"]
    assert "It renews at 2026-01-03T00:00:00+00:00" in answer["error"]["message"]
    assert answer["error"]["details"] == [{"field": "num_images", "message": left}]
    assert response["multiValueHeaders"]["Retry-After"] == ["75355"]  # from 03:04:05.678
    assert store.read("b") is None
    assert store.newest(10)[0] == [store.read("a")]
    submit.submit(asked("c", 2))
    assert spent(store).images == 5


def test_it_renews_at_midnight(door: Callable[..., Submit], clock: Clock) -> None:
    submit = door(daily_images=1)
    clock.time = datetime(2026, 1, 2, 23, 59, 59, 900000, UTC)
    submit.submit(asked("a"))
    with pytest.raises(QuotaExceeded) as refused:
        submit.submit(asked("b"))
    assert refused.value.retry_after == 1
    clock.forward(1)
    submit.submit(asked("b"))


def test_dollars_are_counted_as_an_image_is_said_to_cost(door: Callable[..., Submit], store: TaskStore) -> None:
    submit = door(daily_dollars=0.3, image_dollars=0.1)
    for number in range(3):  # 0.1 three times is more than 0.3 in floating point
        submit.submit(asked(f"t{number}"))
    with pytest.raises(QuotaExceeded, match=r"\$0\.00 of \$0\.30 are left today, and it counts as \$0\.1000"):
        submit.submit(asked("t3"))
    assert spent(store).dollars == 300_000


def test_each_tenant_has_its_own(door: Callable[..., Submit], store: TaskStore) -> None:
    submit = door(daily_images=1)
    for tenant in (None, "alice", "bob"):
        submit.for_tenant(tenant).submit(asked("a"))
        with pytest.raises(QuotaExceeded):
            submit.for_tenant(tenant).submit(asked("b"))
        assert spent(store.for_tenant(tenant)).images == 1


def test_the_same_task_again_is_not_counted_again(door: Callable[..., Submit], store: TaskStore) -> None:
    submit = door(daily_images=1)
    for _ in range(3):
        assert submit.submit(asked("a")).task_id == "a"
    with pytest.raises(Conflict):
        submit.submit(asked("a", 2))
    submit.cancel("a")
    submit.submit(asked("a"))
    assert spent(store).images == 1


def test_without_limits_nothing_is_counted(door: Callable[..., Submit], store: TaskStore) -> None:
    door().submit(asked("a"))
    assert store.read_spending(DAY) is None


def test_a_crash_before_the_record_is_not_counted_twice(
    door: Callable[..., Submit], store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = door(daily_images=2)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "create", crash)
        with pytest.raises(KeyboardInterrupt):
            submit.submit(asked("a"))
    assert (spent(store).images, store.read("a")) == (1, None)
    submit.submit(asked("b"))
    submit.submit(asked("a"))
    assert spent(store).images == 2


def test_two_requests_for_one_name_count_the_larger(store: TaskStore, clock: Clock) -> None:
    """Whichever of them gets the name: what is drawn was counted."""
    budget = Budget(Settings(daily_images=10), clock)
    for images in (2, 5, 3):
        budget.spend(store, "a", images)
    assert spent(store).images == 5


@pytest.mark.slow
def test_of_many_at_once_no_more_than_the_budget(settings: Settings, store: TaskStore, queue: TaskQueue) -> None:
    """Of doors in processes of their own, so that nothing but S3 stands between them; each task is tried twice."""
    limited = replace(settings, daily_images=10)
    clock = Clock()

    def submitted(number: int) -> str:
        door = Submit(limited, store.for_tenant(f"tenant-{number % 2}"), queue, now=clock)
        while True:
            try:
                return door.submit(asked(f"t{number // 4}")).task_id
            except QuotaExceeded:
                return "refused"
            except ServiceFault:
                continue  # as its caller would: somebody else was always faster

    with ThreadPoolExecutor(8) as pool:
        answers = Counter(pool.map(submitted, range(60)))
    # 15 tasks of each tenant, each twice, and 10 images.
    for tenant in ("tenant-0", "tenant-1"):
        own = store.for_tenant(tenant)
        counted = spent(own)
        recorded = [name for name in counted.tasks if own.read(name) is not None]
        assert counted.images == len(counted.tasks) == len(recorded) == 10
        assert len(own.newest(100)[0]) == 10
    assert answers["refused"] == 60 - 2 * 2 * 10


def test_the_counter_stays_small(store: TaskStore, clock: Clock) -> None:
    day = Spent()
    for number in range(KEPT_TASKS + 10):
        day = day.plus(f"t{number}", 1, 5)
    assert (day.images, day.dollars, len(day.tasks)) == (KEPT_TASKS + 10, 5 * (KEPT_TASKS + 10), KEPT_TASKS)
    assert "t9" not in day.tasks
    assert f"t{KEPT_TASKS + 9}" in day.tasks
    assert Spent.of(store.write_spending(DAY, day.to_json(), None)) == day


def test_who_never_gets_through_is_told_so(store: TaskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else is always faster: a passing fault, and nothing counted."""
    monkeypatch.setattr("handler.api.quota.GIVE_UP", 0.2)
    rivals = iter(range(10_000))
    real = type(store).read_spending

    def beaten(self: TaskStore, day: Any) -> Any:
        seen = real(self, day)
        self.write_spending(day, Spent().plus(f"rival-{next(rivals)}", 1, 0).to_json(), seen)
        return seen

    monkeypatch.setattr(type(store), "read_spending", beaten)
    with pytest.raises(ServiceFault, match="nothing was done"):
        Budget(Settings(daily_images=5), clock).spend(store, "a", 1)


def test_a_message_in_the_queue_passes_no_door(settings: Settings, store: TaskStore, queue: TaskQueue) -> None:
    limited = replace(settings, daily_images=1)
    generate = Generate(limited, store, queue, lambda _: PlainEngine())
    generate.handle(sqs_event(asked("a"), asked("b", 4)), None)
    assert record_of(store, "b").status == "completed"
    assert store.read_spending((datetime.now(UTC) + timedelta()).date()) is None
