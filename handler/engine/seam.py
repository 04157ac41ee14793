"""The seam and the other stand-ins: wrappers that replace the components of one task's pipeline.

The seam replaces a denoiser, so that calls of many tasks can share a forward. Every other network is replaced by a
wrapper that runs it in the compute thread, a tokenizer by one that locks it.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .faults import check_finite, free_memory, out_of_memory

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from .compute import Compute
    from .decoding import Decoder
    from .reading import Reading

T = TypeVar("T")


class StandIn:
    """Stands for a component of one task's pipeline: all of it is the component's, only calls differ.

    ``__class__`` too is the component's, because pipelines test their components with isinstance. What is set on it, or
    changed by a method that begins with one of CHANGES, is set on the shared component: ``changed`` is told of it, for
    a pipeline that does so cannot draw two tasks at a time.
    """

    CHANGES = ("set_", "enable_", "disable_", "fuse_", "unfuse_", "load_", "unload_", "delete_", "add_")

    def __init__(self, inner: Any, changed: Callable[[str], None] = lambda _: None) -> None:
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_changed", changed)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_inner"], name)
        if not (name.startswith(self.CHANGES) and inspect.ismethod(found)):
            return found

        @functools.wraps(found)
        def changing(*args: Any, **kwargs: Any) -> Any:
            self.__dict__["_changed"](name)
            return found(*args, **kwargs)

        return changing

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["_changed"](name)
        setattr(self.__dict__["_inner"], name, value)

    def __delattr__(self, name: str) -> None:
        self.__dict__["_changed"](name)
        delattr(self.__dict__["_inner"], name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__["_inner"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(args, kwargs)

    @property
    def forward(self) -> Callable[..., Any]:
        """With the signature of the component's own, which some pipelines look at."""

        @functools.wraps(self.__dict__["_inner"].forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._called(args, kwargs)

        return forward

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.__dict__["_inner"](*args, **kwargs)

    def __bool__(self) -> bool:
        return bool(self.__dict__["_inner"])

    def __len__(self) -> int:
        return len(self.__dict__["_inner"])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__dict__["_inner"])

    def __getitem__(self, key: Any) -> Any:
        return self.__dict__["_inner"][key]

    def __contains__(self, key: Any) -> bool:
        return key in self.__dict__["_inner"]

    def __dir__(self) -> list[str]:
        return dir(self.__dict__["_inner"])

    def __repr__(self) -> str:
        return repr(self.__dict__["_inner"])


