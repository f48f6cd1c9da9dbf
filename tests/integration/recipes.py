"""Recipes of the integration tests, and eyes and hands inside a running command."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreamfleet.config import RunConfig
from dreamfleet.runtime.progress import SilentProgress, Stage
from tests.unit.data.helpers import write_photos

STEPS = 24


def recipe(tmp_path: Path, base: Path, output: str = "out", **sections: Any) -> RunConfig:
    """24 LoRA steps on three small photos, a checkpoint every 8."""
    photos = tmp_path / "Rex"
    if not photos.exists():
        write_photos(photos)
    train = {"max_train_steps": STEPS, "checkpointing_steps": 8, "seed": 5}
    defaults: dict[str, Any] = {
        "base_model": str(base),
        "output_dir": str(tmp_path / output),
        "subject": {"images": [str(photos)], "class_word": "dog"},
        "train": train,
        "sampling": {"num_validation_images": 1, "num_inference_steps": 2},
        "tracking": {"enabled": False},
    }
    for name, values in sections.items():
        own = defaults.get(name)
        defaults[name] = {**own, **values} if isinstance(own, dict) else values
    return RunConfig.model_validate(defaults)


class WatchingProgress(SilentProgress):
    """Calls `at_step` with the number of steps done whenever the training bar moves; keeps all
    lines.
    """

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        self.at_step = at_step
        self.lines: list[str] = []

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Stage]:
        yield _WatchedStage(self.at_step if title.startswith("training") else lambda step: None)

    def info(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")


class _WatchedStage:
    def __init__(self, at_step: Callable[[int], None]) -> None:
        self._at_step = at_step

    def update(self, done: int, note: str = "") -> None:
        self._at_step(done)
