"""Thumbnails of unfinished pictures: a linear map from latents to RGB, fitted to the pipeline's VAE at load."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import Developed

SIDE = 128
"""Most pixels of a thumbnail's longer side."""
GOOD_FIT = 0.15
"""Largest mean error (0 to 1) of the fitted colours with which previews are shown."""


class LatentPreviewer:
    """Latents to RGB by ``weights`` [C + 1, 3]: one row for each latent channel and one for a constant."""

    def __init__(self, weights: np.ndarray[Any, Any]) -> None:
        self._weights = weights

    @classmethod
    def fit(cls, latents: np.ndarray[Any, Any], pictures: np.ndarray[Any, Any]) -> LatentPreviewer | None:
        """Least squares over all pixels of ``latents`` [N, C, h, w] and their ``pictures`` [N, H, W, 3] (0 to 1).

        None if H is no multiple of h, or if the fit is worse than GOOD_FIT.
        """
        if latents.ndim != 4 or pictures.ndim != 4 or pictures.shape[1] % latents.shape[2]:
            return None
        count, channels, height, width = latents.shape
        blocks = pictures.reshape(count, height, -1, width, pictures.shape[2] // width, 3).mean(axis=(2, 4))
        known = _with_constant(latents.transpose(0, 2, 3, 1).reshape(-1, channels))
        wanted = blocks.reshape(-1, 3)
        weights = np.linalg.lstsq(known, wanted, rcond=None)[0]
        return cls(weights) if np.abs(known @ weights - wanted).mean() < GOOD_FIT else None

    def jpeg(self, latents: torch.Tensor) -> bytes:
        """A JPEG of the latents [C, h, w], at most SIDE pixels a side."""
        values = latents.float().cpu().numpy()
        channels, height, width = values.shape
        colours = _with_constant(values.transpose(1, 2, 0).reshape(-1, channels)) @ self._weights
        pixels = (colours.reshape(height, width, 3).clip(0, 1) * 255).astype(np.uint8)
        scale = SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        out = io.BytesIO()
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
        return out.getvalue()


def _with_constant(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([rows, np.ones((len(rows), 1), rows.dtype)], axis=1)


def fit_previewer(
    run: Callable[[dict[str, Any]], Developed], call: dict[str, Any], pictures: np.ndarray[Any, Any]
) -> LatentPreviewer | None:
    """A previewer for this pipeline, fitted to the ``pictures`` of a ``call`` and to the latents of the same call."""
    latents = run({**call, "output_type": "latent"}).pictures
    if not isinstance(latents, torch.Tensor):
        return None
    return LatentPreviewer.fit(latents.float().cpu().numpy(), pictures)


def predict_x0(scheduler: Any, sample: torch.Tensor, timestep: Any, answered: torch.Tensor) -> torch.Tensor:
    """The clean latents x0 [C, h, w] predicted from a denoiser call's input ``sample`` and output, for its last row.

    With a from ``alphas_cumprod``: x0 = (x - √(1-a) ε)/√a, or √a x - √(1-a) v (Ho et al. 2020, Salimans and Ho 2022);
    for flow matching x0 = x - t v (Lipman et al. 2022).
    """
    x: torch.Tensor = sample[-1].float()
    answer: torch.Tensor = answered[-1].float()
    time = float(torch.as_tensor(timestep).flatten()[-1])
    cumulated = getattr(scheduler, "alphas_cumprod", None)
    if cumulated is None:
        part: float = time / scheduler.config.num_train_timesteps
        return x - part * answer
    a: torch.Tensor = cumulated[min(len(cumulated) - 1, round(time))].to(x.device, torch.float32)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return a.sqrt() * x - (1 - a).sqrt() * answer
    if kind == "sample":
        return answer
    return (x - (1 - a).sqrt() * answer) / a.sqrt()
