"""How strong each layer of a LoRA file is: alpha / rank, out of PEFT's config in its metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from torch import Tensor

from dreamfleet.errors import AdapterFileError

PEFT_METADATA_KEY = "lora_adapter_metadata"  # diffusers' name for PEFT's config in a file


def lora_scales(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, float]:
    """Of each layer alpha / rank (alpha / sqrt(rank) for rsLoRA); without metadata alpha is the
    rank, as diffusers takes it.

    Args:
        state: a file's tensors, whose ranks are at least 1.

    Raises:
        AdapterFileError: the metadata cannot be read, or a scale is no finite number.
    """
    try:
        about = _by_component(metadata)
        ranks = {
            key.removesuffix(".lora_A.weight"): int(value.shape[0])
            for key, value in state.items()
            if key.endswith(".lora_A.weight")
        }
        scales = {layer: _scale(about, layer, rank) for layer, rank in ranks.items()}
    except (
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        re.error,
    ) as error:
        raise AdapterFileError(
            f"{path}: {PEFT_METADATA_KEY} in its metadata is no config of PEFT's ({error})"
        ) from error
    for layer, scale in scales.items():
        if not math.isfinite(scale):
            raise AdapterFileError(
                f"{path}: layer {layer} has alpha / rank {scale}; expected a finite number"
            )
    return scales


def _by_component(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's config of unet, text_encoder and text_encoder_2; in a file they are one flat dict."""
    about: dict[str, dict[str, Any]] = {}
    for key, value in json.loads(metadata.get(PEFT_METADATA_KEY, "{}")).items():
        component, _, name = key.partition(".")
        about.setdefault(component, {})[name] = value
    return about


def _scale(about: Mapping[str, Mapping[str, Any]], layer: str, rank: int) -> float:
    component, _, path = layer.partition(".")
    own = about.get(component, {})
    patterns = own.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), path), own.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)
