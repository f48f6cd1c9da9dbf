"""Adapters of random numbers on tiny bases: their pictures are noise, and all different."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from torch import Tensor

from dreamfleet.adapters.files import save_lora
from dreamfleet.adapters.lora import ADAPTER_NAME
from dreamfleet.adapters.lora_slots import LoraShape, fresh_lora, lora_shape_metadata, lora_to_file
from dreamfleet.bases import Base, load_base

SIZE = 0.1


def set_lora_state(base: Base, state: Mapping[str, Tensor]) -> None:
    """Put the values of `lora.lora_state` back into an adapter of the same shape."""
    for prefix, module in (("unet", base.unet), *base.text_encoders.items()):
        own = {
            key.removeprefix(f"{prefix}."): value
            for key, value in state.items()
            if key.startswith(f"{prefix}.")
        }
        if own:
            set_peft_model_state_dict(module, own, adapter_name=ADAPTER_NAME)


def write_adapter(base: Base, folder: Path, seed: int, rank: int = 4) -> Path:
    """A LoRA on all layers, with the adapter.json that `personalize` would put beside it."""
    shape = LoraShape(rank, float(rank), "all")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: SIZE * torch.randn(value.shape, generator=generator)
        for name, value in lora_to_file(fresh_lora(base, shape, seed)).items()
    }
    save_lora(folder, base, tensors, lora_shape_metadata(base, shape))
    about = {
        "name": folder.name,
        "display_name": folder.name.capitalize(),
        "class_word": "dog",
        "token": "sks",
        "base": {"name": base.name, "hash": base.hash},
        "metrics": {"clip_i": 0.8, "clip_i.without_adapter": 0.5},
    }
    (folder / "adapter.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def write_adapters(base_folder: Path, folder: Path, names: Sequence[str]) -> Path:
    """A folder of adapters; the n-th has seed n."""
    base = load_base(base_folder)
    for seed, name in enumerate(names):
        write_adapter(base, folder / name, seed)
    return folder
