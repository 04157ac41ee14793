"""Tiny pipelines of every class of diffusers that draws a picture from a prompt: complete, with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.families import deprecated, language_models, newest, recent, rectified_flows, sana_and_kin, two_stages, unets

if TYPE_CHECKING:
    from tests.families.family import Family

FAMILIES: tuple[Family, ...] = (
    *unets.FAMILIES,
    *rectified_flows.FAMILIES,
    *language_models.FAMILIES,
    *sana_and_kin.FAMILIES,
    *two_stages.FAMILIES,
    *recent.FAMILIES,
    *newest.FAMILIES,
    *deprecated.FAMILIES,
)
