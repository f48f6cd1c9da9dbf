"""Which square of a photo is trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

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
