"""The safety checker that some bases bring along (Stable Diffusion 1.x), run on drawn pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.errors import BaseModelError, first_line

if TYPE_CHECKING:
    from dreamfleet.bases.files import BaseFiles

COMPONENT = "safety_checker"


class SafetyChecker:
    """Replaces the pictures that the base's own checker flags by black ones.

    Args:
        folder: the base's folder, with `safety_checker` and `feature_extractor` in it.
        device: where to compute; the model is read when the first picture is checked.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._loaded: tuple[Any, Any] | None = None

    @classmethod
    def of(cls, files: BaseFiles, device: torch.device) -> SafetyChecker | None:
        """The checker in a base's folder, or None where it has none."""
        return cls(files.path, device) if has_safety_checker(files) else None

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """`pictures`, flagged ones black; says on the log how many.

        Raises:
            BaseModelError: the checker cannot be read.
        """
        if not pictures:
            return []
        features, checker = self._models()
        inputs = features(list(pictures), return_tensors="pt").pixel_values.to(self._device)
        arrays = [np.asarray(picture) for picture in pictures]
        with quiet_libraries():
            _, flagged = checker(clip_input=inputs, images=list(arrays))
        if any(flagged):
            logging.getLogger("dreamfleet").warning(
                "the base model's safety checker blacked out %d of %d pictures; "
                "--safety-checker off draws without it",
                sum(flagged),
                len(pictures),
            )
        return [
            Image.new("RGB", picture.size) if bad else picture
            for picture, bad in zip(pictures, flagged, strict=True)
        ]

    def _models(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> tuple[Any, Any]:
        with quiet_libraries():
            from diffusers.pipelines.stable_diffusion.safety_checker import (
                StableDiffusionSafetyChecker,
            )
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        try:
            with quiet_libraries():
                features = CLIPImageProcessorPil.from_pretrained(
                    self._folder / "feature_extractor", local_files_only=True
                )
                checker = StableDiffusionSafetyChecker.from_pretrained(
                    self._folder / COMPONENT, local_files_only=True, use_safetensors=True
                )
        except Exception as error:  # as many kinds as there are readers
            reason = first_line(error)
            raise BaseModelError(
                f"{self._folder / COMPONENT} cannot be loaded: {reason}; fetch the folder again, "
                "or draw without it: --safety-checker off"
            ) from error
        return features, checker.to(self._device).eval()


def has_safety_checker(files: BaseFiles) -> bool:
    """Whether the base's index names one and its files are there."""
    named = (files.index.get(COMPONENT) or [None])[0]
    return named is not None and (files.path / COMPONENT / "config.json").is_file()
