"""Which square of a photo is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamfleet.errors import BadInputError

if TYPE_CHECKING:
    from PIL import Image

# image -> importance per pixel, float [H, W], >= 0
Saliency = Callable[["Image.Image"], np.ndarray]


def gradient_energy(image: Image.Image) -> np.ndarray:
    """Where the picture has detail: squared gradients of the luminance, damped towards the border.

    A stand-in for a segmenter: photographers put their subject in focus and near the middle. The
    damping (down to half at the border) decides between equally busy places.
    """
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    down, right = np.gradient(grey)
    energy = down**2 + right**2
    height, width = grey.shape
    window = np.outer(_hump(height), _hump(width))
    return np.asarray(energy * window, dtype=np.float32)


def subject_saliency(base_model: str) -> tuple[str, Saliency]:
    """How to find the subject in a photo, and a name for the way that changes when its results do.

    On the embedded base its own segmenter, where it ships; else, and in pictures in which that
    finds nothing, `gradient_energy`.
    """
    segmenter = _segmenter_file() if base_model == "embedded" else None
    if segmenter is None:
        return "gradient energy", gradient_energy
    name = f"segmenter {hashlib.sha256(segmenter.read_bytes()).hexdigest()}"
    return name, _segmenter_saliency()


def _segmenter_file() -> Path | None:
    from dreamfleet.world.evaluators.load import weights_path

    try:
        return weights_path("segmenter") / "model.safetensors"
    except BadInputError:
        return None


def _segmenter_saliency() -> Saliency:
    judge: list[Any] = []  # loaded at the first picture: the driver only wants the name

    def saliency(image: Image.Image) -> np.ndarray:
        from PIL import Image as images

        if not judge:
            from dreamfleet.world.evaluators import load_segmenter

            judge.append(load_segmenter())
        mask = judge[0].masks([image])[0]
        if not mask.any():
            return gradient_energy(image)
        return np.asarray(images.fromarray(mask.astype(np.uint8) * 255).resize(image.size))

    return saliency


def _hump(length: int) -> np.ndarray:
    position = (np.arange(length, dtype=np.float32) + 0.5) / length
    return np.asarray(0.5 + 0.5 * np.sin(np.pi * position), dtype=np.float32)


def crop_square(
    image: Image.Image, resolution: int, saliency: Saliency | None = None
) -> Image.Image:
    """The square of the image's shorter side, at `resolution` pixels: the middle one, or the one
    with most saliency.
    """
    from PIL import Image

    width, height = image.size
    side = min(width, height)
    if saliency is None or width == height:
        left, top = (width - side) // 2, (height - side) // 2
    else:
        offset = _best_offset(saliency(image).sum(axis=0 if width > height else 1), side)
        left, top = (offset, 0) if width > height else (0, offset)
    square = image.crop((left, top, left + side, top + side))
    return (
        square
        if side == resolution
        else square.resize((resolution, resolution), Image.Resampling.LANCZOS)
    )


def _best_offset(profile: np.ndarray, side: int) -> int:
    """Start of the window of `side` with the largest sum; among equals the one nearest to the
    middle.
    """
    sums = np.convolve(profile.astype(np.float64), np.ones(side), mode="valid")
    best = np.flatnonzero(sums >= sums.max() * (1 - 1e-9))
    middle = (len(profile) - side) / 2
    return int(best[np.argmin(np.abs(best - middle))])
