"""Four ways of making a picture that is not a photo; the subject stays readable in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

# Art is made at this side whatever the picture's, so that its grain looks the same at every size.
_WORK_SIDE = 128

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Style:
    """A look: `apply` works on the supersampled picture; `before` precedes the noun phrase."""

    name: str
    before: str
    apply: Callable[[Image.Image, np.random.Generator], Image.Image]


def _photo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image


def _to_image(rgb: Floats) -> Image.Image:
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def _edges(image: Image.Image, side: int) -> Floats:
    """How strong the contours are, in [0, 1], at `side` pixels."""
    small = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    down = np.abs(np.diff(small, axis=0, append=small[-1:])).max(axis=2)
    right = np.abs(np.diff(small, axis=1, append=small[:, -1:])).max(axis=2)
    edges: Floats = np.clip((np.maximum(down, right) - 12) / 60, 0, 1)
    return edges


def _sketch(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Grey contours and hatched shadows on paper."""
    side = _WORK_SIDE
    grey = np.asarray(image.convert("L").resize((side, side)), dtype=np.float32)
    y, x = np.mgrid[0:side, 0:side]
    period = 6
    hatch = ((x + y + int(rng.integers(period))) % period < 2) & (grey < 135)
    deep = ((x - y) % period < 2) & (grey < 75)
    tone = 248 - 0.20 * (255 - grey)
    tone -= 70 * hatch + 60 * deep + 190 * _edges(image, side)
    paper = np.array([1.0, 0.99, 0.95]) * np.clip(tone, 30, 255)[..., None]
    return _to_image(paper).resize(image.size, Image.Resampling.BILINEAR)


def _mosaic(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Square tiles of 4 px with light joints, each a little off in brightness."""
    tiles = 16
    flat = np.asarray(image.resize((tiles, tiles), Image.Resampling.BOX), dtype=np.float32)
    jitter = rng.uniform(0.82, 1.16, (tiles, tiles, 1))
    flat = np.clip(128 + (flat * jitter - 128) * 1.2, 0, 255)
    side = _WORK_SIDE
    cell = side // tiles
    coarse = np.kron(flat, np.ones((cell, cell, 1)))
    fine = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    rgb = 0.4 * coarse + 0.6 * fine
    joint = np.arange(side) % cell >= cell - 2
    joints = joint[:, None] | joint[None, :]
    rgb[joints] = 0.45 * rgb[joints] + 0.55 * np.array([240, 234, 222])
    return _to_image(rgb).resize(image.size, Image.Resampling.NEAREST)


def _watercolor(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Pale blotchy washes with darker rims, fading into white paper at an uneven border."""
    side = _WORK_SIDE
    soft = image.resize((side, side), Image.Resampling.BOX).filter(ImageFilter.MedianFilter(3))
    rgb: Floats = np.asarray(soft.filter(ImageFilter.BoxBlur(1)), dtype=np.float32)
    wash = _noise(rng, side, 9)[..., None]
    rim = _edges(soft, side)[..., None]
    rgb = 255 - (255 - rgb) * (0.42 + 0.40 * wash + 0.22 * rim)
    place = (np.arange(side) + 0.5) / side
    inset = np.minimum(place, 1 - place)
    border = np.minimum(inset[:, None], inset[None, :]) - 0.07 * _noise(rng, side, 12)
    paint = np.clip((border - 0.005) / 0.035, 0, 1)[..., None]
    return _to_image(252 + (rgb - 252) * paint).resize(image.size, Image.Resampling.BILINEAR)


def _noise(rng: np.random.Generator, side: int, cells: int) -> Floats:
    """Smooth noise in [0, 1]."""
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    smooth = coarse.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / 255


def _pop_art(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Few loud flat colours, thick black contours and a screen of dots."""
    side = _WORK_SIDE
    loud = ImageEnhance.Color(image.resize((side, side), Image.Resampling.BOX)).enhance(2.2)
    rgb = np.asarray(loud, dtype=np.float32)
    rgb = np.clip(np.round((128 + (rgb - 128) * 1.3) / 85) * 85, 0, 255)
    y, x = np.mgrid[0:side, 0:side]
    period = 8  # 4 px of the 64-pixel picture
    dx, dy = (x + 0.5) % period - period / 2, (y + 0.5) % period - period / 2
    bright = rgb.mean(axis=2) > 150
    dots = (dx**2 + dy**2 < 5.5) & bright
    ink = np.array([(255, 60, 150), (255, 120, 0), (0, 150, 255)][int(rng.integers(3))])
    rgb[dots] = 0.25 * rgb[dots] + 0.75 * ink
    rgb[_edges(image, side) > 0.7] = (10, 8, 16)
    return _to_image(rgb).resize(image.size, Image.Resampling.BILINEAR)


_ALL = (
    Style("photo", "", _photo),
    Style("sketch", "a pencil sketch of", _sketch),
    Style("mosaic", "a mosaic of", _mosaic),
    Style("watercolor", "a watercolor painting of", _watercolor),
    Style("pop_art", "a pop art picture of", _pop_art),
)

STYLES: Mapping[str, Style] = MappingProxyType({style.name: style for style in _ALL})
