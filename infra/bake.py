"""Inside the image's build: puts the weights of ``MODEL_ID``, with their card, where the handlers look for them.

``bake.py CONTEXT WEIGHTS CACHE``: the model goes to ``WEIGHTS/MODEL_ID``. It is a folder of the checkout (``CONTEXT``),
an ``s3://bucket/prefix`` or a hub id. Without one there is nothing to do: the built-in model is part of the package.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

SECRETS = Path("/run/secrets")


def fetch(context: Path, cache: Path, model_id: str, settings: Settings) -> tuple[Path, str | None]:
    """The folder that holds the model, and the revision that names its content, where there is one."""
    if (context / model_id).is_dir():
        return context / model_id, settings.model_revision or None
    if model_id.startswith("s3://"):
        return fetch_model(model_id, settings)
    # The very files that loading would fetch, and no others: no remote code, no pickles, no second copy of the weights.
    found = download(model_id, settings.model_revision or None, cache / "hub")
    return found, found.name  # the cache names the folder for the commit


def bake(context: Path, weights: Path, cache: Path) -> None:
    settings = replace(Settings.load(), cache_dir=str(cache / "s3"))
    weights.mkdir(parents=True)
    name = settings.model_id
    if not name:
        return
    if name.startswith("/") or ".." in Path(name).parts:
        sys.exit(f"MODEL_ID={name}: a folder must lie inside the checkout, and be named from there")
    found, revision = fetch(context, cache, name, settings)
    folder = weights / name
    shutil.copytree(found, folder)
    # bfloat16: half the memory, and the card does not depend on it.
    _, card = load_pipeline(replace(settings, model_id=str(folder), model_revision="", device="cpu", dtype="bfloat16"))
    card = card.model_copy(update={"id": name, "revision": revision, "dtype": "auto"})
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    if (SECRETS / "ca").exists():
        os.environ["SSL_CERT_FILE"] = str(SECRETS / "ca")
    if (SECRETS / "hf_token").exists():
        os.environ["HF_TOKEN_PATH"] = str(SECRETS / "hf_token")

    from handler.aws.weights import fetch_model
    from handler.contract.health import CARD_FILE
    from handler.engine.loading import load_pipeline
    from handler.engine.sources import download
    from handler.settings import Settings

    bake(*(Path(argument) for argument in sys.argv[1:4]))
