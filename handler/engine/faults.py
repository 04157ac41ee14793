"""What a device's errors mean: too little memory for this call, or a device that will not work again."""

from __future__ import annotations

import torch

DEVICE_LOST = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "HIP error", "NCCL error", "device-side assert")
"""After one of these every later call of the process fails as well (CUDA's "sticky" errors)."""


def out_of_memory(fault: BaseException) -> bool:
    """CUDA says so by type or in words, the CPU's allocator in words."""
    text = str(fault)
    return isinstance(fault, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text


def device_lost(fault: BaseException) -> bool:
    known = isinstance(fault, RuntimeError) and any(words in str(fault) for words in DEVICE_LOST)
    return not out_of_memory(fault) and (known or isinstance(fault, torch.AcceleratorError))


def free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
