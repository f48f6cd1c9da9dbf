"""Stable Diffusion with random weights, where no trained ones are at hand: time and memory are
those of the real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamfleet.bases import inspect_base
from dreamfleet.bases.quiet import quiet_libraries


@dataclass(frozen=True)
class BaseShape:
    """Sizes of the networks; the kinds of their blocks are Stable Diffusion's.

    Attributes:
        latents: side of the UNet's input (the picture's is 8 times that).
        channels, layers, heads: of the UNet's levels; cross-attention at all but the innermost.
        groups: of the group norms.
        vae_channels: of the autoencoder's four levels.
        text_width, text_layers, text_heads, text_tokens: of the text encoder.
    """

    latents: int
    channels: tuple[int, ...]
    layers: int
    heads: int
    groups: int
    vae_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    text_heads: int
    text_tokens: int


SHAPES = {
    "sd15": BaseShape(64, (320, 640, 1280, 1280), 2, 8, 32, (128, 256, 512, 512), 768, 12, 12, 77),
    "tiny": BaseShape(8, (16, 32), 1, 2, 8, (8, 8, 8, 16), 16, 1, 2, 24),
}


def write_random_base(folder: Path, shape: BaseShape, seed: int = 0) -> Path:
    """Write such a base in diffusers' layout, in bf16 (at SD1.5's shape: 2 GB)."""
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_vae(shape),
            text_encoder=_text_encoder(shape),
            tokenizer=_tokenizer(shape),
            unet=unet_of(shape),
            scheduler=scheduler_of(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    return folder


def scheduler_of(**options: Any) -> DDIMScheduler:
    """Stable Diffusion's noise schedule; `options` are diffusers' own."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **options,
    )


def unet_of(shape: BaseShape) -> UNet2DConditionModel:
    """A UNet of this shape, freshly drawn."""
    inner = len(shape.channels) - 1
    return UNet2DConditionModel(
        sample_size=shape.latents,
        in_channels=4,
        out_channels=4,
        layers_per_block=shape.layers,
        block_out_channels=shape.channels,
        norm_num_groups=shape.groups,
        down_block_types=(*["CrossAttnDownBlock2D"] * inner, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * inner),
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.heads,  # their number: diffusers' old name for it
    )


def _vae(shape: BaseShape) -> AutoencoderKL:
    levels = len(shape.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.vae_channels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=shape.groups,
        sample_size=8 * shape.latents,
    )


def _tokenizer(shape: BaseShape) -> CLIPTokenizer:
    """The embedded base's: what a text costs depends on its length alone."""
    place = inspect_base("embedded").path / "tokenizer"
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        place, model_max_length=shape.text_tokens
    )
    return tokenizer


def _text_encoder(shape: BaseShape) -> CLIPTextModel:
    tokenizer = _tokenizer(shape)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.text_width,
            intermediate_size=4 * shape.text_width,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.text_heads,
            max_position_embeddings=shape.text_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
