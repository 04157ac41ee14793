"""Keeps what was proven and measured of a model, in CACHE_DIR: the next start on such a machine need not do it anew."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..contract.health import Measured
from ..errors import ModelUnavailable
from ..logs import logger
from . import portable
from .choosing import Choice
from .sources import beginnings

if TYPE_CHECKING:
    from ..settings import Settings
    from .running import PipelineEngine
    from .sources import Source

FOLDER = "proofs"
LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Proof:
    """``alone``: why tasks are drawn one at a time, empty if two together were proven to draw what each draws alone.

    ``capacity``: the most tasks at a time; ``measured``: the speed of one alone. None where it could not be
    measured: a capacity then at the next start, again.
    """

    alone: str
    capacity: int | None
    measured: Measured | None
    choice: Choice
    """What makes its forwards fast on this device."""
    decodes: bool = False
    """Whether pictures of several tasks may be decoded together."""


def name_of(engine: PipelineEngine, settings: Settings) -> str:
    """SHA-256 (hex) of all that a proof depends on: the weights and configurations of every network, the scheduler, the
    types, the device, the libraries, our own code, and the settings that have a say in it.
    """
    from .checkpoint import weights_of
    from .isolation import networks

    pipe, parts = engine.pipe, networks(engine.pipe)
    told = {
        "pipeline": [type(pipe).__name__, _config(pipe)],
        "parts": {name: _config(one) for name, one in parts.items()},
        "scheduler": _config(getattr(pipe, "scheduler", None)),
        "weights": engine.compute.run(lambda: weights_of(list(parts.values()))),
        "types": [engine.card.dtype, *(str(getattr(one, "dtype", "")) for one in parts.values())],
        "defaults": engine.card.defaults.model_dump(),
        "device": _device(engine),
        "libraries": {name: version(name) for name in LIBRARIES},
        "code": _code(),
        "settings": [settings.max_batch, settings.compile, settings.graphs, settings.attention],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def read(name: str, settings: Settings) -> Proof | None:
    """What was kept under this name: in ``CACHE_DIR``, by an image's build, or in a folder ``proofs`` beside weights.
    None if there is nothing, or nothing that can be read.
    """
    places = (Path(settings.cache_dir), portable.BAKED, *portable.beside(settings))
    found = (_read(Path(place, FOLDER, f"{name}.json")) for place in places)
    return next(filter(None, found), None)


def _read(file: Path) -> Proof | None:
    try:
        found = json.loads(file.read_text())
        measured, choice = Measured.read(found["measured"]), Choice(**found["choice"])
        return Proof(str(found["alone"]), int(found["capacity"]), measured, choice, bool(found["decodes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(name: str, proof: Proof, settings: Settings) -> None:
    """Writes it, whole or not at all. Where nothing can be written the next start proves it again."""
    _write(_file(name, settings), json.dumps(asdict(proof)))


def write(engine: PipelineEngine, folder: Path) -> list[Path]:
    """Writes what this engine was proven and measured with, and what it has compiled, for workers on such machines.

    Returns the files. Raises ModelUnavailable if something could not be told, so that the next start has to try again.
    """
    if engine.kept is None:
        raise ModelUnavailable(f"{engine.card.id} could not be proven and measured here; the log says why")
    name, proof = engine.kept
    file = folder / FOLDER / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(proof)))
    compiled = portable.write(folder) if proof.choice.compiled else None
    return [file, compiled] if compiled else [file]


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as scratch:
            scratch.write(text)
        Path(scratch.name).replace(file)
    except OSError as fault:
        logger.info("what was proven of the model is not kept", fault=type(fault).__name__)


def overflow_name(source: Source, device: str) -> str:
    """SHA-256 (hex) of what decides whether a model's numbers overflow in a dtype: its files' names, sizes and
    beginnings, the device, the libraries and our own code. It is known before anything is loaded.
    """
    own = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    told = [beginnings(source), dict(source.config), device, own, {name: version(name) for name in LIBRARIES}, _code()]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def overflows(name: str, dtype: str, settings: Settings) -> bool:
    """Whether an earlier start has met numbers that are not finite in this dtype."""
    return _file(f"{name}-overflows-{dtype}", settings).exists()


def keep_overflow(name: str, dtype: str, settings: Settings) -> None:
    """Lets later starts with ``DTYPE=auto`` begin with a wider dtype."""
    _write(_file(f"{name}-overflows-{dtype}", settings), "{}")


def _file(name: str, settings: Settings) -> Path:
    return Path(settings.cache_dir) / FOLDER / f"{name}.json"


def _config(part: Any) -> dict[str, Any]:
    """Of diffusers' own classes, but for where it was loaded from: an image has the model in another folder than its
    build, and a model from S3 lies elsewhere on every machine.
    """
    config = part.config if hasattr(part, "register_to_config") else {}
    return {name: value for name, value in config.items() if name != "_name_or_path"}


def _device(engine: PipelineEngine) -> list[object]:
    device = engine.batcher.device
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.version.cuda, torch.backends.cuda.matmul.allow_tf32]
    return [device.type, platform.machine(), os.cpu_count(), engine.compute.run(torch.get_num_threads)]


def _code() -> str:
    """Of the engine: a release that draws otherwise proves anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
