"""The tutorial's server, written anew from its description (design.md, section 2): FastAPI, one pipeline, a background
task for each request, results in a dict.

With ``LOCKED=1`` a lock stands around the pipeline: its fair best, for one pipeline object cannot serve two threads.
The only addition is ``completed_at``, so that a client need not ask often to learn how long a picture took.
"""

from __future__ import annotations

import base64
import io
import os
import threading
import time
import uuid
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from fastapi import BackgroundTasks, FastAPI, HTTPException
from pydantic import BaseModel

from .drawing import MODEL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pipelines: list[Any] = []
results: dict[str, dict[str, Any]] = {}
turn = threading.Lock() if os.environ.get("LOCKED") == "1" else nullcontext()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipelines.append(pipe)
    yield


app = FastAPI(lifespan=lifespan)


class GenerationRequest(BaseModel):
    prompt: str
    negative_prompt: str | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    seed: int | None = None


def generate_image(task_id: str, request: GenerationRequest) -> None:
    """The background task; FastAPI runs it in its thread pool, up to 40 at a time."""
    result = results[task_id]
    result["status"] = "processing"
    try:
        generator = None if request.seed is None else torch.Generator("cpu").manual_seed(request.seed)
        with turn:
            image = pipelines[0](
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=generator,
            ).images[0]
        out = io.BytesIO()
        image.save(out, format="PNG")
        result.update(image_base64=base64.b64encode(out.getvalue()).decode(), completed_at=time.time())
        result["status"] = "completed"
    except Exception as fault:
        result.update(status="failed", error_message=f"{type(fault).__name__}: {fault}")


@app.post("/generate", status_code=202)
async def generate(request: GenerationRequest, background: BackgroundTasks) -> dict[str, Any]:
    if not pipelines:
        raise HTTPException(503, "the model is not available")
    task_id = str(uuid.uuid4())
    results[task_id] = {"task_id": task_id, "status": "pending", "prompt": request.prompt}
    results[task_id] |= {"image_base64": None, "error_message": None}
    background.add_task(generate_image, task_id, request)
    return {"task_id": task_id, "status": "pending", "message": "the request was taken"}


@app.get("/results/{task_id}")
async def get_result(task_id: str) -> dict[str, Any]:
    if task_id not in results:
        raise HTTPException(404, "no such task")
    return results[task_id]


@app.get("/health")
async def health() -> dict[str, Any]:
    return {"status": "ok", "model_status": "available" if pipelines else "unavailable"}
