"""How strong each layer of a LoRA file is: alpha / rank, out of PEFT's config in its metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from dreamfleet.errors import AdapterFileError

PEFT_METADATA_KEY = "lora_adapter_metadata"  # diffusers' name for PEFT's config in a file
# PEFT matches layers' names against these as regular expressions; a file may hold one that never
# comes to an end.
PATTERNS = ("rank_pattern", "alpha_pattern", "layers_pattern", "target_modules", "exclude_modules")
_LAYER_NAME = re.compile(r"\^?[\w.-]+")
# A text encoder's layer from the root on, which not every transformers calls the same
# (`adapters.names`); the rest of the name finds it under all of them.
_TEXT_ROOT = re.compile(r"^\^?(?:text_model\.)?(?=encoder\.)")
_KNOWN = frozenset(field.name for field in fields(LoraConfig))
# PEFT's options for layers that compute something else, or more, than W x + alpha / rank B A x.
OTHER_KINDS = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
)
# How factors may have begun; the other ways take their start out of the base's weights.
STARTS = ("none", "true", "false", "gaussian", "orthogonal", "eva", "mica")


def lora_scales(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, float]:
    """Of each layer alpha / rank (alpha / sqrt(rank) for rsLoRA); without metadata alpha is the
    rank, as diffusers takes it.

    Args:
        state: a file's tensors, whose ranks are at least 1.

    Raises:
        AdapterFileError: the metadata cannot be read, tell of another kind than plain LoRA or of
            other ranks, or hold regular expressions; or a scale is no finite number.
    """
    try:
        about = peft_configs(metadata)
        for component, own in about.items():
            _check_plain(path, component, own)
        ranks = {
            key.removesuffix(".lora_A.weight"): int(value.shape[0])
            for key, value in state.items()
            if key.endswith(".lora_A.weight")
        }
        if not metadata.get(PEFT_METADATA_KEY):
            return dict.fromkeys(ranks, 1.0)
        scales = {layer: _scale(path, about, layer, rank) for layer, rank in ranks.items()}
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


def peft_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's config of unet, text_encoder and text_encoder_2; in a file they are one flat dict.

    Without options that are empty and unknown to this PEFT (a later one's, not used), and with
    patterns that match text encoders' layers whatever transformers calls them.

    Raises:
        ValueError, TypeError, AttributeError, RecursionError: they are no config of PEFT's.
    """
    about: dict[str, dict[str, Any]] = {}
    for key, value in json.loads(metadata.get(PEFT_METADATA_KEY) or "{}").items():
        component, _, name = key.partition(".")
        if value or name in _KNOWN:
            about.setdefault(component, {})[name] = _any_root(component, name, value)
    return about


def _any_root(component: str, option: str, value: Any) -> Any:
    if not component.startswith("text_encoder") or option not in ("rank_pattern", "alpha_pattern"):
        return value
    return {_TEXT_ROOT.sub("", pattern): own for pattern, own in (value or {}).items()}


def _check_plain(path: Path, component: str, own: Mapping[str, Any]) -> None:
    """Refuse another kind of LoRA, whose numbers would be wrong here, and regular expressions."""
    wrong = [option for option in OTHER_KINDS if own.get(option) not in (None, False, [])]
    wrong += sorted(own.keys() - _KNOWN)
    wrong += ["bias"] if own.get("bias", "none") != "none" else []
    wrong += (
        ["init_lora_weights"] if str(own.get("init_lora_weights")).lower() not in STARTS else []
    )
    if wrong:
        raise AdapterFileError(
            f"{path}: its metadata say {component}.{wrong[0]} = {_short(own[wrong[0]])}; expected "
            "a plain LoRA (alpha / rank times B A, on the base's own weights); convert it with "
            "PEFT first"
        )
    for option in PATTERNS:
        given = own.get(option) or ()
        for name in [given] if isinstance(given, str) else given:
            if not _LAYER_NAME.fullmatch(name):
                raise AdapterFileError(
                    f"{path}: its metadata say {_short(name)} in {component}.{option}; expected "
                    "names of layers such as to_q or ^mid_block.attentions.0.proj_in, no regular "
                    "expressions; write the layers out"
                )


def _scale(path: Path, about: Mapping[str, Mapping[str, Any]], layer: str, rank: int) -> float:
    component, _, name = layer.partition(".")
    own = about.get(component, {})
    told = _of_layer(own, "rank_pattern", name, own.get("r", LoraConfig.r))
    if told != rank:
        raise AdapterFileError(
            f"{path}: layer {layer} has rank {rank}, and rank {_short(told)} by the file's "
            "metadata; expected the same; save the adapter again, with its own config"
        )
    alpha = _of_layer(own, "alpha_pattern", name, own.get("lora_alpha", LoraConfig.lora_alpha))
    return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)


def _of_layer(own: Mapping[str, Any], option: str, name: str, default: Any) -> Any:
    patterns = own.get(option) or {}
    return patterns.get(get_pattern_key(list(patterns), name), default)


def _short(value: Any) -> str:
    return repr(value)[:80]
