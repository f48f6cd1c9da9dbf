"""Published metrics, one file each; the backbone is part of every number's name.

    clip_i, dino_i     pictures against photos of the subject      higher is more faithful
    clip_t, blip_t     pictures against their prompts              higher fits the text better
    pres               class pictures against photos               lower: the class did not drift
    div                pictures of one prompt among themselves     higher: more varied

Real bases: CLIP ViT-B/32, DINO ViT-S/16, BLIP base ITM, LPIPS. Embedded base: the world's
evaluators (`world_metrics` adds what only a drawn world can measure). There is no BLIP of the
world, and BLIP-T is left out there: another name for the same small CLIP would only look like a
second opinion.
"""

from dreamfleet.evaluation.metrics.backbones import (
    BLIP_NAME,
    CLIP_NAME,
    DINO_NAME,
    BlipBackbone,
    ClipBackbone,
    DinoBackbone,
    ImageBackbone,
    ImageTextBackbone,
    WorldClipBackbone,
    WorldIdentityBackbone,
)
from dreamfleet.evaluation.metrics.blip_t import blip_t
from dreamfleet.evaluation.metrics.clip_i import clip_i
from dreamfleet.evaluation.metrics.clip_t import clip_t
from dreamfleet.evaluation.metrics.dino_i import dino_i
from dreamfleet.evaluation.metrics.div import EncoderDistance, LpipsDistance, PairDistance, div
from dreamfleet.evaluation.metrics.pres import pres
from dreamfleet.evaluation.metrics.score import Score

__all__ = [
    "BLIP_NAME",
    "CLIP_NAME",
    "DINO_NAME",
    "BlipBackbone",
    "ClipBackbone",
    "DinoBackbone",
    "EncoderDistance",
    "ImageBackbone",
    "ImageTextBackbone",
    "LpipsDistance",
    "PairDistance",
    "Score",
    "WorldClipBackbone",
    "WorldIdentityBackbone",
    "blip_t",
    "clip_i",
    "clip_t",
    "dino_i",
    "div",
    "pres",
]
