"""Colours and materials: what identities are painted with."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

from dreamfleet.world.canvas import RGB, Canvas, Texture

# Coarse names by hue (degrees, upper bound); white, black, grey and brown come from saturation
# and value.
_HUE_NAMES = (
    (18, "red"),
    (44, "orange"),
    (70, "yellow"),
    (165, "green"),
    (255, "blue"),
    (300, "purple"),
    (340, "pink"),
)

COLOUR_NAMES = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "white",
    "black",
    "grey",
    "brown",
)


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """RGB 0..255 from hue, saturation and value in [0, 1]."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(r * 255), round(g * 255), round(b * 255)


def colour_name(color: RGB) -> str:
    """The coarse word for a colour, one of COLOUR_NAMES."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    if v < 0.25:
        return "black"
    if s < 0.18:
        return "white" if v > 0.82 else "grey"
    degrees = h * 360
    if (degrees < 50 or degrees > 345) and v < 0.68 and s < 0.85:
        return "brown"
    return next((name for bound, name in _HUE_NAMES if degrees < bound), "red")


def material_texture(canvas: Canvas, kind: str, base: RGB, seed_phase: float = 0.0) -> Texture:
    """Gold, metal, crystal or wood over the whole canvas, to fill a part with.

    `seed_phase` in [0, 1] shifts it.
    """
    side = canvas.side_px
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    if kind == "golden":
        band = 0.5 + 0.5 * np.sin((x * 2.2 + y * 0.9 + seed_phase) * 2 * np.pi)
        dark, light = np.array([150, 98, 8]), np.array([255, 226, 96])
    elif kind == "metal":
        band = 0.5 + 0.5 * np.sin((x * 2.8 + seed_phase) * 2 * np.pi)
        dark, light = np.array([92, 98, 108]), np.array([236, 240, 245])
    elif kind == "wooden":
        band = 0.5 + 0.5 * np.sin(
            (y * 7.0 + 0.35 * np.sin((x * 1.5 + seed_phase) * 2 * np.pi)) * 2 * np.pi
        )
        dark, light = np.array([112, 66, 30]), np.array([176, 116, 62])
    elif kind == "crystal":
        facet = np.floor(x * 9 + y * 5 + seed_phase) + np.floor(x * 4 - y * 8)
        band = 0.5 + 0.5 * np.sin(facet * 2.4)
        dark, light = np.array([140, 205, 235]), np.array([240, 252, 255])
    else:
        raise ValueError(
            f"material_texture: kind {kind!r} is none of golden, metal, wooden, crystal"
        )
    rgb = dark + (light - dark) * band[..., None]
    if kind in ("golden", "metal", "wooden"):
        rgb = 0.88 * rgb + 0.12 * np.array(base)  # a hint of the identity's own colour stays
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    return Texture(image, opacity=0.72 if kind == "crystal" else 1.0)
