"""Examples for the OpenAPI document, all of one task. A test validates each against its contract."""

from __future__ import annotations

from typing import Any

URL = "https://api.example.com/v1"
WHEN = "2026-01-31T12:00:0{}Z"

REQUESTS: Any = {
    "shortest": {"summary": "A prompt is enough", "value": {"prompt": "a red apple"}},
    "whole": {
        "summary": "Most of what can be said",
        "value": {
            "prompt": "a red apple on a blue background",
            "negative_prompt": "blurry",
            "num_inference_steps": 20,
            "guidance_scale": 4.0,
            "seed": 7,
            "num_images": 2,
            "output_format": "webp",
            "quality": 80,
            "tags": ["fruit"],
        },
    },
}
RESOLVED: dict[str, Any] = {
    "prompt": "a red apple",
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "seed": 7,
    "width": 64,
    "height": 64,
    "num_images": 1,
    "output_format": "png",
    "task_id": "apple-1",
    "tags": [],
}


def _task(status: str) -> dict[str, Any]:
    at = f"{URL}/results/apple-1"
    message = f"task apple-1 is {status}"
    return {
        "task_id": "apple-1",
        "status": status,
        "message": message + ("; ask for it at /results/apple-1" if status == "pending" else ""),
        "status_url": at,
        "result_url": f"{at}?wait=20",
        "cancel_url": at,
    }


SUBMITTED, CANCELLED = _task("pending"), _task("cancelled")
QUOTE: dict[str, Any] = {
    "request": RESOLVED,
    "model": "built-in",
    "images": 1,
    "seconds": 0.134,
    "dollars": 0.0000517,
    "basis": "0.0062 s a step and 0.01 s beside, measured by the worker that loaded the model; "
    "Lambda x86_64, 3008 MB at list prices of 2026-06, us-east-1",
}
RESULT: dict[str, Any] = {
    "task_id": "apple-1",
    "status": "completed",
    "prompt": "a red apple",
    "error_message": None,
    "image_base64": None,
    "sequence": 3,
    "origin": None,
    "request": RESOLVED,
    "model": {"id": "built-in", "revision": None, "pipeline": "StableDiffusionPipeline", "dtype": "float32"},
    "created_at": WHEN.format(0),
    "started_at": WHEN.format(1),
    "completed_at": WHEN.format(2),
    "queued_at": WHEN.format(0),
    "attempt": 1,
    "tries": 0,
    "spent_seconds": 0.12,
    "saved_step": 0,
    "warnings": [],
    "attempts": [
        {
            "number": 1,
            "started_at": WHEN.format(1),
            "ended_at": WHEN.format(2),
            "outcome": "completed",
            "code": None,
            "message": None,
        }
    ],
    "progress": {"step": 20, "steps": 20, "fraction": 1.0, "eta_seconds": 0.0},
    "input": None,
    "preview_url": None,
    "images": [
        {
            "url": "https://my-bucket.s3.eu-central-1.amazonaws.com/tasks/apple-1/1/0.png?X-Amz-Signature=…",
            "seed": 7,
            "width": 64,
            "height": 64,
            "content_type": "image/png",
            "bytes": 8192,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        }
    ],
    "error": None,
    "timings": {
        "queue": 1.0,
        "load": 0.0,
        "text": 0.004,
        "denoise": 0.124,
        "decode": 0.006,
        "encode": 0.002,
        "upload": 0.02,
        "total": 0.17,
    },
    "batch_size": 1,
    "cold_start": False,
    "purged": False,
    "body": None,
    "expires_at": "2026-03-02T12:00:00Z",
}
UPLOAD: dict[str, Any] = {
    "upload_id": "0d3f7c1e-5a0b-4e0c-9d53-8f3c1a4b2e6d",
    "url": "https://my-bucket.s3.eu-central-1.amazonaws.com/",
    "fields": {
        "Content-Type": "image/png",
        "key": "uploads/0d3f7c1e-5a0b-4e0c-9d53-8f3c1a4b2e6d",
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": "…",
        "x-amz-date": "20260131T120000Z",
        "policy": "…",
        "x-amz-signature": "…",
    },
    "max_bytes": 10485760,
    "content_types": ["image/png", "image/jpeg", "image/webp"],
    "expires_at": "2026-01-31T12:10:00Z",
}
PAGE: dict[str, Any] = {"results": [RESULT], "cursor": "8230139200000-apple-1"}
CARD: dict[str, Any] = {
    "id": "built-in",
    "revision": None,
    "pipeline": "StableDiffusionPipeline",
    "dtype": "float32",
    "parameters": ["num_inference_steps", "seed", "width"],
    "defaults": {"num_inference_steps": 20, "guidance_scale": 4.0, "width": 64, "height": 64},
    "limits": {"num_inference_steps": 200, "min_side": 32, "max_side": 128, "num_images": 8},
    "size_multiple": 8,
}
HEALTH: dict[str, Any] = {
    "status": "ok",
    "model_status": "available",
    "model": CARD,
    "reason": None,
    "measured": {"step": 0.0062, "other": 0.01, "pixels": 4096},
    "host": "Lambda x86_64, 3008 MB",
}
MODELS: dict[str, Any] = {
    "models": [
        {
            **CARD,
            "status": "available",
            "reason": None,
            "parameters": [
                {"name": "prompt", "type": "string", "required": True, "min_length": 1, "max_length": 2000},
                {"name": "width", "type": "integer", "required": False, "default": 64, "least": 32, "most": 128},
            ],
        }
    ]
}


def error(code: str, message: str) -> dict[str, Any]:
    """An ErrorResponse."""
    return {"error": {"code": code, "message": message, "details": []}}


IMAGES_REQUESTS: dict[str, Any] = {
    "example": {"summary": "One picture", "value": {"prompt": "a red apple on a blue background", "size": "64x64"}},
}
IMAGES: dict[str, Any] = {
    "created": 1767225600,
    "data": [{"url": "https://darkroom-images.s3.eu-central-1.amazonaws.com/tasks/apple-1/1/0.png?X-Amz-Signature=00"}],
    "output_format": "png",
    "size": "64x64",
    "task_id": "apple-1",
}
OPENAI_MODELS: dict[str, Any] = {
    "object": "list",
    "data": [{"id": "built-in", "object": "model", "created": 0, "owned_by": "darkroom"}],
}


def openai_error(code: str, message: str) -> dict[str, Any]:
    """In OpenAI's envelope."""
    kind = "invalid_request_error" if code == "INVALID_REQUEST" else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
