"""The engine: each task runs the unmodified pipeline in its own thread; all tasks' forwards go through one batcher."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import UnsafeContent
from ..logs import logger
from . import Developed, EncodedImage
from .calls import SavedOutputs, TaskCalls
from .reading import Reading
from .slots import Slots

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from PIL.Image import Image

    from ..contract.card import ModelCard
    from ..contract.health import Measured
    from ..contract.request import GenerationRequest
    from ..settings import Settings
    from . import Observer
    from .batcher import Batcher
    from .choosing import Choice
    from .compute import Compute
    from .kept import Proof
    from .preview import LatentPreviewer


class PipelineEngine:
    """Implements :class:`handler.engine.Engine` around an unmodified diffusers pipeline."""

    def __init__(self, pipe: Any, card: ModelCard, compute: Compute, capacity: int = 1) -> None:
        import torch

        from .anatomy import denoisers, from_image
        from .batcher import Batcher
        from .checkpoint import weights_of
        from .decoding import Decoder

        self.card, self.capacity, self.load_seconds = card, capacity, 0.0
        self.measured: Measured | None = None
        self.used: Choice | None = None
        self.kept: tuple[str, Proof] | None = None
        """What was proven and measured of it, and the name of all that this depends on."""
        self.pipe, self.from_image, self.compute = pipe, from_image(pipe), compute
        self._denoisers: dict[int, Batcher] = {id(one): Batcher(one, compute) for one in denoisers(pipe).values()}
        self.batcher: Batcher = next(iter(self._denoisers.values()))
        control = getattr(pipe, "controlnet", None)
        self.controlnet = Batcher(control, compute) if isinstance(control, torch.nn.Module) else None
        for batcher in filter(None, (*self._denoisers.values(), self.controlnet)):
            compute.serve(batcher)
        vae = getattr(pipe, "vae", None)
        self.decoder = Decoder(vae, compute) if isinstance(vae, torch.nn.Module) and hasattr(vae, "decode") else None
        self.previewer: LatentPreviewer | None = None
        self.changes: set[str] = set()
        """What the pipeline changes of the networks that all tasks share: it can draw one task at a time."""
        self._tokenizing = threading.RLock()
        self._weights = compute.run(lambda: weights_of([one.denoiser for one in self._denoisers.values()]))
        self._slots = Slots()

    def slot(self, timeout: float | None = None, *, alone: bool = False) -> AbstractContextManager[None]:
        return self._slots.hold(self.capacity, timeout, alone=alone)

    def use(self, choice: Choice, settings: Settings) -> Choice:
        """Lays what was chosen round the denoisers, and returns it. What cannot be compiled is left as it is.

        Raises ModelUnavailable for a setting that cannot be followed here.
        """
        from .choosing import apply

        def lay() -> Choice:
            for batcher in self._denoisers.values():
                apply(choice, batcher, settings)
            return choice

        self.used = self.compute.run(lay)
        return self.used

    def draw_alone(self) -> None:
        """From now on one task at a time."""
        self.capacity = 1
        for batcher in self._denoisers.values():
            batcher.merging = False
        if self.decoder is not None:
            self.decoder.batcher.merging = False

    def develop(
        self, request: GenerationRequest, observer: Observer, checkpoint: bytes = b"", image: bytes = b""
    ) -> Developed:
        from .imaging import decode_input

        made_by = self._identity(request, image)
        picture = decode_input(image, request, self.card) if image else None
        return self.run(self.arguments(request, picture), observer, SavedOutputs(made_by, checkpoint))

    def checkpoint_name(self, request: GenerationRequest, image: bytes = b"") -> str:
        from .checkpoint import name_of

        return name_of(self._identity(request, image))

    def _identity(self, request: GenerationRequest, image: bytes) -> dict[str, str]:
        from .checkpoint import identity

        return identity(self.card, self._weights, request, image)

    def arguments(self, request: GenerationRequest, picture: Image | None = None) -> dict[str, Any]:
        """The pipeline's arguments for a request, as ``run`` takes them; ``picture`` is the decoded input image."""
        return arguments(request, self.card, self.pipe if picture is None else self.from_image, picture)

    def run(self, call: dict[str, Any], observer: Observer, saved: SavedOutputs | None = None) -> Developed:
        """Runs the pipeline with the arguments ``call`` in this thread; its networks run in the compute thread.

        Raises as ``develop`` does.
        """
        import torch

        from .faults import translated
        from .isolation import own

        shared = self.pipe if call.get("image") is None else self.from_image
        calls = TaskCalls(self.batcher, observer, saved or SavedOutputs({}))
        calls.previewer = self.previewer
        reading = Reading()
        pipe = own(shared, partial(self._stand_in, calls, reading))
        calls.begin(pipe)
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                output = pipe(**call)
            calls.check()
        except Exception as fault:
            named = translated(fault, begun=calls.first is not None)
            if named is fault:
                raise
            logger.exception("the pipeline broke", fault=type(named).__name__)
            raise named from fault
        finally:
            calls.leave()
        ended = time.perf_counter()
        flagged = [bool(one) for one in getattr(output, "nsfw_content_detected", None) or []]
        if flagged and all(flagged):
            raise UnsafeContent("the model's safety checker refused the picture")
        first, last = calls.first or began, calls.last or began
        times = {"text": first - began, "denoise": last - first, "decode": ended - last}
        return Developed(
            pictures_in(output),
            **times,
            batch_size=calls.together,
            resumed_steps=len(calls.saved.stored),
            forward_share=calls.share,
            unsafe=frozenset(index for index, is_unsafe in enumerate(flagged) if is_unsafe),
            warnings=tuple(reading.warnings(call)),
            prompt_tokens=max(reading.limits, default=None),
        )

    def untouched(self, call: dict[str, Any]) -> Any:
        """The pictures of the pipeline as diffusers runs it, without a seam, for comparison."""
        import torch

        from .isolation import own
        from .loading import DTYPES
        from .seam import OnComputeThread

        denoiser = DTYPES[self.card.dtype]

        def itself(component: Any) -> Any:
            """Only what the engine keeps in another type than the rest gets and gives the types that it is used to."""
            converts = hasattr(component, "enable_tiling") and component.dtype != denoiser
            return OnComputeThread(component, self.compute) if converts else component

        pipe = own(self.pipe if call.get("image") is None else self.from_image, itself)

        def draw() -> Any:
            with torch.inference_mode():
                return pictures_in(pipe(**call))

        return self.compute.run(draw)

    def encode(self, developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        from .imaging import encode_images

        return encode_images(developed, request)

    def close(self) -> None:
        self.compute.close()

    def _stand_in(self, calls: TaskCalls, reading: Reading, component: Any) -> Any:
        """What takes the place of a network or a tokenizer in the pipeline of one task."""
        import torch

        from .seam import OnComputeThread, Seam, TaskTokenizer

        if not isinstance(component, torch.nn.Module):
            return TaskTokenizer(component, self._tokenizing, reading)
        if batcher := self._denoisers.get(id(component)):
            return Seam(component, calls.through(batcher), self.changes.add)
        if self.controlnet is not None and component is self.controlnet.denoiser:
            return Seam(component, calls.through_controlnet(self.controlnet), self.changes.add)
        decoder = self.decoder if component is getattr(self.pipe, "vae", None) else None
        return OnComputeThread(component, self.compute, self.changes.add, decoder)


def pictures_in(output: Any) -> Any:
    """The pictures in what a pipeline returned; where they have another name, the first thing that it returned."""
    return output.images if hasattr(output, "images") else output[0]


def arguments(request: GenerationRequest, card: ModelCard, pipe: Any, picture: Image | None = None) -> dict[str, Any]:
    """The pipeline's arguments: the request's fields that both the card and ``pipe`` take.

    One generator for each image, on the CPU, so that a seed gives the same noise on every device. With an input
    ``picture`` its size is the output's size.
    """
    import torch

    from .anatomy import arguments_of

    values = {field: getattr(request, field) for field in card.parameters}
    if "seed" in values:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds()]
        values["seed"] = generators if len(generators) > 1 else generators[0]
    if picture is not None:
        values |= {"image": picture, "width": picture.width, "height": picture.height}
    else:
        values.pop("image", None)  # the request's field is an upload_id, not an image
    named = arguments_of(pipe)
    given = {named[field]: value for field, value in values.items() if field in named and value is not None}
    return {"prompt": request.prompt} | given
