"""One task's way through the seam: counts its calls, tells the observer before each, replays what is already known."""

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
    """What a checkpoint holds of a task, and the identity that it must have."""

    def __init__(self, made_by: dict[str, str], checkpoint: bytes = b"") -> None:
        self.made_by, self.checkpoint = made_by, checkpoint
        self.stored: list[torch.Tensor] = []

    def read(self, device: torch.device) -> None:
        from .checkpoint import unpack

        if self.checkpoint:
            self.stored = unpack(self.checkpoint, self.made_by, device)
            self.checkpoint = b""


class TaskCalls:
    """Stands behind a task's seam. A call is answered from the checkpoint where that has it, else by a forward."""

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
        """The way through a ControlNet's seam: merged like the denoiser's calls, and computed anew in a replay."""
        self._others.append(batcher)
        return lambda args, kwargs: batcher.call(self, args, kwargs).output

    def leave(self) -> None:
        """The task makes no more calls, anywhere."""
        for batcher in (self._batcher, *self._others):
            batcher.leave(self)

    def snapshot(self) -> bytes:
        """The outputs so far; nothing for a pipeline whose calls answer something else than one tensor."""
        from .checkpoint import pack

        outputs = list(self._outputs)
        return pack(outputs, self.saved.made_by) if outputs and self._exact and self.saved.made_by else b""

    def preview(self) -> bytes:
        """Made when it is asked for, from the last call: a task that nobody looks at pays nothing for it."""
        from .preview import predict_x0

        if self.previewer is None or self._seen is None or not self._outputs:
            return b""
        called = self._batcher.bind(*self._seen)
        sample = called.get("sample", called.get("hidden_states"))
        if sample is None or sample.ndim != 4 or sample.shape != self._outputs[-1].shape:
            return b""
        return self.previewer.jpeg(predict_x0(self._pipe.scheduler, sample, called["timestep"], self._outputs[-1]))

    def _steps(self) -> int:
        """Of the pipeline's own loop; from an input image it leaves out the scheduler's first ones."""
        scheduler = self._pipe.scheduler
        begun: int = getattr(scheduler, "begin_index", None) or 0
        return getattr(self._pipe, "_num_timesteps", None) or len(scheduler.timesteps) - begun

    def _keep(self, output: Any) -> None:
        tensor = output[0]
        self._exact = self._exact and isinstance(output, tuple) and len(output) == 1
        self._outputs.append(tensor)
