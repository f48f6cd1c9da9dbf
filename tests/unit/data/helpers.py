"""Small pictures and a stand-in VAE for the data tests."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
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


class StubVae:
    """Encodes a picture to its pixels, averaged over 4×4 squares; counts how often."""

    config = SimpleNamespace(scaling_factor=1.0)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        self.encoded += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 4)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=0 * mean + 0.1))


def config_for(*images: Path | str, class_word: str = "dog", **sections: Any) -> RunConfig:
    subject = {
        "images": [str(image) for image in images],
        "class_word": class_word,
        **sections.pop("subject", {}),
    }
    return RunConfig.model_validate({"subject": subject, **sections})
