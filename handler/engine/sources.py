"""Where a model's files lie, and in which form: a folder or a Hub repository as diffusers saves it, or one file.

The forms are diffusers' own: weights of a ``variant`` (``model.fp16.safetensors``), in shards, without a part that is
not needed, quantised (as the configuration of the part says), and the single files that other programs write.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from ..errors import ModelUnavailable
from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

INDEX = "model_index.json"
FILES = (".safetensors", ".gguf")
WEIGHTS = re.compile(r"[^.]+(?:\.(?P<variant>\w+?))?(?:-\d{5}-of-\d{5})?\.safetensors")
"""A part's weights, as diffusers and transformers name them."""
PREFERRED = ("fp16", "bf16")
DENOISERS = ("unet", "transformer")
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SPARED = ("safety_checker",)
"""Parts that a pipeline can do without, and whose weights old repositories have as pickles alone."""
OTHER_PARTS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")
"""What the names of weights in a single file begin with that are not the denoiser's."""


@dataclass(frozen=True)
class Source:
    """A model to load. ``place``: the folder or Hub id of its parts and their configuration; ``config``: its
    ``model_index.json``; ``file``: where the weights lie, or those of its denoiser, if they lie in a single file.
    """

    place: str
    revision: str | None
    config: Mapping[str, Any]
    file: Path | None = None


@dataclass(frozen=True)
class Form:
    """``variant``: the one to load; ``left_out``: parts that are loaded without."""

    variant: str | None = None
    left_out: tuple[str, ...] = field(default=())


def find(place: str, revision: str | None, config: str = "") -> Source:
    """Looks for the model; ``config``: the folder or Hub id of a single file's configuration.

    Raises ModelUnavailable for a file without it, OSError for what is not there or cannot be reached.
    """
    file = single_file(Path(place))
    if file is None:
        if not Path(place).is_dir():  # on the Hub: from here on it is a folder like any other
            place, revision = str(download(place, revision, None)), None
        return Source(place, revision, DiffusionPipeline.load_config(place))
    guessed = config or _configuration_in(Path(place)) or _configured_as(file)
    try:
        return Source(guessed, None, DiffusionPipeline.load_config(guessed), file)
    except OSError as fault:
        reason = f"{file.name} holds weights alone: MODEL_CONFIG names the folder or Hub id of their {INDEX}"
        raise ModelUnavailable(f"{reason}; there is none at {guessed}") from fault


def single_file(place: Path) -> Path | None:
    """The file that holds a whole model, or its denoiser: ``place`` itself, or the only one in that folder.

    None for a pipeline's folder, or for what is not there. Raises ModelUnavailable for a folder of several.
    """
    if place.is_file():
        return place
    if not place.is_dir() or (place / INDEX).exists():
        return None
    found = sorted(one for one in place.iterdir() if one.suffix in FILES)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ModelUnavailable(f"there are several models in {place}: MODEL_ID must name one of {names}")
    return found[0] if found else None


def _configuration_in(folder: Path) -> str:
    """The one folder in the model's own that holds a configuration; empty if there is none, or several."""
    found = [one.parent for one in folder.glob(f"*/{INDEX}")]
    return str(found[0]) if len(found) == 1 else ""


def download(place: str, revision: str | None, cache: Path | None) -> Path:
    """Fetches from the Hub what :func:`load` would load, and no more. Returns its folder, named for the commit.

    ``cache``: where to keep it; None is the Hub's own cache.
    """
    source = Source(place, revision, DiffusionPipeline.load_config(place, revision=revision, cache_dir=cache))
    return Path(DiffusionPipeline.download(place, cache_dir=cache, **_wanted(source)))


def stored_dtype(source: Source) -> str | None:
    """The type that most of the denoiser's weights are stored in; None for quantised ones, or if none is here."""
    file = source.file or _first_of_denoiser(source)
    if file is None or file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as weights:
            kinds = Counter(weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118 (no mapping)
    except SafetensorError:
        return None  # which loading will tell, in more words
    return STORED.get(kinds.most_common(1)[0][0]) if kinds else None


def beginnings(source: Source) -> str:
    """SHA-256 (hex) of the names, sizes and first 64 KiB of the files of weights: it tells models apart, and reads
    little. A safetensors file begins with its tensors' names, dtypes and shapes.
    """
    digest = hashlib.sha256()
    folder = Path(source.place)
    within = [one for one in folder.rglob("*") if one.suffix in FILES] if folder.is_dir() else []
    for file in sorted({*within, *([source.file] if source.file else [])}):
        with file.open("rb") as weights:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + weights.read(64 * 1024))
    return digest.hexdigest()


