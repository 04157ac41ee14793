"""What was proven of a model is kept, and proven again when anything that it depends on has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from handler.engine import kept, portable, warmup
from handler.engine.cards import card_of
from handler.engine.choosing import Choice
from handler.engine.compute import Compute
from handler.engine.proof import unproven
from handler.engine.running import PipelineEngine
from handler.errors import ModelUnavailable
from handler.settings import Settings

from ..families import unets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("one_core"), pytest.mark.filterwarnings("ignore")]  # diffusers' deprecations


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(kept, "FOLDER", "proofs")
    return Settings(dtype="float32", cache_dir=str(tmp_path), max_batch=4)


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each proof that was made."""
    made: list[str] = []

    def noted(engine: PipelineEngine, *args: Any) -> str:
        made.append(engine.card.id)
        return unproven(engine, *args)

    monkeypatch.setattr(warmup, "unproven", noted)
    return made


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., PipelineEngine]]:
    engines = []

    def begin(**other: Any) -> PipelineEngine:
        torch.manual_seed(0)
        pipe = unets.stable_diffusion()
        pipe.set_progress_bar_config(disable=True)
        engine = PipelineEngine(pipe, card_of(pipe, "a-model", None, "float32", {}), Compute())
        engines.append(engine)
        warmup.warm_up(engine, replace(settings, **other))
        return engine

    yield begin
    for engine in engines:
        engine.close()


def test_the_next_start_does_not_prove_it_again(start: Callable[..., PipelineEngine], proofs: list[str]) -> None:
    first, second = start(), start()
    assert proofs == ["a-model"]
    assert (second.capacity, second.batcher.merging, second.measured) == (4, True, first.measured)
    assert second.card == first.card


