"""Metrics in CloudWatch's embedded metric format: JSON lines on stdout, which CloudWatch Logs turns into metrics.

Every metric has the dimension ``stack``, or alarms of one stack would ring for another in the same account. Its value
is read off the queue's name, which all who tell metrics know: ``infra/template.yaml`` calls it ``STACK-tasks``.

Source of the format: CloudWatch user guide, "Embedding metrics within logs". Written with ``METRICS=1`` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .tracing import STATUS

if TYPE_CHECKING:
    from ..contract.record import Record
    from ..engine import Developed
    from ..errors import Code
    from ..settings import Settings

NAMESPACE, STACK = "Darkroom", "darkroom"
SECONDS = ("queue", "load", "text", "denoise", "decode", "encode", "upload", "total")


class Metrics:
    """Writes metrics; without ``METRICS=1`` does nothing. Thread-safe: each call writes one line and keeps nothing."""

    def __init__(self, settings: Settings) -> None:
        self._on = settings.metrics
        queue = settings.queue_url.rpartition("/")[2]
        self._stack = queue.removesuffix("-tasks") or STACK

    def completed(self, record: Record, developed: Developed) -> None:
        """A completed task: its timings, and its share of the forwards; the shares of all tasks sum to all forwards."""
        if not self._on or record.timings is None:
            return
        seconds = {f"{name.capitalize()}Seconds": getattr(record.timings, name) for name in SECONDS}
        self._emit(
            {
                "TasksCompleted": 1,
                "Images": sum(not image.unsafe for image in record.images),
                "BatchSize": record.batch_size or 1,
                "Forwards": developed.forward_share,
                "ResumedSteps": developed.resumed_steps,
                "ColdStarts": int(bool(record.cold_start)),
                **seconds,
                "ImageBytes": sum(image.bytes for image in record.images),
            }
        )

    def failed(self, code: Code) -> None:
        """A task that failed; apart from those one that its caller asked for in vain: no alarm is to ring for it."""
        self._emit({"TasksFailed" if STATUS[code] >= 500 else "TasksRefused": 1})
        self._emit({"FailedByCode": 1}, code=code)

    def unloadable(self) -> None:
        """The model could not be loaded. No task fails by it, for each waits for a worker that can."""
        self._emit({"ModelUnavailable": 1})

    def cancelled(self) -> None:
        self._emit({"TasksCancelled": 1})

    def wasted(self, steps: int) -> None:
        """Steps that an attempt computed, and that neither its result nor a checkpoint holds."""
        if steps:
            self._emit({"WastedSteps": steps})

    def _emit(self, values: dict[str, float], **dimensions: str) -> None:
        if not self._on:
            return
        from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

        metrics = EphemeralMetrics(namespace=NAMESPACE)
        for dimension, named in {"stack": self._stack, **dimensions}.items():
            metrics.add_dimension(dimension, named)
        for name, value in values.items():
            unit = MetricUnit.Seconds if name.endswith("Seconds") else MetricUnit.Count
            metrics.add_metric(name, MetricUnit.Bytes if name.endswith("Bytes") else unit, value)
        metrics.flush_metrics()
