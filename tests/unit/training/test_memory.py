"""Out of memory: what is said, and that it ends one job only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamfleet.config import load_config
from dreamfleet.errors import TrainingError
from dreamfleet.training import worker
from dreamfleet.training.group import Group
from dreamfleet.training.memory import is_out_of_memory, out_of_memory_message
from dreamfleet.training.ray_train import _backend
from dreamfleet.training.worker import train_in_process
from tests.unit.training.stubs import StubJob, task

pytestmark = pytest.mark.heavy


def message(**train: Any) -> str:
    settings = {f"train.{key}": value for key, value in train.items()}
    config = load_config(None, {"data.resolution": 512, **settings})
    return out_of_memory_message("rex", 3, "cuda", config)


def test_settings_that_would_help_are_named_and_those_in_use_are_not() -> None:
    plain = message()
    assert plain.startswith("rex: out of memory on cuda at step 3; ")
    assert "--resume and --gradient-checkpointing;" in plain
    assert "--overwrite) with --mixed-precision bf16, a --resolution below 512" in plain
    assert "--use-8bit-adam" not in plain
    full = message(mode="full", train_batch_size=4, gradient_accumulation_steps=2, use_ema=True)
    assert "--train-batch-size 1 --gradient-accumulation-steps 8" in full
    assert "--use-8bit-adam, --train-mode lora, --no-use-ema" in full
    lean = message(
        mode="full", gradient_checkpointing=True, use_8bit_adam=True, mixed_precision="fp16"
    )
    assert "begin again (--overwrite) with --train-mode lora" in lean and "--resume" not in lean


def test_errors_of_other_kinds_are_not_taken_for_it() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert is_out_of_memory(error.value), str(error.value)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subject `hungry` asks for more memory than any machine has; others train."""

    class Hungry(StubJob):
        def step(self) -> Any:
            torch.empty(1 << 60)

    def build(task: Any, base: Any, group: Any) -> StubJob:
        return (Hungry if task.subject.id == "hungry" else StubJob)(0)

    monkeypatch.setattr(worker, "build_job", build)
    monkeypatch.setattr(worker.Run, "_load_base", lambda run: None)
    monkeypatch.setattr(worker, "exported_files", lambda job, task: {"adapter.bin": b""})


@pytest.mark.usefixtures("hungry")
def test_one_job_ends_and_the_next_trains(tmp_path: Path) -> None:
    outcomes = [
        train_in_process(task(tmp_path / name, identity=name)) for name in ("hungry", "rex")
    ]
    assert [outcome.status for outcome in outcomes] == ["failed", "finished"]
    assert "--gradient-checkpointing" in outcomes[0].message


@pytest.mark.usefixtures("hungry")
def test_with_several_workers_the_group_ends(tmp_path: Path) -> None:
    """A worker that only left would let the others wait for it in their next collective."""
    with pytest.raises(TrainingError, match="hungry: out of memory"):
        train_in_process(task(tmp_path, identity="hungry"), group=Group(1, 2))


def test_shares_of_a_gpu_do_not_use_nccl(tmp_path: Path) -> None:
    on_gpu = replace(task(tmp_path), device="cuda")
    assert [_backend(on_gpu, {"GPU": share}) for share in (0.5, 1)] == ["gloo", "nccl"]
    assert _backend(task(tmp_path), {"CPU": 1}) == "gloo"
