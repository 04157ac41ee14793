"""What the peers' servers share: the built-in model loaded, and requests drawn in as few pipeline calls as they allow.

Run as a program it draws the right pictures: the requests on stdin, one after another, in one thread of one process.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

MODEL = Path(__file__).parents[3] / "handler" / "model"
Request = dict[str, Any]
"""``prompt``, ``num_inference_steps``, ``guidance_scale``, ``seed``."""


def fast() -> str:
    """bfloat16 where the processor computes in it, else float32; Darkroom's own rule."""
    known = torch.cpu.get_capabilities()
    return "bfloat16" if known.get("avx512_bf16") or known.get("amx_bf16") else "float32"


def load(dtype: str) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, dtype=getattr(torch, dtype), use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, requests: list[Request]) -> list[str]:
    """Base64 PNGs, in the order of the requests. Those of equal parameters share one pipeline call: a stock pipeline
    takes one number of steps and one guidance scale for a whole batch.
    """
    groups: dict[tuple[int, float], list[int]] = {}
    for at, request in enumerate(requests):
        groups.setdefault((request["num_inference_steps"], request["guidance_scale"]), []).append(at)
    pictures = [""] * len(requests)
    for (steps, guidance), places in groups.items():
        images = pipe(
            prompt=[requests[at]["prompt"] for at in places],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(requests[at]["seed"]) for at in places],
        ).images
        for at, image in zip(places, images, strict=True):
            pictures[at] = encode(image)
    return pictures


def encode(image: Any) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def main(dtype: str) -> None:
    """Prints {"dtype", "pictures", "seconds"}; ``dtype`` may be ``fast``."""
    requests = json.load(sys.stdin)
    dtype = fast() if dtype == "fast" else dtype
    pipe = load(dtype)
    draw(pipe, requests[:1])
    began = time.perf_counter()
    pictures = [draw(pipe, [request])[0] for request in requests]
    print(json.dumps({"dtype": dtype, "pictures": pictures, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1])
