"""Stable Diffusion XL (Podell et al., arXiv 2307.01952): two text encoders, a pooled embedding and
the picture's size and crop as further conditions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.bases.families import Family
from dreamfleet.bases.quiet import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from dreamfleet.bases.base import Base
    from dreamfleet.diffusion.conditioning import Conditioning


def load_text_encoder(folder: Path, component: str, **options: Any) -> Any:
    """One of the two text encoders and transformers' loading info."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind: Any = CLIPTextModel if component == "text_encoder" else CLIPTextModelWithProjection
    return kind.from_pretrained(folder / component, **options)


def encode_prompts(base: Base, prompts: list[str]) -> Conditioning:
    """[B, L, D1 + D2]: both encoders' hidden states before their last layer; pooled [B, P]: the
    second one's projected end-of-text state.

    The empty prompt is all zeros where the base was trained so (`force_zeros_for_empty_prompt`).
    """
    import torch

    from dreamfleet.diffusion.conditioning import Conditioning

    parts: list[Tensor] = []
    pooled: Any = None
    for tokenizer, encoder in (
        (base.tokenizer, base.text_encoder),
        (base.tokenizer_2, base.text_encoder_2),
    ):
        output = encoder(base.token_ids(tokenizer, prompts), output_hidden_states=True)
        parts.append(output.hidden_states[-2])
        pooled = output[0]
    embeds = torch.cat(parts, dim=-1)
    if base.files.index.get("force_zeros_for_empty_prompt", True):
        given = torch.tensor([prompt != "" for prompt in prompts], device=embeds.device)
        embeds, pooled = embeds * given[:, None, None], pooled * given[:, None]
    return Conditioning(embeds, pooled)


def build_pipeline(base: Base) -> Any:
    """diffusers' own pipeline around the base's modules (nothing is copied)."""
    from dreamfleet.diffusion.samplers import make_scheduler

    with quiet_libraries():
        from diffusers import StableDiffusionXLPipeline
    pipeline = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        text_encoder_2=base.text_encoder_2,
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer_2,
        unet=base.unet,
        scheduler=make_scheduler(base.scheduler_config, "ddim"),
        force_zeros_for_empty_prompt=base.files.index.get("force_zeros_for_empty_prompt", True),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FAMILY = Family(
    "sdxl",
    ("text_encoder", "text_encoder_2"),
    ("tokenizer", "tokenizer_2"),
    load_text_encoder,
    encode_prompts,
    build_pipeline,
)
