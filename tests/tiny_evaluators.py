"""Evaluators of the drawn world with random weights: their judgement is noise, their work real."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
)

from dreamfleet.world.evaluators.models import IdentityEncoder, OracleA, OracleB, Segmenter
from tests.tiny_bases import make_tiny_tokenizer

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def make_tiny_evaluators(folder: Path) -> Path:
    """Write random weights of every evaluator as `load_oracle` and the others read them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "oracle_a": OracleA(),
            "oracle_b": OracleB(),
            "identity": IdentityEncoder(),
            "segmenter": Segmenter(),
        }
        for name, model in models.items():
            (folder / name).mkdir(parents=True)
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(state, folder / name / "model.safetensors")
        write_tiny_clip(folder / "clip", TOWER, image_size=64, projection_dim=12)
    return folder


def write_tiny_clip(
    folder: Path, tower: dict[str, int], *, image_size: int, projection_dim: int
) -> None:
    """A CLIP with random weights; `tower`: sizes of both its towers."""
    tokenizer = make_tiny_tokenizer()
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "image_size": image_size, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tiny_dino(folder: Path, tower: dict[str, int] = TOWER) -> Path:
    """A DINO-shaped ViT with random weights, as `DinoBackbone` reads it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = ViTConfig(**tower, image_size=56, patch_size=14)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def write_tiny_blip(folder: Path, tower: dict[str, int] = TOWER) -> Path:
    """A BLIP with random weights, as `BlipBackbone` reads it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["a", "photo", "of", "dog", "running", "sks"]
    text = {
        **tower,
        "vocab_size": len(words),
        "max_position_embeddings": 24,
        "encoder_hidden_size": tower["hidden_size"],
        "pad_token_id": 0,
        "bos_token_id": 2,
        "sep_token_id": 3,
    }
    vision = {**tower, "image_size": 32, "patch_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=12)
        BlipForImageTextRetrieval(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder
