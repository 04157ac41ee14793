"""The Python client: over the HTTP API, or directly over SQS and S3.

::

    from handler.client import Darkroom

    with Darkroom(endpoint="https://…", api_key="…") as darkroom:
        task = darkroom.submit("a red apple", seed=7)
        darkroom.wait(task.task_id)
        for picture in darkroom.images(task.task_id):
            picture.save("pictures")

Sync and thread-safe. Both ways raise the same exceptions, those of :mod:`handler.errors`.
"""

from __future__ import annotations

from .asking import Asked, Parameters
from .batch import Batch, Drawn
from .darkroom import Darkroom
from .faults import fault_in
from .pictures import Picture

__all__ = ["Asked", "Batch", "Darkroom", "Drawn", "Parameters", "Picture", "fault_in"]
