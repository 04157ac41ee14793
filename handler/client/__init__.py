"""Darkroom from Python: over its HTTP API, or straight over SQS and S3.

::

    from handler.client import Darkroom

    with Darkroom(endpoint="https://…", api_key="…") as darkroom:
        task = darkroom.submit("a red apple", seed=7)
        darkroom.wait(task.task_id)
        for picture in darkroom.images(task.task_id):
            picture.save("pictures")

Sync and thread-safe. What goes wrong is raised as one of :mod:`handler.errors`, whichever way the call went.
"""

from __future__ import annotations

from .asking import Asked, Parameters
from .batch import Batch, Drawn
from .darkroom import Darkroom
from .faults import fault_in
from .pictures import Picture

__all__ = ["Asked", "Batch", "Darkroom", "Drawn", "Parameters", "Picture", "fault_in"]
