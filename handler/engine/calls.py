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


INPUTS = (("sample", "hidden_states"), ("timestep", "timesteps"))
"""What networks call the latents, and the time."""


class SavedOutputs:
    """A task's denoiser outputs from a checkpoint, on the host, read on first use.

    ``made_by``: the identity that it must match.
    """

    def __init__(self, made_by: dict[str, str], checkpoint: bytes = b"") -> None:
        self.made_by, self.checkpoint = made_by, checkpoint
        self.stored: list[torch.Tensor] = []

    def read(self) -> None:
        """Fills ``stored``; leaves it empty for a checkpoint that does not match."""
        from .checkpoint import unpack

        if self.checkpoint:
            self.stored = unpack(self.checkpoint, self.made_by)
            self.checkpoint = b""


class CountedStep:
    """The ``step`` of one task's scheduler. ``told`` is called after each."""

    def __init__(self, scheduler: Any, told: Callable[[], None]) -> None:
        self._scheduler, self._told = scheduler, told
        self.__wrapped__ = type(scheduler).step.__get__(scheduler)  # pipelines look at its signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__wrapped__(*args, **kwargs)
        self._told()
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> CountedStep:
        """Of a scheduler that its pipeline copies, the copy's; of a copy of its state alone, its own."""
        return CountedStep(memo.get(id(self._scheduler), self._scheduler), self._told)


class TaskCalls:
    """What a task's seam calls. An output comes from the checkpoint if that has it, else from a forward.

    ``together``: the most tasks that shared one forward; ``share``: the sum of this task's shares; ``first``, ``last``:
    time.perf_counter at its first and after its last call.
    """

    def __init__(self, batcher: Batcher, observer: Observer, saved: SavedOutputs) -> None:
        self._batcher, self._observer, self.saved = batcher, observer, saved
        self._pipe: Any = None
        self._all_drawn: Callable[[int], None] | None = getattr(observer, "all_drawn", None)
        self._batchers = [batcher]
        self._counted, self._stepped, self._told = False, 0, -1
        self._outputs: list[Any] = []
        """On the host; None for each that cannot be saved."""
        self._answer: Any = None
        self._last: Any = None
        self._savable = True
        self._seen: tuple[Batcher, tuple[Any, ...], dict[str, Any]] | None = None
        self.previewer: LatentPreviewer | None = None
        self.together = 1
        self.share = 0.0
        self.first: float | None = None
        self.last: float | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], batcher: Batcher | None = None) -> Any:
        """A call of the denoiser, or of that of ``batcher`` where the pipeline has two."""
        if self.first is None:
            self.first = time.perf_counter()
            self.saved.read()  # before anybody can ask for a snapshot
            self._observer.begins(self)
        done, batcher = len(self._outputs), batcher or self._batcher
        if done < len(self.saved.stored):
            output: Any = (self.saved.stored[done].to(batcher.device),)
        else:
            if self._stepped != self._told:
                self._told = self._stepped
                self._observer.at_step(self._stepped, max(self._steps(), self._stepped + 1))
            call = batcher.call(self, args, kwargs)
            self.together = max(self.together, call.together)
            self.share += 1 / call.together
            output = call.output
            if self._savable and (kept := call.written_to()):
                self._cannot_save(kept)
        self._keep(output, self.saved.stored[done] if done < len(self.saved.stored) else None)
        self._seen = (batcher, args, kwargs)
        self.last = time.perf_counter()
        if not self._counted:
            self._step_is_done()
        return output

    def begin(self, pipe: Any) -> None:
        """The task's pipeline. A step is a step of its scheduler, which some pipelines make after two calls, one with
        and one without the prompt; without such a scheduler each call is a step.
        """
        self._pipe = pipe
        scheduler: Any = getattr(pipe, "scheduler", None)
        if callable(getattr(type(scheduler), "step", None)):
            scheduler.step = CountedStep(scheduler, self._step_is_done)
            self._counted = True

    def _step_is_done(self) -> None:
        self._stepped += 1
        if self._all_drawn is not None and self._stepped == self._steps():
            self._all_drawn(self._stepped)

    def through_controlnet(self, batcher: Batcher) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        """What a ControlNet's seam calls: batched like the denoiser's calls, but not saved: computed anew on resume."""
        self._batchers.append(batcher)
        return lambda args, kwargs: batcher.call(self, args, kwargs).output

    def through(self, batcher: Batcher) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        """What a denoiser's seam calls."""
        if batcher not in self._batchers:
            self._batchers.append(batcher)
        return lambda args, kwargs: self(args, kwargs, batcher)

    def check(self) -> None:
        """Raises NotFinite if the last call's output is not finite."""
        from .faults import check_finite

        check_finite(self._answer, "the denoiser's output")

    def leave(self) -> None:
        """The task makes no more calls, of no network."""
        for batcher in self._batchers:
            batcher.leave(self)

    def snapshot(self) -> bytes:
        """The outputs so far as a checkpoint, all that were loaded among them, be they replayed yet or not.

        Empty for a denoiser that returns anything but one tensor.
        """
        from safetensors import SafetensorError

        from .checkpoint import pack, settle

        outputs = self._known()  # before the question whether they can be saved: this is another thread than the task's
        if not (outputs and self._savable and self.saved.made_by):
            return b""
        settle(self._batcher.device)
        try:
            return pack(outputs, self.saved.made_by)
        except (SafetensorError, KeyError, TypeError, ValueError) as fault:  # a kind of tensor that it does not store
            self._cannot_save(type(fault).__name__)
            return b""

    def saved_steps(self) -> int:
        """How many outputs a snapshot taken now holds; one taken later holds no fewer, unless they cannot be saved."""
        return len(self._known()) if self._savable and self.saved.made_by else 0

    def preview(self) -> bytes:
        """Computed on demand from the last call, so that a task whose preview nobody reads pays nothing for it."""
        import torch

        from .preview import predict_x0

        if self.previewer is None or self._seen is None:
            return b""
        batcher, args, kwargs = self._seen
        called, answer = batcher.bind(args, kwargs), self._last
        sample, time = (called.get(name, called.get(other)) for name, other in INPUTS)
        if time is None or not (isinstance(sample, torch.Tensor) and isinstance(answer, torch.Tensor)):
            return b""
        if sample.ndim != 4 or sample.shape != answer.shape:
            return b""
        return self.previewer.jpeg(predict_x0(self._pipe.scheduler, sample, time, answer))

    def _steps(self) -> int:
        """Steps of the pipeline's loop, which skips the scheduler's first ones when it starts from an input image."""
        scheduler = self._pipe.scheduler
        begun: int = getattr(scheduler, "begin_index", None) or 0
        return getattr(self._pipe, "_num_timesteps", None) or len(scheduler.timesteps) - begun

    def _known(self) -> list[Any]:
        """The outputs of the calls so far, and after them those that are loaded and not replayed yet."""
        made = list(self._outputs)
        return made + self.saved.stored[len(made) :]

    def _keep(self, output: Any, stored: torch.Tensor | None) -> None:
        """Notes the output of a call, which is ``stored`` already if it came from the checkpoint."""
        from .checkpoint import savable, to_host

        if self._savable and not savable(output):
            self._cannot_save(type(output).__name__)
        self._answer = output
        self._last = output[0] if isinstance(output, tuple) and output else None
        if not self._savable:
            self._outputs.append(None)
        else:
            self._outputs.append(to_host(self._last) if stored is None else stored)

    def _cannot_save(self, kind: str) -> None:
        self._savable = False
        self._batcher.note_unsavable(kind)
