"""Random Stable-Diffusion-shaped bases, small enough to make in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.evaluation.benchmarks.random_base import scheduler_of

CONTEXT_TOKENS = 24
TEXT_WIDTH = 16
SECOND_TEXT_WIDTH = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = ("sks", "dog", "cat", "photo", "of", "the", "ktn")


def make_tiny_sd1(
    folder: str | Path,
    *,
    latent_channels: int = 4,
    prediction_type: str = "epsilon",
    seed: int = 0,
    rescale_betas_zero_snr: bool = False,
    **unet: Any,
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
            unet=_unet(latent_channels, **unet),
            scheduler=scheduler_of(
                prediction_type=prediction_type, rescale_betas_zero_snr=rescale_betas_zero_snr
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def make_tiny_sd2(folder: str | Path, *, seed: int = 0) -> Path:
    """As `make_tiny_sd1`, of the sd2 family: linear transformer ends, v-prediction."""
    return make_tiny_sd1(
        folder, prediction_type="v_prediction", seed=seed, use_linear_projection=True
    )


def make_tiny_sdxl(folder: str | Path, *, seed: int = 0) -> Path:
    """A random base of the sdxl family: three stages, two text encoders; 64 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tiny_tokenizer()
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(4),
            text_encoder=_text_encoder(tokenizer, layers=2),
            text_encoder_2=_text_encoder(tokenizer, layers=2, width=SECOND_TEXT_WIDTH, second=True),
            tokenizer=tokenizer,
            tokenizer_2=make_tiny_tokenizer(),
            unet=_unet(
                4,
                block_out_channels=(16, 32, 32),
                layers_per_block=2,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 1, 2),
                use_linear_projection=True,
                cross_attention_dim=TEXT_WIDTH + SECOND_TEXT_WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=SECOND_TEXT_WIDTH + 6 * 4,
            ),
            scheduler=scheduler_of(),
            add_watermarker=False,
        )
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


FAMILIES = {"sd1": make_tiny_sd1, "sd2": make_tiny_sd2, "sdxl": make_tiny_sdxl}


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


def add_safety_checker(folder: Path, threshold: float) -> None:
    """A random checker that finds each concept above a cosine of `threshold`."""
    config = CLIPConfig(
        projection_dim=8,
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
    )
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(2.0)
    checker.save_pretrained(folder / "safety_checker")
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(
        folder / "feature_extractor"
    )
    path = folder / "model_index.json"
    named = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}))


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


def _unet(latent_channels: int, **options: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**settings, **options})


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


def _text_encoder(
    tokenizer: CLIPTokenizer, *, layers: int = 1, width: int = TEXT_WIDTH, second: bool = False
) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if second else CLIPTextModel(config)
