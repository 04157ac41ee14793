"""The engine's interface. This module does not import torch; the modules of this package that implement it do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..contract.card import ModelCard
    from ..contract.health import Measured
    from ..contract.request import GenerationRequest


class Running(Protocol):
    """A task that the pipeline is working on. Its methods may be called from any thread at any time."""

    def snapshot(self) -> bytes:
        """A checkpoint of the steps done so far, never of fewer than the task was given.

        Empty if there is nothing to save, or if this pipeline's steps cannot be saved.
        """

    def saved_steps(self) -> int:
        """How many steps a snapshot taken now holds, 0 for an empty one. One taken later holds no fewer.

        Ask before taking the snapshot, and write none over a checkpoint that holds more.
        """

    def preview(self) -> bytes:
        """A JPEG thumbnail (at most 128 pixels a side) of the predicted picture; empty if there is none."""


class Observer(Protocol):
    """Callbacks of one task. Called in the task's thread, between its steps."""

    def begins(self, running: Running) -> None:
        """Called once, before the first step."""

    def at_step(self, step: int, steps: int) -> None:
        """Called once before each step: ``step`` of ``steps`` are done, of one or two denoiser calls each. An exception
        stops the task.
        """

    # An observer that has ``all_drawn(steps)`` is asked, too, once all steps are done or were taken from a checkpoint:
    # an exception stops the task before its decode.


@dataclass(frozen=True)
class Developed:
    """A task's pictures as the pipeline returned them, not yet encoded. ``text``, ``denoise`` and ``decode``: seconds.

    ``batch_size``: the most tasks that shared one of its forwards; ``resumed_steps``: steps taken from a checkpoint.
    """

    pictures: list[Any]
    text: float
    denoise: float
    decode: float
    batch_size: int
    resumed_steps: int = 0
    forward_share: float = 0.0
    """This task's share of the denoiser's forwards: a forward that four tasks shared counts a quarter."""
    unsafe: frozenset[int] = frozenset()
    """Which pictures the model's safety checker flagged; it has blackened them."""
    warnings: tuple[tuple[str, str], ...] = ()
    """What the caller should know: a field of the request, and a message."""
    prompt_tokens: int | None = None
    """The most tokens of a text that the model reads; None if no tokenizer cuts any."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory; ``width`` and ``height`` in pixels. One that is ``unsafe`` has no ``body``."""

    body: bytes = field(repr=False)
    content_type: str
    extension: str
    seed: int
    width: int
    height: int
    unsafe: bool = False


class Engine(Protocol):
    """A loaded pipeline. Thread-safe: every task calls ``develop`` in its own thread, which blocks until it is done.

    ``capacity``: the most tasks at a time; ``load_seconds``: how long loading took, warm-up included.
    """

    card: ModelCard
    load_seconds: float
    capacity: int
    measured: Measured | None
    """Speed measured while loading; None if the model's default steps or size are unknown."""

    def slot(self, timeout: float | None = None, *, alone: bool = False) -> AbstractContextManager[None]:
        """Blocks until one of the ``capacity`` slots is free and holds it. A task is claimed only inside a slot.

        ``alone``: waits until nothing else runs, and keeps others out. Entering it raises TimeoutError after
        ``timeout`` seconds.
        """

    def develop(
        self, request: GenerationRequest, observer: Observer, checkpoint: bytes = b"", image: bytes = b""
    ) -> Developed:
        """Runs the pipeline for a request whose defaults are filled in, continuing from ``checkpoint`` if given.

        ``image``: the bytes of the request's input image. A checkpoint made with another model, revision, request,
        input image or library version is ignored and logged.

        Raises InvalidRequest for an unusable input image, OutOfMemory, UnsafeContent if no picture is safe,
        WorkerBroken when the device is lost or the compute thread has ended, and whatever the observer or the pipeline
        raises. A TypeError or ValueError is the pipeline's check of its arguments; one from after its first denoiser
        call comes as Internal.
        """

    def checkpoint_name(self, request: GenerationRequest, image: bytes = b"") -> str:
        """16 hexadecimal digits that name what a checkpoint of this task is of, for its key; ``develop``'s arguments.

        Workers have the same name for it if they can resume each other's: same model, weights, libraries and dtype.
        """

    def encode(self, developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        """Encodes the pictures as files. Needs no slot, so the next task can start meanwhile."""

    def close(self) -> None:
        """Waits for running work, then ends the compute thread."""
