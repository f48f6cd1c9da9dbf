"""A recipe so small that its every stage runs in a second."""

from __future__ import annotations

from pathlib import Path

import yaml

TINY = {
    "seed": 3,
    "num_pictures": 64,
    "num_pictures_b": 24,
    "portrait_identities": 4,
    "portraits_per_identity": 2,
    "latent_channels": 16,
    "autocast": False,
    "stages": {
        "decoder": {"num_steps": 2, "batch_size": 2, "learning_rate": 1e-3, "ema_decay": 0.9},
        "text": {"num_steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        "denoiser": {"num_steps": 3, "batch_size": 2, "learning_rate": 1e-3, "ema_decay": 0.9},
        "oracle_a": {"num_steps": 2, "batch_size": 10, "learning_rate": 1e-3},
        "oracle_b": {"num_steps": 2, "batch_size": 10, "learning_rate": 1e-3},
        "segmenter": {"num_steps": 2, "batch_size": 2, "learning_rate": 1e-3},
        "identity": {"num_steps": 2, "batch_size": 4, "learning_rate": 1e-3},
        "clip": {"num_steps": 2, "batch_size": 4, "learning_rate": 1e-3},
    },
}


def write_recipe(path: Path, **changes: object) -> Path:
    """The tiny recipe in `path`, with `changes` at its top level."""
    path.write_text(yaml.safe_dump({**TINY, **changes}), encoding="utf-8")
    return path
