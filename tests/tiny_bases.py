"""Random Stable-Diffusion-shaped bases, small enough to make in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamfleet.bases.quiet import quiet_libraries

CONTEXT_TOKENS = 24
TEXT_WIDTH = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = ("sks", "dog", "cat", "photo", "of", "the", "ktn")


def make_tiny_sd1(
    folder: str | Path,
    *,
    latent_channels: int = 4,
    prediction_type: str = "epsilon",
    seed: int = 0,
    rescale_betas_zero_snr: bool = False,
) -> Path:
    """Write a random base of the sd1 family in diffusers layout: 64 pixels, 16x16 latents.

    Two calls with the same arguments write equal weights. Global random state is left as it was.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_vae(latent_channels),
            text_encoder=_text_encoder(make_tiny_tokenizer()),
            tokenizer=make_tiny_tokenizer(),
            unet=_unet(latent_channels),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=prediction_type,
                rescale_betas_zero_snr=rescale_betas_zero_snr,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def make_tiny_tokenizer() -> CLIPTokenizer:
    """Characters, and a few words as single tokens; every printable ASCII text encodes."""
    letters = [_byte_symbol(value) for value in range(256)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            vocabulary.append(pieces[0])
    vocabulary = list(dict.fromkeys([*vocabulary, BOS, EOS]))
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(vocabulary)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=CONTEXT_TOKENS,
    )


def _byte_symbol(value: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    kept = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    if value in kept:
        return chr(value)
    return chr(256 + [byte for byte in range(256) if byte not in kept].index(value))


def _unet(latent_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )


def _vae(latent_channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.5,
        mid_block_add_attention=False,
    )


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
