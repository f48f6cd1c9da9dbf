"""Which family a diffusers folder belongs to, and the functions that differ between families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamfleet.errors import BaseModelError


@dataclass(frozen=True)
class Family:
    """What one family of models does in its own way.

    Attributes:
        name: sd1 (later sd2, sdxl).
        load_tokenizer: folder -> tokenizer.
        load_text_encoder: (folder, keyword arguments of from_pretrained) -> (model, loading info).
        encode_prompts: (base, prompts) -> Conditioning.
        build_pipeline: base -> diffusers pipeline that shares the base's modules.
    """

    name: str
    load_tokenizer: Callable[[Path], Any]
    load_text_encoder: Callable[..., Any]
    encode_prompts: Callable[[Any, list[str]], Any]
    build_pipeline: Callable[[Any], Any]


def family_of(name: str, index: Mapping[str, Any], unet: Mapping[str, Any]) -> Family:
    """The family of a folder by its model_index.json and UNet config.

    Raises:
        BaseModelError: a pipeline class that is not supported, or a UNet that is not a
            text-to-image one.
    """
    from dreamfleet.bases import sd1

    families: dict[str, Family] = {"StableDiffusionPipeline": sd1.FAMILY}
    kind = str(index.get("_class_name"))
    if kind not in families:
        raise BaseModelError(
            f"base model {name}: its pipeline is {kind}, which is not supported; expected "
            f"{', '.join(families)}"
        )
    if unet.get("in_channels") != unet.get("out_channels"):
        raise BaseModelError(
            f"base model {name}: a UNet with {unet.get('in_channels')} input and "
            f"{unet.get('out_channels')} output "
            "channels is for inpainting or editing; give a text-to-image model"
        )
    return families[kind]
