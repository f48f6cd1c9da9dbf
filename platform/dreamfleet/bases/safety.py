"""The safety checker that some bases bring along (Stable Diffusion 1.x), run on drawn pictures."""

from __future__ import annotations

import logging
import shutil
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
FEATURES = "feature_extractor"
WAY_OUT = "or draw without its safety checker: --safety-checker off"
LOG = logging.getLogger("dreamfleet")


class SafetyChecker:
    """Replaces the pictures that the base's own checker flags by black ones.

    Args:
        folder: the base's folder, with `safety_checker` and `feature_extractor` in it.
        device: where to compute; the model is read when the first picture is checked.
        variant: which of several sets of weights to read; None: the full ones.
    """

    def __init__(self, folder: Path, device: torch.device, variant: str | None = None) -> None:
        self._folder, self._device, self._variant = folder, device, variant
        self._loaded: tuple[Any, Any] | None = None

    @classmethod
    def of(cls, files: BaseFiles, device: torch.device) -> SafetyChecker | None:
        """The checker in a base's folder, or None where it has none.

        Raises:
            BaseModelError: there is one, and files that it needs are missing.
        """
        if not has_safety_checker(files):
            return None
        features = files.path / FEATURES
        if not any(features.glob("*.json")):
            raise BaseModelError(
                f"base model {files.name}: a safety checker, and no {features} to prepare its "
                f"pictures; fetch the folder again, {WAY_OUT}"
            )
        try:
            return cls(files.path, device, files.weights_variant(COMPONENT))
        except BaseModelError as error:
            raise BaseModelError(f"{error}, {WAY_OUT}") from error

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
            LOG.warning(
                "the base model's safety checker blacked out %d of %d pictures; "
                "--safety-checker off draws without it",
                sum(flagged),
                len(pictures),
            )
        return [
            Image.new("RGB", picture.size) if bad else picture
            for picture, bad in zip(pictures, flagged, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write checker (safetensors, fp32) and feature extractor into the folder of a model.

        Raises:
            BaseModelError: the checker cannot be read.
        """
        _, checker = self._models()
        with quiet_libraries():
            checker.save_pretrained(folder / COMPONENT)
        (folder / FEATURES).mkdir(exist_ok=True)
        for path in (self._folder / FEATURES).glob("*.json"):
            shutil.copyfile(path, folder / FEATURES / path.name)

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
                    self._folder / FEATURES, local_files_only=True
                )
                checker = StableDiffusionSafetyChecker.from_pretrained(
                    self._folder / COMPONENT,
                    variant=self._variant,
                    dtype=torch.float32,  # that of the pictures' features, whatever the files hold
                    local_files_only=True,
                    use_safetensors=True,
                )
        except Exception as error:  # as many kinds as there are readers
            reason = first_line(error)
            raise BaseModelError(
                f"{self._folder / COMPONENT} cannot be loaded: {reason}; fetch the folder again, "
                f"{WAY_OUT}"
            ) from error
        return features, checker.to(self._device).eval()


def has_safety_checker(files: BaseFiles) -> bool:
    """Whether the base's index names one and its folder is there; says so where only the first is
    true.
    """
    named = (files.index.get(COMPONENT) or [None])[0]
    if named is None:
        return False
    found = (files.path / COMPONENT / "config.json").is_file()
    if not found:
        LOG.warning(
            "base model %s: model_index.json names a safety checker, and %s is not there; pictures "
            "are drawn unchecked",
            files.name,
            files.path / COMPONENT / "config.json",
        )
    return found


def save_safety_checker(files: BaseFiles, folder: Path) -> None:
    """Give the base's checker, where it has one, to a model that was made of the base.

    One that cannot be read is left out, and said so: it shall not cost what was trained.

    Args:
        folder: of the saved model.
    """
    try:
        checker = SafetyChecker.of(files, torch.device("cpu"))
        if checker is None:
            return
        checker.save(folder)
    except BaseModelError as error:
        LOG.warning("%s is saved without safety checker: %s", folder, error)
        return
    files.copy_entries(folder, (COMPONENT, FEATURES, "requires_safety_checker"))
