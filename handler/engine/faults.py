"""Classifies errors: too little memory for one call, a device that no later call can use, a pipeline that broke."""

from __future__ import annotations

import torch

from ..errors import DarkroomError, Internal, NotFinite, OutOfMemory, WorkerBroken

DEVICE_LOST = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "HIP error", "NCCL error", "device-side assert")
"""After one of these every later call of the process fails as well (CUDA's "sticky" errors)."""


def out_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out: CUDA has an exception type and messages for it, the CPU's allocator only messages."""
    text = str(fault)
    return isinstance(fault, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text


def device_lost(fault: BaseException) -> bool:
    """Whether the device is unusable until the process is restarted."""
    known = isinstance(fault, RuntimeError) and any(words in str(fault) for words in DEVICE_LOST)
    return not out_of_memory(fault) and (known or isinstance(fault, torch.AcceleratorError))


def translated(fault: Exception, *, begun: bool) -> Exception:
    """What the engine raises for a ``fault`` of a task's pipeline; the fault itself where it needs no other words.

    ``begun``: the denoiser was called. Until then a TypeError or ValueError is the pipeline's own check of its
    arguments and stays as it is; after that no request can be blamed for it.
    """
    if isinstance(fault, DarkroomError):
        return fault
    if out_of_memory(fault):
        return OutOfMemory("the device has too little memory for a picture of this size")
    if device_lost(fault):
        return WorkerBroken(f"the device is lost: {type(fault).__name__}")
    if begun and isinstance(fault, TypeError | ValueError):
        return Internal(f"the pipeline broke after its first step began: {type(fault).__name__}")
    return fault


def check_finite(output: object, what: str) -> None:
    """Raises NotFinite for a floating tensor, or a list of them, with NaN or infinity. ``what``: where it is from."""
    if isinstance(output, list | tuple):
        for one in output:
            check_finite(one, what)
    elif isinstance(output, torch.Tensor) and output.is_floating_point() and not torch.isfinite(output).all():
        dtype = str(output.dtype).removeprefix("torch.")
        wider = "" if dtype == "float32" else ": such a model needs DTYPE=bfloat16 or DTYPE=float32"
        raise NotFinite(f"{what} is not finite in {dtype}{wider}")


def free_memory() -> None:
    """Returns cached GPU memory to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
