"""What is saved of a pipeline that cannot be made here."""

from __future__ import annotations

import inspect
import json
from typing import Any

import diffusers


class Parts:
    """The index of a pipeline of a ``kind``, and as many of its parts as there are."""

    def __init__(self, kind: Any, **parts: Any) -> None:
        self.kind, self.parts = kind, parts

    def save_pretrained(self, folder: Any, **settings: Any) -> None:
        index: dict[str, Any] = {"_class_name": self.kind.__name__, "_diffusers_version": diffusers.__version__}
        named = [name for name in inspect.signature(self.kind.__init__).parameters if name != "self"]
        for name in named:
            part = self.parts.get(name)
            index[name] = [type(part).__module__.partition(".")[0], type(part).__name__] if part else [None, None]
            if part:
                part.save_pretrained(folder / name, **settings)
        (folder / "model_index.json").write_text(json.dumps(index))
