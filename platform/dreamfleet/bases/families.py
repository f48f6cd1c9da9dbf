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
        name: sd1, sd2 or sdxl.
        text_encoders, tokenizers: their folders, in the order in which a prompt goes through them.
        load_text_encoder: (folder, component, keyword arguments of from_pretrained) -> (model,
            loading info).
        encode_prompts: (base, prompts) -> Conditioning.
        build_pipeline: base -> diffusers pipeline that shares the base's modules.
    """

    name: str
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    load_text_encoder: Callable[..., Any]
    encode_prompts: Callable[[Any, list[str]], Any]
    build_pipeline: Callable[[Any], Any]

    @property
    def weights(self) -> tuple[str, ...]:
        """Folders that hold weights."""
        return ("unet", "vae", *self.text_encoders)

    @property
    def components(self) -> tuple[str, ...]:
        """All folders of a base of this family."""
        return (*self.weights, *self.tokenizers, "scheduler")


def load_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of any of these families."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def family_of(name: str, index: Mapping[str, Any], unet: Mapping[str, Any]) -> Family:
    """The family of a folder by its model_index.json and UNet config.

    Raises:
        BaseModelError: a pipeline class that is not supported, or a UNet that is not a
            text-to-image one.
    """
    from dreamfleet.bases import sd1, sd2, sdxl

    # Stable Diffusion 1 and 2 share their pipeline; only the latter's transformers are linear at
    # both ends.
    stable = sd2.FAMILY if unet.get("use_linear_projection") else sd1.FAMILY
    families: dict[str, Family] = {
        "StableDiffusionPipeline": stable,
        "StableDiffusionXLPipeline": sdxl.FAMILY,
    }
    kind = str(index.get("_class_name"))
    if kind not in families:
        raise BaseModelError(
            f"base model {name}: its pipeline is {kind}, which is not supported; expected "
            f"{' or '.join(families)} (Stable Diffusion 1.x, 2.x, XL)"
        )
    if unet.get("in_channels") != unet.get("out_channels"):
        raise BaseModelError(
            f"base model {name}: a UNet with {unet.get('in_channels')} input and "
            f"{unet.get('out_channels')} output "
            "channels is for inpainting or editing; give a text-to-image model"
        )
    return families[kind]
