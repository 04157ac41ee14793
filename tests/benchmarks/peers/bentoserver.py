# mypy: ignore-errors
"""BentoML at its best here: adaptive batching up to 8, the fastest type, equal requests in one pipeline call.

One thread loads and draws: BentoML's own thread pool would make every forward more than twice as slow.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import bentoml

from .drawing import draw, fast, load

BATCH = 8
LIMIT = 600
"""Seconds. BentoML refuses what it expects to take longer; nothing is to be refused here."""


@bentoml.service(workers=1, traffic={"timeout": LIMIT})
class Pictures:
    def __init__(self) -> None:
        self.compute = ThreadPoolExecutor(1)
        self.pipe = self.compute.submit(load, fast()).result()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=LIMIT * 1000)
    async def generate(self, requests: list[dict]) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(self.compute, draw, self.pipe, requests)
