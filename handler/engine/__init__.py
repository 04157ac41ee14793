"""The engine as the handlers see it. Only the modules below this one import torch; this one does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..contract.card import ModelCard
    from ..contract.health import Measured
    from ..contract.request import GenerationRequest


class Running(Protocol):
    """A task that is being drawn; may be asked in any thread, at any time."""

    def snapshot(self) -> bytes:
        """Its checkpoint so far; empty for none."""

    def preview(self) -> bytes:
        """A JPEG of at most 128 pixels of what it is going to be; empty for none."""


class Observer(Protocol):
    """Whoever waits for a task's picture. Called in the task's thread, between its steps."""

    def begins(self, running: Running) -> None:
        """The task starts."""

    def at_step(self, step: int, steps: int) -> None:
        """``step`` denoiser calls of ``steps`` are done and the next is about to run; an exception stops the task."""


@dataclass(frozen=True)
class Developed:
    """A task's pictures, not yet encoded (``pictures`` are the pipeline's own); times in seconds."""

    pictures: list[Any]
    text: float
    denoise: float
    decode: float
    batch_size: int
    resumed_steps: int = 0
    forward_share: float = 0.0
    """This task's share of the denoiser's forwards: of one that four tasks shared, a quarter."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file; ``width`` and ``height`` in pixels."""

    body: bytes = field(repr=False)
    content_type: str
    extension: str
    seed: int
    width: int
    height: int


class Engine(Protocol):
    """A loaded pipeline. Safe to call from many threads: each task has one of its own and waits in ``develop``."""

    card: ModelCard
    load_seconds: float
    capacity: int
    measured: Measured | None
    """How fast it drew when it was loaded; None where its steps or size are not known."""

    def slot(self) -> AbstractContextManager[None]:
        """Waits for one of the ``capacity`` places; a task is claimed only with a place in hand."""

    def develop(
        self, request: GenerationRequest, observer: Observer, checkpoint: bytes = b"", image: bytes = b""
    ) -> Developed:
        """Draws the pictures of a request that the card has resolved, from where ``checkpoint`` left off.

        ``image`` is the file of the input image that the request names. A checkpoint of another model, revision,
        request, input image or library version is passed over, with a line in the log.

        Raises InvalidRequest where the input image will not do, OutOfMemory, UnsafeContent, whatever the observer
        raised, and whatever the pipeline did.
        """

    def encode(self, developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        """Encodes the pictures; needs no place, so that other tasks go on meanwhile."""

    def close(self) -> None:
        """Waits for what is running and lets the compute thread go."""
