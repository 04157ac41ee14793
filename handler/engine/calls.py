"""The denoiser calls of one task: counted, announced to the observer, answered from a checkpoint where it has them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from . import Observer
    from .batcher import Batcher
    from .preview import LatentPreviewer


class SavedOutputs:
    """A task's denoiser outputs from a checkpoint, read on first use. ``made_by``: the identity that it must match."""

    def __init__(self, made_by: dict[str, str], checkpoint: bytes = b"") -> None:
        self.made_by, self.checkpoint = made_by, checkpoint
        self.stored: list[torch.Tensor] = []

    def read(self, device: torch.device) -> None:
        """Fills ``stored``; leaves it empty for a checkpoint that does not match."""
        from .checkpoint import unpack

        if self.checkpoint:
            self.stored = unpack(self.checkpoint, self.made_by, device)
            self.checkpoint = b""


class TaskCalls:
    """What a task's seam calls. An output comes from the checkpoint if that has it, else from a forward.

    ``together``: the most tasks that shared one forward; ``share``: the sum of this task's shares; ``first``, ``last``:
    time.perf_counter at its first and after its last call.
    """

    def __init__(self, batcher: Batcher, pipe: Any, observer: Observer, saved: SavedOutputs) -> None:
        self._batcher, self._pipe, self._observer, self.saved = batcher, pipe, observer, saved
        self._others: list[Batcher] = []
        self._outputs: list[torch.Tensor] = []
        self._exact = True
        self._seen: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.previewer: LatentPreviewer | None = None
        self.together = 1
        self.share = 0.0
        self.first: float | None = None
        self.last: float | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.first is None:
            self.first = time.perf_counter()
            self._observer.begins(self)
            self.saved.read(self._batcher.device)
        done = len(self._outputs)
        if done < len(self.saved.stored):
            output: Any = (self.saved.stored[done],)
        else:
            self._observer.at_step(done, max(self._steps(), done + 1))
            call = self._batcher.call(self, args, kwargs)
            self.together = max(self.together, call.together)
            self.share += 1 / call.together
            output = call.output
        self._keep(output)
        self._seen = (args, kwargs)
        self.last = time.perf_counter()
        return output

    def through_controlnet(self, batcher: Batcher) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        """What a ControlNet's seam calls: batched like the denoiser's calls, but not saved: computed anew on resume."""
        self._others.append(batcher)
        return lambda args, kwargs: batcher.call(self, args, kwargs).output

    def leave(self) -> None:
        """The task makes no more calls, of no network."""
        for batcher in (self._batcher, *self._others):
            batcher.leave(self)

    def snapshot(self) -> bytes:
        """The outputs so far as a checkpoint; empty for a denoiser that returns anything but one tensor."""
        from .checkpoint import pack

        outputs = list(self._outputs)
        return pack(outputs, self.saved.made_by) if outputs and self._exact and self.saved.made_by else b""

    def preview(self) -> bytes:
        """Computed on demand from the last call, so that a task whose preview nobody reads pays nothing for it."""
        from .preview import predict_x0

        if self.previewer is None or self._seen is None or not self._outputs:
            return b""
        called = self._batcher.bind(*self._seen)
        sample = called.get("sample", called.get("hidden_states"))
        if sample is None or sample.ndim != 4 or sample.shape != self._outputs[-1].shape:
            return b""
        return self.previewer.jpeg(predict_x0(self._pipe.scheduler, sample, called["timestep"], self._outputs[-1]))

    def _steps(self) -> int:
        """Steps of the pipeline's loop, which skips the scheduler's first ones when it starts from an input image."""
        scheduler = self._pipe.scheduler
        begun: int = getattr(scheduler, "begin_index", None) or 0
        return getattr(self._pipe, "_num_timesteps", None) or len(scheduler.timesteps) - begun

    def _keep(self, output: Any) -> None:
        tensor = output[0]
        self._exact = self._exact and isinstance(output, tuple) and len(output) == 1
        self._outputs.append(tensor)
