"""Records CUDA graphs (PyTorch's notes, "CUDA graphs"), all in one pool of memory: they are replayed one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class CudaRecorder:
    """Implements :class:`.graphed.Recorder`. Call it in the compute thread, whose stream it shares."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """``run`` once beside the recording, for libraries choose and reserve at a first run, and once in it.

        Only this thread is bound by a recording's rules: tasks' threads reserve memory meanwhile.
        """
        beside: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            run()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        return output, graph.replay

    def reserved(self) -> int:
        # A recording begins by emptying the cache: what lay in there would hide what the recording takes.
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_reserved(self._device))

    def start_anew(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()
