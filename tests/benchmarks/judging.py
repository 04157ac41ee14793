"""Whether a server's pictures are right: a sequential loop's, drawn with the same type, to a tolerance."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .hosting import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .load import Task

TOLERANCE = 16 / 255
"""Mean difference of a picture's pixels (0 to 1). The rounding of bfloat16 stays far below, another picture above."""


@dataclass(frozen=True)
class Right:
    """The right pictures, drawn one after another, and how long that took."""

    dtype: str
    pictures: list[np.ndarray]
    seconds: float


def draw_right(tasks: Sequence[Task], dtype: str) -> Right:
    bodies = json.dumps([task.body() for task in tasks])
    command = [sys.executable, "-m", "tests.benchmarks.peers.drawing", dtype]
    done = subprocess.run(command, input=bodies, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    drawn = json.loads(done.stdout)
    return Right(drawn["dtype"], [pixels(base64.b64decode(one)) for one in drawn["pictures"]], drawn["seconds"])


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.float32) / 255


def is_right(drawn: bytes, picture: np.ndarray) -> bool:
    return bool(np.abs(pixels(drawn) - picture).mean() <= TOLERANCE)
