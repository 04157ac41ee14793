"""Classifies a device's errors: too little memory for one call, or a device that no later call can use."""

from __future__ import annotations

import torch

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


def free_memory() -> None:
    """Returns cached GPU memory to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
