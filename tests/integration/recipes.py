"""Recipes of the integration tests, what they must give, and eyes and hands inside a running
command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from dreamfleet.config import RunConfig
from dreamfleet.data.cache import Cache
from dreamfleet.data.preparation import Preparation
from dreamfleet.data.subjects import SubjectRequest
from dreamfleet.personalization.planning import complete_requests
from dreamfleet.runtime.progress import SilentProgress, Stage
from dreamfleet.runtime.session import RaySession
from dreamfleet.training.task import SamplePlan, TrainTask
from dreamfleet.training.worker import train_in_process
from tests.unit.data.helpers import write_photos

STEPS = 24
ENDLESS = 100_000  # steps: of a run that is interrupted, however late its driver hears of it
WEIGHTS = "pytorch_lora_weights.safetensors"


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


def prepared(
    config: RunConfig, folder: Path, session: RaySession | None
) -> tuple[SubjectRequest, Preparation]:
    """The one subject of `config` with its photos prepared, without Ray where there is no
    `session`.
    """
    (request,), files, resolved = complete_requests(config)
    preparation = Preparation(
        base=files,
        base_model=resolved.base_model,
        config=resolved,
        cache=Cache(folder / "cache", 2**30),
        device="cpu",
        session=session,
        progress=SilentProgress(),
    )
    preparation.prepare_photos([request])
    return request, preparation


def train_task(config: RunConfig, folder: Path) -> TrainTask:
    """What a worker is given for the one subject of `config`, prepared in this process; its
    checkpoints lie in `folder`.
    """
    request, preparation = prepared(config, folder, None)
    nothing = SamplePlan((), 0)
    return TrainTask(
        config=request.config,
        subject=preparation.subject_set(request),
        prior=preparation.prior_set(request),
        base_hash=preparation.base.hash,
        checkpoints=str(folder / "checkpoints"),
        device="cpu",
        final_samples=nothing,
        preview_samples=nothing,
    )


def trained_files(config: RunConfig, folder: Path) -> Path:
    """The adapter's folder after training in this process, without Ray: what every run on Ray
    must equal.
    """
    outcome = train_in_process(train_task(config, folder))
    assert outcome.status == "finished", outcome.message
    return folder / "checkpoints" / "adapter"


def trained_here(config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA that training in this process gives."""
    return load_file(trained_files(config, folder) / WEIGHTS)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def own_train_workers() -> list[psutil.Process]:
    """The training workers of this session's Ray, and of no other on this machine."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RayTrainWorker" in child.name()]


def interrupt_once(from_step: int) -> Callable[[int], None]:
    """Raises KeyboardInterrupt at the first call with so many steps done; a second one would end
    the waiting for the workers' last checkpoint.
    """
    raised: list[int] = []

    def at_step(step: int) -> None:
        if step >= from_step and not raised:
            raised.append(step)
            raise KeyboardInterrupt

    return at_step


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
