"""Small pictures and a stand-in base for the data tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dreamfleet.config import RunConfig


def picture(seed: int = 0, width: int = 80, height: int = 64) -> Image.Image:
    """A smooth coloured picture: copies of it survive JPEG, others differ from it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_photos(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index}.png").write_bytes(encoded(picture(index)))
    return folder


class StubBase:
    """Encodes a picture to its pixels, averaged over 4×4 squares; counts how often."""

    resolution = 64

    def __init__(self) -> None:
        self.encoded = 0

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.encoded += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 4)
        return mean, torch.full_like(mean, 0.1)


def config_for(*images: Path | str, class_word: str = "dog", **sections: Any) -> RunConfig:
    subject = {
        "images": [str(image) for image in images],
        "class_word": class_word,
        **sections.pop("subject", {}),
    }
    return RunConfig.model_validate({"subject": subject, **sections})