def _first_of_denoiser(source: Source) -> Path | None:
    """One of the files that its denoiser is loaded from."""
    name = next((one for one in DENOISERS if source.config.get(one)), "")
    found: dict[str | None, Path] = {}
    for file in sorted(Path(source.place, name).glob("*.safetensors"), reverse=True):
        if match := WEIGHTS.fullmatch(file.name):
            found[match["variant"]] = file
    return found.get(form_of(source.config, _files_at(source)).variant) or found.get(None)


def load(source: Source, dtype: torch.dtype) -> Any:
    """The pipeline, on the CPU. Raises what diffusers raises, and ModelUnavailable for one without a denoiser."""
    name = next((one for one in DENOISERS if source.config.get(one)), None)
    if name is None:  # said before gigabytes are read
        raise ModelUnavailable(f"{source.config['_class_name']} has neither a unet nor a transformer")
    if source.file is None:
        return _of_parts(source, dtype)
    if source.file.suffix == ".safetensors" and not _of_denoiser(source.file):
        kind = getattr(diffusers, source.config["_class_name"])
        local = Path(source.place).is_dir()
        return kind.from_single_file(str(source.file), config=source.place, dtype=dtype, local_files_only=local)
    quantised: dict[str, Any] = {}
    if source.file.suffix == ".gguf":
        quantised["quantization_config"] = diffusers.GGUFQuantizationConfig(dtype)
    denoiser = getattr(diffusers, source.config[name][1]).from_single_file(
        str(source.file), config=source.place, subfolder=name, dtype=dtype, **quantised
    )
    return _of_parts(source, dtype, **{name: denoiser})


def form_of(config: Mapping[str, Any], names: Iterable[str]) -> Form:
    """What to load of the files of these ``names`` (with slashes, below the model's own folder).

    A variant only where a part has no other weights. Raises ModelUnavailable if the parts have none in common.
    """
    names, left_out, only = list(names), [], {}
    for part, kind in config.items():
        if part.startswith("_") or not isinstance(kind, list | tuple) or kind[0] is None:
            continue
        own = [name.rpartition("/")[2] for name in names if name.startswith(f"{part}/")]
        found = [match["variant"] for match in map(WEIGHTS.fullmatch, own) if match]
        if not found and part in SPARED and own:
            left_out.append(part)
        elif found and None not in found:
            only[part] = set(found)
    if not only:
        return Form(None, tuple(left_out))
    common = set.intersection(*only.values())
    if not common:
        told = "; ".join(f"{part}: {', '.join(sorted(found))}" for part, found in only.items())
        raise ModelUnavailable(f"its parts have no variant in common: {told}")
    return Form(min(common, key=lambda one: (one not in PREFERRED, one)), tuple(left_out))


def _of_parts(source: Source, dtype: torch.dtype, **given: Any) -> Any:
    return DiffusionPipeline.from_pretrained(source.place, dtype=dtype, **_wanted(source, **given))


def _wanted(source: Source, **given: Any) -> dict[str, Any]:
    """The arguments that name what diffusers is to read; ``given``: parts that are loaded already."""
    form = form_of({name: kind for name, kind in source.config.items() if name not in given}, _files_at(source))
    for name in form.left_out:
        logger.warning(f"the {name} has no safetensors and is left out: no picture is looked over")
    left_out = dict.fromkeys(form.left_out)
    return {"revision": source.revision, "variant": form.variant, "use_safetensors": True, **left_out, **given}


def _files_at(source: Source) -> list[str]:
    """Names of a model's files; of a Hub repository that cannot be reached, of what is in the cache."""
    folder = Path(source.place)
    if not folder.is_dir():
        try:
            return HfApi().list_repo_files(source.place, revision=source.revision)
        except OSError:  # requests', and the Hub's own
            cached = try_to_load_from_cache(source.place, INDEX, revision=source.revision)
            if not isinstance(cached, str):
                return []
            folder = Path(cached).parent
    return [one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()]


def _configured_as(file: Path) -> str:
    """The Hub id of the model whose configuration fits the weights, which diffusers tells by their names and shapes."""
    if file.suffix == ".gguf":
        reason = f"{file.name} holds a denoiser alone: MODEL_CONFIG names the folder or Hub id of the rest"
        raise ModelUnavailable(reason)
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    found: str = fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"]
    return found


def _of_denoiser(file: Path) -> bool:
    """Whether a single file holds the denoiser's weights alone."""
    with safe_open(file, "pt") as weights:
        return not any(name.startswith(OTHER_PARTS) for name in weights.keys())  # noqa: SIM118 (no mapping)
