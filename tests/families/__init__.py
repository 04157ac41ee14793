"""Tiny pipelines of every class of diffusers that draws a picture from a prompt: complete, with random weights."""

from __future__ import annotations

from tests.families import language_models, rectified_flows, sana_and_kin, unets
from tests.families.family import Family

FAMILIES: tuple[Family, ...] = (
    *unets.FAMILIES,
    *rectified_flows.FAMILIES,
    *language_models.FAMILIES,
    *sana_and_kin.FAMILIES,
)
