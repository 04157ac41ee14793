"""Faults that histories found, each as the shortest one that showed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .world import DAY, FOX, MAX_RECEIVES, World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def used() -> World:
    return World()


@pytest.fixture
def world(used: World) -> Iterator[World]:
    used.begin()
    yield used
    used.end()


def goes_on_to(world: World, call: str) -> None:
    """The process that began last goes on until it is about to make this call."""
    while call not in world.live[-1].at:
        world.goes_on(-1)


def test_whose_name_is_taken_is_told_by_the_dead_letters_too(world: World) -> None:
    """A worker writes the refusal of such a message down, under its MessageId; a dead letter's sender finds nothing."""
    world.sends("a", FOX)
    world.settle()
    world.sends("a", FOX | {"seed": 7})
    for _ in range(MAX_RECEIVES):
        world.loses(0)
        world.waits(1_000)
    message_id = world.accepted[-1][2]
    world.settle()
    record = world.record(message_id)
    assert record is not None
    assert (record.status, record.error and record.error.code) == ("failed", "CONFLICT")


def test_a_task_that_is_begun_again_while_the_doctor_looks_stays_listed(world: World) -> None:
    """Its first submission died before the record; the second one's door dies before the message."""
    world.submits("a", FOX)
    goes_on_to(world, "write tasks/a/status.json")
    world.dies(-1)
    world.waits(1_000)
    world.looks()
    goes_on_to(world, "delete open/")
    world.submits("a", FOX)
    goes_on_to(world, "SQS: send")
    world.dies(-1)
    world.goes_on(-1, 1_000)
    record = world.record("a")
    assert record is not None
    assert record.status == "pending"
    assert [one.task_id for one in world.store.open_tasks()] == ["a"]


def test_a_task_that_is_redriven_while_the_doctor_clears_up_keeps_its_picture(world: World) -> None:
    """It failed with two attempts a day ago, so that the doctor has to clear up after it."""
    world.submits("a", FOX)
    world.goes_on(-1, 100)
    for order in ("break", "refuse"):
        world.delivers(0, 0)
        goes_on_to(world, "step")
        world.goes_on(-1, 1, "none", order)
        world.goes_on(-1, 100)
        world.waits(60)
    world.waits(DAY)
    world.looks()
    goes_on_to(world, "list tasks/a/")
    world.redrives("a")
    world.goes_on(-1, 100)
    world.delivers(0, 0)
    goes_on_to(world, "write tasks/a/status.json")
    while ".png" not in world.live[-1].at:
        world.goes_on(-1)
    world.goes_on(-1)  # the picture is written; the record is about to be
    world.goes_on(0, 1_000)
    world.goes_on(-1, 100)
    record = world.record("a")
    assert record is not None
    assert record.status == "completed"
    assert [image.key in world.bucket.objects for image in record.images] == [True]


def test_a_task_that_is_redriven_while_its_worker_takes_it_off_the_list_stays_listed(world: World) -> None:
    """And whoever redrives it dies before it can send: seed 121238 of the histories."""
    world.submits("a", FOX)
    world.goes_on(-1, 100)
    world.delivers(0, 0)
    goes_on_to(world, "step")
    world.goes_on(-1, 1, "none", "refuse")
    goes_on_to(world, "delete open/")
    world.redrives("a")
    goes_on_to(world, "write tasks/a/status.json")
    world.goes_on(-1, 1)
    world.goes_on(0, 100)  # the worker's late hand
    world.dies(-1)
    record = world.record("a")
    assert record is not None
    assert record.status == "pending"
    assert [one.task_id for one in world.store.open_tasks()] == ["a"]


def test_the_doctor_deletes_nothing_of_a_task_that_begins_while_it_looks(world: World) -> None:
    """It has read that there is no record: seed 176999 of the histories."""
    world.submits("a", FOX)
    goes_on_to(world, "write tasks/a/status.json")
    world.dies(-1)
    world.waits(1_000)
    world.looks()
    goes_on_to(world, "list open/")
    world.goes_on(-1)
    world.submits("a", FOX)
    world.goes_on(-1, 100)
    world.delivers(0, 0)
    goes_on_to(world, "step")
    world.goes_on(-1, 100)
    world.goes_on(0, 100)
    record = world.record("a")
    assert record is not None
    assert record.status == "completed"
    assert [image.key in world.bucket.objects for image in record.images] == [True]


def test_a_clock_that_is_ahead_takes_no_task_from_its_holder(world: World) -> None:
    world.begin((0.0, 90.0, 0.0, 0.0))
    world.sends("a", FOX)
    world.delivers(0, 0, twice=True)
    goes_on_to(world, "step")
    world.delivers(1, 0)
    world.goes_on(-1, 5)
    assert world.ledger.wrong == []
