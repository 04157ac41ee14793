"""Each family is drawn together, alone or not at all, and never otherwise than by its own pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import FAMILIES
from .matrix import row_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .family import Family

pytestmark = [pytest.mark.usefixtures("one_core"), pytest.mark.filterwarnings("ignore")]  # diffusers' deprecations
ALONE = {
    "DreamLiteMobilePipeline",
    "DreamLitePipeline",
    "GlmImagePipeline",
    "HiDreamImagePipeline",
    "HunyuanDiTPAGPipeline",
    "Kandinsky3Pipeline",
    "Kandinsky5T2IPipeline",
    "KandinskyCombinedPipeline",
    "KandinskyV22CombinedPipeline",
    "PixArtSigmaPAGPipeline",
    "QwenImage21Pipeline",
    "SanaPAGPipeline",
    "StableDiffusion3PAGPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionXLPAGPipeline",
    "ZImageOmniPipeline",
    "ZImagePipeline",
}
"""Each for a reason that the log tells at load: a merged forward differs, or the pipeline changes its networks."""
WITHOUT = "has neither a unet nor a transformer"
REFUSED = {
    "Cosmos2TextToImagePipeline": "`cosmos_guardrail` is not installed",
    "Ideogram4Pipeline": "Only one of `guidance_scale` and `guidance_schedule` may be set.",
    "OmniGenPipeline": "it needs torchvision, which is not installed",
    "StableCascadeCombinedPipeline": WITHOUT,
    "UnCLIPPipeline": WITHOUT,
    "VQDiffusionPipeline": "has no class `LearnedClassifierFreeSamplingEmbeddings`",
    "VersatileDiffusionTextToImagePipeline": WITHOUT,
    "WuerstchenCombinedPipeline": WITHOUT,
}
"""With the reason; Ideogram by the pipeline itself, which has defaults for both, VQDiffusion by diffusers, which writes
what it does not read again."""
FEW = {
    "OmniGenPipeline",
    "QwenImage21Pipeline",
    "QwenImagePipeline",
    "SanaPipeline",
    "StableCascadeCombinedPipeline",
    "StableDiffusionPAGPipeline",
    "ZImagePipeline",
}
"""Those that ``make test`` tries; ``make families`` tries all."""
UNSAVED = {
    "AmusedPipeline",
    "GlmImagePipeline",
    "Kandinsky5T2IPipeline",
    "LDMTextToImagePipeline",
    "QwenImage21Pipeline",
    "SemanticStableDiffusionPipeline",
    "StableDiffusionPanoramaPipeline",
    "StableDiffusionPipelineSafe",
    "UniDiffuserPipeline",
    "ZImageOmniPipeline",
    "ZImagePipeline",
}
"""What their denoisers return is no single tensor, or they write into what they are told: a task begins anew."""
CHAOTIC = {"IFPipeline": 2.0}
"""With random weights it makes of a rounding of 0.02 of 255 one of 1.5 within five steps."""


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in FEW else [pytest.mark.families]


@pytest.mark.parametrize("family", [pytest.param(one, id=one.name, marks=marks_of(one.name)) for one in FAMILIES])
def test_a_family(family: Family, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    row = row_of(family, tmp_path)
    record_property("row", row.line())
    if family.name in REFUSED:
        assert row.state == "refused"
        assert REFUSED[family.name] in row.reason
        return
    assert row.state == ("alone" if family.name in ALONE else "together"), row.reason
    assert row.alone == 0, "one task alone is the pipeline's own picture, to the last bit"
    assert row.together <= CHAOTIC.get(family.name, 1.0)
    assert row.resumed in ({"not saved"} if family.name in UNSAVED else {"same", "one step"})
    assert row.steps == str(family.steps) or row.steps.isdigit()
    assert row.images in {"1", "2"}
    assert row.without_effect == []
