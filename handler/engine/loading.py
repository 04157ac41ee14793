"""Loads the pipeline that ``MODEL_ID`` names and makes its model card. Safetensors only, no remote code."""

from __future__ import annotations

import ast
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..contract.health import baked_card
from ..errors import DarkroomError, ModelUnavailable
from ..process import provide
from . import kept
from .anatomy import quiet
from .cards import card_of, read_overrides
from .sources import find, load, stored_dtype

if TYPE_CHECKING:
    from ..contract.card import ModelCard
    from ..settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KERNELS = 6144
"""Size of oneDNN's cache of compiled kernels, which bounds a worker's memory on a CPU: each has about 0.08 MB, and each
size of picture and of batch needs dozens.

Too small, it makes forwards compile anew what was dropped: with 1,024, oneDNN's default, up to three times as long for
a UNet at every batch size; with 4,096, 8 % more processor time for pictures of 25 sizes (tests/README.md).
"""
TEAM = torch.get_num_threads()
"""OpenMP's number of threads at start: OMP_NUM_THREADS, else the machine's cores."""
WIDER = {"float16": "bfloat16", "bfloat16": "float32"}
"""What to try where the numbers of a model overflow; bfloat16 has float32's range."""
Fetch = Callable[[str, "Settings"], tuple[Path, str]]
"""Downloads an ``s3://`` URL; returns a local folder and a revision that identifies its content."""
Tried = Callable[[tuple[str, str]], None]


def load_pipeline(settings: Settings, fetch: Fetch | None = None, tried: Tried | None = None) -> tuple[Any, ModelCard]:
    """Loads the pipeline and makes its card; ``fetch`` downloads a model whose id begins with ``s3://``; ``tried`` is
    told of the dtype and of the name under which :mod:`.kept` remembers that it overflowed.

    Raises ModelUnavailable with the reason, whatever went wrong.
    """
    provide(ONEDNN_PRIMITIVE_CACHE_CAPACITY=str(KERNELS))  # read by oneDNN when it is first used
    try:
        with quiet():
            return _load(settings, fetch, tried)
    except DarkroomError as fault:
        raise ModelUnavailable(fault.message) from fault
    except Exception as fault:
        reason = _package_missing(fault) or (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise ModelUnavailable(f"cannot load {settings.model_name}: {reason}") from fault


def _package_missing(fault: Exception) -> str:
    """What to install, where transformers asks for it, or diffusers has a name only beside it; else empty."""
    if named := re.search(r"requires the (\w+) library but it was not found", str(fault)):
        return f"it needs {named[1].lower()}, which is not installed"
    trace = fault.__traceback__
    if not isinstance(fault, NameError) or trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    source = Path(trace.tb_frame.f_code.co_filename).read_text()
    for choice in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)):
        imports = (one for one in choice.body if isinstance(one, ast.Import | ast.ImportFrom))
        package = re.search(r"is_(\w+)_available", ast.unparse(choice.test))
        if package and fault.name in {alias.asname or alias.name for one in imports for alias in one.names}:
            return f"it needs {package[1]}, which is not installed"
    return ""


def _load(settings: Settings, fetch: Fetch | None, tried: Tried | None) -> tuple[Any, ModelCard]:
    # A container image holds its model in a folder named as MODEL_ID is, with the revision on the card inside it.
    revision = settings.model_revision or (baked_card(settings) or {}).get("revision")
    place, fetched = _here(settings.model_source, settings, fetch)
    config, _ = _here(settings.model_config, settings, fetch)
    source = find(place, settings.model_revision or None, config)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device, stored_dtype(source), transformer="transformer" in source.config)
    name = kept.overflow_name(source, device)
    while settings.dtype == "auto" and kept.overflows(name, dtype, settings):
        dtype = WIDER[dtype]
    if tried is not None:
        tried((dtype, name))
    pipe = load(source, DTYPES[dtype]).to(device)
    pipe.set_progress_bar_config(disable=True)
    tune(pipe, dtype)
    return pipe, card_of(pipe, settings.model_name, fetched or revision, dtype, read_overrides(Path(place)))


def _here(place: str, settings: Settings, fetch: Fetch | None) -> tuple[str, str | None]:
    """A place whose files are here or on the Hub, and the revision of what was fetched."""
    if not place.startswith("s3://") or Path(place).exists():
        return place, None
    if fetch is None:
        raise ModelUnavailable(f"{place}: nothing here fetches models from S3")
    folder, revision = fetch(place, settings)
    return str(folder), revision


def pick_device(wanted: str) -> str:
    """``auto`` is CUDA if it is available, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(wanted: str, device: str, stored: str | None = None, *, transformer: bool = False) -> str:
    """``auto`` on CUDA is the type of 16 bits that the weights are ``stored`` in; of others float16 for a UNet and
    bfloat16 for a ``transformer``, whose kinds were trained in it and overflow in float16. On a CPU that computes in
    bfloat16 it is that (2 to 2.6 times faster), else float32.
    """
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        fitting = stored if stored in {"float16", "bfloat16"} else "bfloat16" if transformer else "float16"
        return fitting if native else "float16"
    known = torch.cpu.get_capabilities()
    return "bfloat16" if device == "cpu" and (known.get("avx512_bf16") or known.get("amx_bf16")) else "float32"


def tune(pipe: Any, dtype: str) -> None:
    """Sets the number of threads and the VAE's dtype. What makes forwards faster is chosen later (:mod:`.choosing`).

    Call it in the compute thread, whose number of OpenMP threads it sets.
    """
    own = min(cores(), TEAM)
    if torch.get_num_threads() != own:  # setting it, even to the same value, made forwards slower
        torch.set_num_threads(own)
    _leave_teams_to_this_thread()
    vae = getattr(pipe, "vae", None)
    if vae is not None and dtype == "float16" and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)  # it overflows in float16; else the pipeline would upcast it for every task


def _leave_teams_to_this_thread() -> None:
    """Threads started from now on compute with one OpenMP thread each.

    A task's thread may enter a parallel region (a picture of 128 pixels a side is large enough when it is scaled to 0
    to 1). OpenMP then keeps a second team for as long as that thread lives, which encodes and uploads after; with more
    threads than cores no team spins between regions any more, and every forward took up to twice as long.
    """
    setting = threading.Thread(target=torch.set_num_threads, args=(1,))  # sets the default of all later threads
    setting.start()
    setting.join()


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: the smaller of its CPU affinity and the container's CPU quota.

    ``quota``: cgroup v2's ``cpu.max``, "quota period" in microseconds.
    """
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        return max(1, min(have, round(int(share) / int(period))))
    except (OSError, ValueError):  # no cgroup, or no limit
        return have
