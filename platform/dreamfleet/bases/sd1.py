"""Stable Diffusion 1.x, and every model of the same layout: one CLIP text encoder, cross-attention
only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.bases.families import Family
from dreamfleet.bases.quiet import quiet_libraries

if TYPE_CHECKING:
    from dreamfleet.bases.base import Base
    from dreamfleet.diffusion.conditioning import Conditioning


def load_text_encoder(folder: Path, component: str, **options: Any) -> Any:
    """The text encoder and transformers' loading info."""
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(folder / component, **options)


def encode_prompts(base: Base, prompts: list[str]) -> Conditioning:
    """[B, L, D]: CLIP's last hidden state after its final layer norm, padded to the full
    context.
    """
    from dreamfleet.diffusion.conditioning import Conditioning

    tokens = base.token_ids(base.tokenizer, prompts)
    return Conditioning(base.text_encoder(tokens)[0])


def build_pipeline(base: Base) -> Any:
    """diffusers' own pipeline around the base's modules (nothing is copied)."""
    from dreamfleet.diffusion.samplers import make_scheduler

    with quiet_libraries():  # importing the pipeline's optional parts is not silent, nor quick
        from diffusers import StableDiffusionPipeline
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=make_scheduler(base.scheduler_config, "ddim"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FAMILY = Family(
    "sd1", ("text_encoder",), ("tokenizer",), load_text_encoder, encode_prompts, build_pipeline
)
