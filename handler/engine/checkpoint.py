"""Exact resume: a checkpoint is a task's denoiser outputs so far, as safetensors, with what made them as metadata.

The next attempt runs the same stock pipeline with the same seed and gets these outputs for its first denoiser calls.
The scheduler and its random draws thereby repeat, and the picture is bit-identical to that of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..contract.card import ModelCard
    from ..contract.request import GenerationRequest

FORMAT = "darkroom-checkpoint-2"
LIBRARIES = ("torch", "diffusers", "transformers")
UNSEEN = frozenset({"task_id", "tags", "output_format", "quality"})
"""Fields of a request that change nothing in the denoiser's outputs."""
SAMPLE = 64
"""Elements of each tensor that are hashed: enough to tell models apart, quick to read."""


def weights_of(denoisers: Sequence[torch.nn.Module]) -> str:
    """SHA-256 (hex) of the names, shapes, dtypes and first elements of the denoisers' weights as they were loaded."""
    digest = hashlib.sha256()
    for name, weights in (item for denoiser in denoisers for item in denoiser.state_dict().items()):
        for tensor in _plain(weights.detach()):
            head = tensor.flatten()[:SAMPLE].float().cpu().numpy()
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + head.tobytes())
    return digest.hexdigest()


def _plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that one is made of: itself, or those of a quantised one (torch's traceable wrapper subclasses)."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names: list[str] = tensor.__tensor_flatten__()[0]
    return [plain for name in names for plain in _plain(getattr(tensor, name))]


def identity(card: ModelCard, weights: str, request: GenerationRequest, image: bytes = b"") -> dict[str, str]:
    """Everything that determines a picture, as checkpoint metadata. ``image``: the bytes of the input image.

    ``dtype`` stands by itself: of workers that differ only there each has a right to its own checkpoint. The weights'
    digest then differs, too, by rounding.
    """
    return {
        "format": FORMAT,
        "model": f"{card.id} {card.revision} {card.pipeline}",
        "dtype": card.dtype,
        "weights": weights,
        "libraries": json.dumps({name: version(name) for name in LIBRARIES}),
        "request": hashlib.sha256(_asked(request)).hexdigest(),
        **({"input": hashlib.sha256(image).hexdigest()} if image else {}),
    }


def _asked(request: GenerationRequest) -> bytes:
    """What differs from the fields' defaults, so that a field that a later version adds changes no other request."""
    named = request.model_dump(mode="json", exclude=set(UNSEEN), exclude_defaults=True)
    return json.dumps(named, sort_keys=True).encode()


def name_of(made_by: dict[str, str]) -> str:
    """A short name (16 hexadecimal digits) of an identity, for a checkpoint's key."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


def savable(output: Any) -> bool:
    """Whether what a denoiser returned is one plain tensor; not so for a list of them (Z-Image), several, or a dict."""
    if not (isinstance(output, tuple) and len(output) == 1 and isinstance(output[0], torch.Tensor)):
        return False
    return output[0].layout is torch.strided and not output[0].is_quantized


def to_host(output: torch.Tensor) -> torch.Tensor:
    """A denoiser output on the host, so that a task of many steps holds no device memory for its checkpoint.

    From CUDA the copy goes to page-locked memory and is only begun here: the stream of steps does not wait for it, and
    who reads it calls :func:`settle` first.
    """
    output = output.detach()
    if output.device.type != "cuda":
        return output.to("cpu")
    host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
    return host.copy_(output, non_blocking=True)


def settle(device: torch.device) -> None:
    """Waits until the copies that ``to_host`` began on ``device`` have arrived."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pack(outputs: Sequence[torch.Tensor], made_by: dict[str, str]) -> bytes:
    """A checkpoint of the outputs of a task's denoiser calls, in call order. Raises as safetensors does."""
    tensors = {f"{at:05d}": _copied(output) for at, output in enumerate(outputs)}
    return save(tensors, metadata=made_by)


def _copied(output: torch.Tensor) -> torch.Tensor:
    """On the host, in memory of its own: safetensors refuses tensors that share theirs."""
    return output.detach().to("cpu", copy=True).contiguous()


def unpack(body: bytes, wanted: dict[str, str]) -> list[torch.Tensor]:
    """The outputs in a checkpoint, on the host.

    None, and a line in the log, if it is damaged or its metadata is not ``wanted``.
    """
    if not body:
        return []
    try:
        tensors = load(body)
        made_by = _metadata(body)
    except (SafetensorError, ValueError, KeyError) as fault:
        logger.warning("the checkpoint cannot be read; the task starts anew", fault=str(fault))
        return []
    differing = sorted(name for name in wanted if made_by.get(name) != wanted[name])
    if differing:
        logger.warning("the checkpoint is of something else; the task starts anew", differing=differing)
        return []
    return [tensors[name] for name in sorted(tensors)]


def _metadata(body: bytes) -> dict[str, Any]:
    """The header's ``__metadata__`` (safetensors format: 8 bytes of little-endian length, then JSON)."""
    length = int.from_bytes(body[:8], "little")
    header: dict[str, Any] = json.loads(body[8 : 8 + length])
    return dict(header.get("__metadata__", {}))
