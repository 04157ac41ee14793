"""What a command needs, looked at before anything is loaded: the environment's deployment, and a model's folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelUnavailable
from ..process import use
from ..settings import Settings

MODELS = "a model is a hub id, a folder or s3://bucket/prefix"


def deployment(*names: str) -> Settings:
    """Its settings. Raises SettingsError, with an example, if one of ``names`` is unset, or without credentials."""
    from ..aws.credentials import require_credentials

    return require_credentials(Settings.load().require(*names))


def with_model(model: str | None, **environ: str) -> Settings:
    """The settings, with this model if one is given. Raises ModelUnavailable, before torch takes its seconds to import,
    for a folder that is not there or holds no pipeline.
    """
    settings = use(**environ, **({"MODEL_ID": model} if model else {}))
    folder = Path(settings.model_source)
    if not settings.model_id.startswith(("/", "./", "../")) and not folder.is_dir():
        return settings
    if not (folder / "model_index.json").is_file():
        lacks = "it has no model_index.json" if folder.is_dir() else "there is no such folder"
        raise ModelUnavailable(f"cannot load {settings.model_id}: {lacks}; {MODELS}")
    return settings
