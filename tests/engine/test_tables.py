"""What is not merged row by row is the same in all calls of a forward, to the bit, and is not copied to be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from handler.engine.merging import call_of, fit, split

from .callers import network, together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.engine.batcher import Batcher

NAN = float("nan")
HOST = frozenset({"cpu", "numpy", "tolist", "item", "to", "float", "double", "__array__", "__bool__", "__float__"})
"""Tensor methods by which a content could reach the host."""


def call_with(table: Any) -> Any:
    return call_of(object(), {"sample": torch.zeros(1, 2), "table": table})


def bits(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32).view(torch.float32)


THIRD = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
SQUARE = torch.arange(9.0).reshape(3, 3)
LONG = np.arange(5000)
TURNED = torch.tensor([1 + 2j, 1 - 9j, 1j])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(torch.tensor([16777216, 1, 2]), torch.tensor([16777217, 1, 2]), id="int64 beyond float32"),
        pytest.param(torch.tensor([1 + 2j, 1, 1j]), torch.tensor([1 - 9j, 1, 5j]), id="imaginary parts"),
        pytest.param(THIRD, THIRD + 1e-10, id="float64, the tenth digit"),
        pytest.param(torch.tensor([0.0, 1, 2]), torch.tensor([-0.0, 1, 2]), id="the sign of zero"),
        pytest.param(bits(0x7FC00000, 0, 1), bits(0x7FC00001, 0, 1), id="another NaN"),
        pytest.param(torch.tensor([True, True, False]), torch.tensor([True, False, False]), id="bool"),
        pytest.param(SQUARE, SQUARE.t(), id="the same memory, turned"),
        pytest.param(TURNED, TURNED.conj(), id="the same memory, conjugated"),
        pytest.param(torch.arange(4)[:3], torch.arange(4)[1:], id="another part"),
        pytest.param(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3], dtype=torch.int32), id="dtype"),
        pytest.param(torch.zeros(3), torch.zeros(3, 1), id="shape"),
        pytest.param(torch.tensor(1), torch.tensor(2), id="no dimension"),
        pytest.param(torch.zeros(3), torch.zeros(3).to_sparse(), id="sparse"),
        pytest.param(torch.zeros(3).to_sparse(), torch.zeros(3).to_sparse(), id="cannot be compared"),
        pytest.param(torch.zeros(3), None, id="none"),
        pytest.param(0.0, -0.0, id="numbers"),
        pytest.param(1, 1.0, id="kinds of numbers"),
        pytest.param(LONG, np.where(LONG == 2500, 0, LONG), id="numpy, where repr shows dots"),
        pytest.param({1}, {1}, id="a set"),
    ],
)
def test_other_content_does_not_fit(one: Any, other: Any) -> None:
    assert not fit(call_with(one), call_with(other))


@pytest.mark.parametrize(
    "table",
    [
        torch.tensor([16777217, 1, 2]),
        torch.tensor([NAN, -0.0, 1.0]),
        torch.tensor([1 + 2j, 1, 1j]),
        THIRD,
        SQUARE.t(),
        TURNED.conj(),
        torch.tensor(1),
        torch.zeros(0, 3),
        torch.tensor([True, False, True]),
        np.array([NAN, 1]),
        NAN,
        "text",
        None,
    ],
    ids=lambda table: f"{type(table).__name__} {getattr(table, 'dtype', '')}",
)
def test_the_same_content_fits(table: Any) -> None:
    assert fit(call_with(table), call_with(table))
    if isinstance(table, torch.Tensor):
        assert fit(call_with(table), call_with(table.clone()))
        assert fit(call_with(table.clone(memory_format=torch.contiguous_format)), call_with(table))


def test_what_cannot_be_hashed_is_its_callers_trouble_alone(batcher: Batcher) -> None:
    assert together(batcher, [1.0, 2.0, 3.0], [{1}, None]) == [2.0, 4.0, 6.0]


def test_a_table_changed_in_place_is_another(batcher: Batcher) -> None:
    """Under inference mode, too, where tensors have no version."""
    with torch.inference_mode():
        one, other = torch.zeros(3), torch.zeros(3)
        together(batcher, [1.0, 2.0], [one, other])
        one[1] = 7
        together(batcher, [1.0, 2.0], [one, other])
    assert network(batcher).rows == [2, 1, 1]


class Watched(torch.Tensor):
    """Notes what is done with it."""

    done: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.done.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


@pytest.fixture
def done() -> Iterator[list[str]]:
    Watched.done = []
    yield Watched.done
    del Watched.done


def watched() -> Any:
    return torch.arange(3).as_subclass(Watched)


def test_one_table_at_every_step_is_never_read(batcher: Batcher, done: list[str]) -> None:
    table = watched()
    for _ in range(3):
        together(batcher, [1.0, 2.0, 3.0], [table])
    assert network(batcher).rows == [3] * 3
    assert not HOST & set(done)
    assert "equal" not in done


def test_equal_tables_of_two_tasks_are_compared_where_they_are(batcher: Batcher, done: list[str]) -> None:
    for _ in range(2):
        together(batcher, [1.0, 2.0, 3.0], [watched(), watched(), watched()])
    assert network(batcher).rows == [3] * 2
    assert not HOST & set(done)
    assert done.count("equal") == 2 * 2


def test_other_tables_are_not_merged(batcher: Batcher) -> None:
    tables = [torch.tensor([16777216, 1, 2]), torch.tensor([16777217, 1, 2])]
    assert together(batcher, [1.0, 2.0, 3.0, 4.0], tables) == [2.0, 4.0, 6.0, 8.0]
    assert network(batcher).rows == [2, 2]


def test_what_may_hold_rows_out_of_sight_is_not_given_to_several_tasks() -> None:
    """Flux 2 Klein KV returns a cache beside its answer: of a forward of two tasks it would be both tasks'."""
    answer = torch.zeros(2, 3)
    assert [len(part[0]) for part in split((answer, None, "same"), [1, 1])] == [1, 1]
    with pytest.raises(TypeError, match="a object cannot be split"):
        split((answer, object()), [1, 1])


def test_a_cache_is_no_part_of_what_calls_have_in_common() -> None:
    """A key of it would keep it, and the memory that it holds, for as long as the key is known."""
    cache = object()
    one = call_with(cache)
    assert not fit(one, call_with(cache))
    assert cache not in [part for trait in one.key if isinstance(trait, tuple) for part in trait]