class Seam(StandIn):
    """Replaces the denoiser. ``through`` makes the call for this task: see :class:`.calls.TaskCalls`."""

    def __init__(
        self,
        denoiser: torch.nn.Module,
        through: Callable[[tuple[Any, ...], dict[str, Any]], Any],
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(denoiser, changed)
        object.__setattr__(self, "_through", through)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.__dict__["_through"](args, kwargs)


class OnComputeThread(StandIn):
    """Replaces any other network (text encoder, VAE, safety checker) and runs it in the compute thread.

    A VAE that runs out of memory is switched to tiling and tried once more.
    """

    METHODS = frozenset({"encode", "decode", "get_text_features", "get_image_features", "generate"})

    def __init__(
        self,
        inner: torch.nn.Module,
        compute: Compute,
        changed: Callable[[str], None] = lambda _: None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(inner, changed)
        object.__setattr__(self, "_compute", compute)
        object.__setattr__(self, "_decoder", decoder)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._run(self.__dict__["_inner"], args, kwargs)

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        if name not in self.METHODS:
            return attribute
        decoder: Decoder | None = self.__dict__["_decoder"]
        if name == "decode" and decoder is not None:
            return decoder
        return lambda *args, **kwargs: self._run(attribute, args, kwargs)

    def _run(self, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        compute: Compute = self.__dict__["_compute"]
        return compute.run(lambda: self._work(work, args, kwargs))

    @torch.inference_mode()
    def _work(self, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        inner = self.__dict__["_inner"]
        tile = getattr(inner, "enable_tiling", None)
        if tile is not None:  # a VAE, which may be kept in float32 while the rest is not (loading.tune)
            dtype = next((one.dtype for one in args if isinstance(one, torch.Tensor)), inner.dtype)
            args = tuple(as_floating(value, inner.dtype) for value in args)
        try:
            output = work(*args, **kwargs)
            return output if tile is None else checked(output, dtype)
        except Exception as fault:
            if not out_of_memory(fault) or tile is None:
                raise
        free_memory()  # after the except clause, whose traceback kept the failed try's tensors alive
        tile()  # from now on decodes in tiles: slower, but with less memory
        return checked(work(*args, **kwargs), dtype)


def checked(output: T, dtype: torch.dtype) -> T:
    """What a VAE returned. Raises NotFinite for a picture that would be black."""
    decoded = output[0] if isinstance(output, tuple) else getattr(output, "sample", None)
    if isinstance(decoded, torch.Tensor):
        check_finite(decoded, "the picture")
    return _distribution_as(output, dtype)


def as_floating(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _distribution_as(output: T, dtype: torch.dtype) -> T:
    """Casts what a VAE encoded to the dtype of its input, which is the denoiser's. Decoded pictures are unchanged."""
    distribution: Any = getattr(output, "latent_dist", None)
    if distribution is None or distribution.parameters.dtype == dtype:
        return output
    converted: T = type(output)(latent_dist=type(distribution)(distribution.parameters.to(dtype)))  # type: ignore[call-arg]
    return converted


class TaskTokenizer:
    """A task's view of a tokenizer, or of a processor that holds one, which all tasks share under ``lock``.

    A fast tokenizer keeps its padding and truncation between calls, which two threads would corrupt. What a pipeline
    sets on it (Sana and others set ``padding_side``) is this task's: it is in force during each of its calls, and what
    was there before is put back. A copy for each task would take 0.8 s and 39 MB for 150,000 tokens.
    """

    def __init__(self, inner: Any, lock: threading.RLock, reading: Reading) -> None:
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_lock", lock)
        object.__setattr__(self, "_reading", reading)
        object.__setattr__(self, "_set", {})

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__["_inner"])

    def __getattr__(self, name: str) -> Any:
        mine = self.__dict__
        if name in mine["_set"]:
            return mine["_set"][name]
        with self._as_set():  # what was set may show in another attribute: pad_token in pad_token_id
            found = getattr(mine["_inner"], name)
        if name == "tokenizer" and not inspect.ismethod(found):  # a processor's
            mine.setdefault("_nested", TaskTokenizer(found, mine["_lock"], mine["_reading"]))
            return mine["_nested"]
        return self._locked(found) if inspect.ismethod(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["_set"][name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inner = self.__dict__["_inner"]
        output = self._locked(inner)(*args, **kwargs)
        tokenizer, texts = getattr(inner, "tokenizer", inner), args[0] if args else kwargs.get("text")
        if kwargs.get("truncation") and texts is not None:
            limit = kwargs.get("max_length") or tokenizer.model_max_length
            special = kwargs.get("add_special_tokens", True)
            whole = self._locked(lambda text: len(tokenizer(text, add_special_tokens=special)["input_ids"]))
            self.__dict__["_reading"].note(texts, limit, whole)
        return output

    def __len__(self) -> int:
        return len(self.__dict__["_inner"])

    def __contains__(self, token: str) -> bool:
        return token in self.__dict__["_inner"]

    def __repr__(self) -> str:
        return repr(self.__dict__["_inner"])

    def _locked(self, method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> T:
            with self._as_set():
                return method(*args, **kwargs)

        return call

    @contextmanager
    def _as_set(self) -> Iterator[None]:
        """With the lock held, the tokenizer as this task has set it; after that as it was before."""
        nested: TaskTokenizer | None = self.__dict__.get("_nested")
        with self.__dict__["_lock"], nested._as_set() if nested is not None else nullcontext():
            inner, settings = self.__dict__["_inner"], self.__dict__["_set"]
            before = {name: getattr(inner, name, MISSING) for name in settings}
            fast = getattr(inner, "backend_tokenizer", None)
            kept = (fast.padding, fast.truncation) if fast is not None else None
            try:
                for name, value in settings.items():
                    setattr(inner, name, value)
                yield
            finally:
                for name, value in before.items():
                    delattr(inner, name) if value is MISSING else setattr(inner, name, value)
                if kept is not None:
                    _put_back(fast, *kept)


MISSING = object()


def _put_back(fast: Any, padding: dict[str, Any] | None, truncation: dict[str, Any] | None) -> None:
    """Gives a fast tokenizer its settings of before."""
    if fast.padding != padding:
        fast.enable_padding(**padding) if padding else fast.no_padding()
    if fast.truncation != truncation:
        fast.enable_truncation(**truncation) if truncation else fast.no_truncation()