def test_what_is_drawn_alone_is_so_again(
    start: Callable[..., PipelineEngine], proofs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.engine.proof._together", lambda *_: 1.0)
    for _ in range(2):
        engine = start()
        assert (engine.capacity, engine.batcher.merging) == (1, False)
    assert len(proofs) == 1


def test_what_keeps_the_device_busy_alone_is_not_proven_together(
    start: Callable[..., PipelineEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless so many at a time are asked for: merging would win nothing, and its proof takes minutes there."""
    met: list[float] = []

    def together(*_: object) -> float:
        met.append(0.0)
        return 0.0

    monkeypatch.setattr("handler.engine.proof._together", together)
    monkeypatch.setattr(warmup, "SLOW_FORWARD", 0.0)
    assert start(max_batch=0, cache_dir=str(tmp_path / "of/its own")).batcher.merging, (
        "however busy the machine is just now"
    )
    met.clear()
    monkeypatch.setattr("handler.engine.choosing.LARGE", 0)
    for engine in (start(max_batch=0), start(max_batch=0)):
        assert (engine.capacity, engine.batcher.merging, met) == (1, False, [])
        assert engine.kept is not None
        assert engine.measured is not None
    assert (start(max_batch=2).capacity, met) == (2, [0.0])


def test_on_a_busy_machine_nothing_is_kept(
    start: Callable[..., PipelineEngine],
    proofs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else all later starts would quote, and batch, by what one bad moment told."""
    monkeypatch.setattr(warmup, "BUSY", 100.0)
    for _ in range(2):
        assert start().capacity == 4
    assert len(proofs) == 2
    assert "this machine is busy" in caplog.text


@pytest.mark.parametrize("what", ["meeting", "measuring"])
def test_what_could_not_be_told_is_not_kept(
    start: Callable[..., PipelineEngine], proofs: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fails(_: object) -> int:
        raise RuntimeError("no")

    if what == "meeting":
        monkeypatch.setattr("handler.engine.proof._together", lambda *_: float("inf"))
    else:
        monkeypatch.setattr(warmup, "measure", fails)
    for _ in range(2):
        assert start(max_batch=0).capacity == 1
    assert len(proofs) == 2


def named(settings: Settings, change: Callable[[Any], object] = lambda _: None, dtype: str = "float32") -> str:
    """Under which name a proof of the same model is kept, after a change."""
    torch.manual_seed(0)
    pipe = unets.stable_diffusion()
    pipe.to(getattr(torch, dtype))
    change(pipe)
    engine = PipelineEngine(pipe, card_of(pipe, "a-model", None, dtype, {}), Compute())
    try:
        return kept.name_of(engine, settings)
    finally:
        engine.close()


def changed(part: str) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        with torch.no_grad():
            next(getattr(pipe, part).parameters()).view(-1)[0] += 1

    return change


@pytest.mark.parametrize(
    "other",
    [
        {"change": changed("unet")},
        {"change": changed("vae")},
        {"change": changed("text_encoder")},
        {"change": lambda pipe: pipe.scheduler.register_to_config(beta_end=0.013)},
        {"dtype": "bfloat16"},
    ],
    ids=["unet", "vae", "text-encoder", "scheduler", "dtype"],
)
def test_it_is_proven_again_for_another(settings: Settings, other: dict[str, Any]) -> None:
    assert named(settings) == named(settings)
    assert named(settings, **other) != named(settings)


def test_it_is_proven_again_with_another_setting(settings: Settings) -> None:
    others = [replace(settings, max_batch=2), replace(settings, compile="1")]
    assert len({named(one) for one in (settings, *others)}) == 3


@pytest.mark.parametrize("what", ["LIBRARIES", "_code", "_device"])
def test_it_is_proven_again_with_other(settings: Settings, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    before = named(settings)
    monkeypatch.setattr(kept, what, ("numpy",) if what == "LIBRARIES" else lambda *_: "another")
    assert named(settings) != before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"alone": ""}', '{"alone": "", "capacity": "x", "measured": null}'])
def test_what_cannot_be_read_is_as_if_it_were_not_there(settings: Settings, tmp_path: Path, text: str) -> None:
    kept.keep("one", kept.Proof("", 4, None, Choice(channels_last=True)), settings)
    assert kept.read("one", settings) == kept.Proof("", 4, None, Choice(channels_last=True))
    (tmp_path / "proofs/one.json").write_text(text)
    assert kept.read("one", settings) is None
    assert kept.read("another", settings) is None


def test_where_the_model_lies_makes_no_difference(settings: Settings) -> None:
    """The build of an image has it in another folder than the image; from S3 it comes to one of each machine's own."""

    def moved(pipe: Any) -> None:
        for part in (pipe, pipe.unet, pipe.vae):
            part.register_to_config(_name_or_path="/elsewhere")

    assert named(settings, change=moved) == named(settings)


def test_what_is_written_for_others_they_begin_with(
    start: Callable[..., PipelineEngine],
    proofs: list[str],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the build of an image does it."""
    (written,) = kept.write(start(), tmp_path / "baked")
    monkeypatch.setattr(portable, "BAKED", tmp_path / "baked")
    other = start(cache_dir=str(tmp_path / "another machine"))
    assert len(proofs) == 1
    assert other.kept is not None
    assert written.stem == other.kept[0]
    assert kept.write(other, tmp_path / "again")[0].read_text() == written.read_text()


def test_what_could_not_be_told_is_not_written(
    start: Callable[..., PipelineEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("handler.engine.proof._together", lambda *_: float("inf"))
    with pytest.raises(ModelUnavailable, match="could not be proven"):
        kept.write(start(), tmp_path / "baked")


@pytest.mark.parametrize("place", ["model", "cache/0123456789abcdef"])
def test_proofs_beside_the_weights_are_read_as_well(settings: Settings, tmp_path: Path, place: str) -> None:
    """As S3 brings them."""
    proof = kept.Proof("", 4, None, Choice(graphs=True))
    kept.keep("one", proof, replace(settings, cache_dir=str(tmp_path / place)))
    other = replace(settings, cache_dir=str(tmp_path / "cache"), model_id=str(tmp_path / "model"))
    assert kept.read("one", other) == proof
    assert kept.read("two", other) is None


def test_where_nothing_can_be_written_it_starts_all_the_same(
    start: Callable[..., PipelineEngine], proofs: list[str], tmp_path: Path
) -> None:
    (tmp_path / "proofs").write_text("no folder")
    assert start().capacity == 4
    assert len(proofs) == 1
