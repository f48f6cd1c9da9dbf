"""The training loop around a stand-in job: checkpoints, going on, stopping, failing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamfleet.errors import ConfigError, DreamfleetError, ResumeError, TrainingError
from dreamfleet.runtime.storage import Folder
from dreamfleet.training import worker
from dreamfleet.training.checkpoints import CheckpointFolder
from dreamfleet.training.group import Group
from dreamfleet.training.task import DirectReporter, StepEvent, TrainEvent, TrainTask
from dreamfleet.training.worker import train_in_process
from tests.unit.training.stubs import StubJob, task

pytestmark = pytest.mark.heavy

Jobs = list[StubJob]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Every job that was built."""
    built: Jobs = []

    def build(task: TrainTask, base: Any, group: Any) -> StubJob:
        built.append(StubJob(task.config.train.seed))
        return built[-1]

    monkeypatch.setattr(worker, "build_job", build)
    monkeypatch.setattr(worker.Run, "_load_base", lambda run: None)
    monkeypatch.setattr(
        worker, "exported_files", lambda job, task: {"adapter.bin": job.weight.numpy().tobytes()}
    )
    return built


def stop_after(step: int) -> DirectReporter:
    seen: list[TrainEvent] = []
    return DirectReporter(
        seen.append, lambda: sum(isinstance(event, StepEvent) for event in seen) >= step
    )


def weights_of(folder: Path) -> bytes:
    checkpoint = CheckpointFolder(Folder(str(folder))).read("adapter")
    assert checkpoint is not None
    return checkpoint.files["adapter.bin"]


def test_uninterrupted_run(tmp_path: Path, jobs: Jobs) -> None:
    events: list[TrainEvent] = []
    outcome = train_in_process(task(tmp_path), reporter=DirectReporter(events.append))
    assert (outcome.status, outcome.step, outcome.resumed_from) == ("finished", 20, None)
    assert [record["step"] for record in outcome.history] == list(range(1, 21))
    assert [event.step for event in events if isinstance(event, StepEvent)] == list(range(1, 21))
    names = CheckpointFolder(Folder(str(tmp_path)))._names()
    assert names == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("stopped_at", [1, 4, 5, 13, 18])
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, jobs: Jobs, stopped_at: int
) -> None:
    train_in_process(task(tmp_path / "whole"))
    first = train_in_process(task(tmp_path / "parts"), reporter=stop_after(stopped_at))
    assert (first.status, first.step) == ("stopped", stopped_at + 1)
    second = train_in_process(task(tmp_path / "parts"))
    assert (second.status, second.resumed_from) == ("finished", stopped_at + 1)
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    assert second.history == train_in_process(task(tmp_path / "whole")).history


def test_finished_run_is_not_trained_again(tmp_path: Path, jobs: Jobs) -> None:
    train_in_process(task(tmp_path))
    again = train_in_process(task(tmp_path))
    assert len(jobs) == 1
    assert (again.status, again.step) == ("finished", 20)


def test_more_steps_continue_a_finished_run(tmp_path: Path, jobs: Jobs) -> None:
    train_in_process(task(tmp_path / "a", steps=10))
    train_in_process(task(tmp_path / "a", steps=20))
    train_in_process(task(tmp_path / "b", steps=20))
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


def test_fewer_steps_than_are_done_are_refused(tmp_path: Path, jobs: Jobs) -> None:
    fewer = finish(tmp_path / "a", max_train_steps=10)
    with pytest.raises(ResumeError, match="20 steps already, and train.max_train_steps is 10"):
        worker.earlier_outcome(fewer, 1)
    assert "20 steps already" in train_in_process(fewer).message
    train_in_process(task(tmp_path / "b"), reporter=stop_after(14))
    assert "15 steps already" in train_in_process(task(tmp_path / "b", steps=10)).message


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "missing file"])
def test_damaged_newest_checkpoint_falls_back_to_the_previous(
    tmp_path: Path, jobs: Jobs, damage: str
) -> None:
    train_in_process(task(tmp_path / "whole"))
    train_in_process(task(tmp_path / "parts"), reporter=stop_after(12))
    newest = tmp_path / "parts" / "step-00000013"
    state = newest / "state.pt"
    match damage:
        case "flip":
            data = bytearray(state.read_bytes())
            data[len(data) // 2] ^= 1
            state.write_bytes(bytes(data))
        case "truncate":
            state.write_bytes(state.read_bytes()[:100])
        case "no manifest":
            (newest / "manifest.json").unlink()
        case _:
            state.unlink()
    outcome = train_in_process(task(tmp_path / "parts"))
    assert outcome.resumed_from == 10
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")


@pytest.mark.parametrize("files_written", range(5))
def test_killed_while_a_checkpoint_is_written(
    tmp_path: Path, jobs: Jobs, files_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(task(tmp_path / "whole"))
    train_in_process(task(tmp_path / "parts", steps=10))
    (tmp_path / "parts" / "adapter" / "manifest.json").unlink()
    calls = 0
    write: Callable[..., None] = Folder.write

    def killed(self: Folder, name: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > files_written:
            raise KeyboardInterrupt
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", killed)
        if files_written < 4:
            with pytest.raises(KeyboardInterrupt):
                train_in_process(task(tmp_path / "parts", steps=20))
    outcome = train_in_process(task(tmp_path / "parts", steps=20))
    assert outcome.resumed_from in (10, 15)
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")


def test_other_settings_are_refused_by_name(tmp_path: Path, jobs: Jobs) -> None:
    train_in_process(task(tmp_path), reporter=stop_after(7))
    outcome = train_in_process(task(tmp_path, learning_rate=5e-4))
    assert outcome.status == "failed"
    assert "train.learning_rate was 0.001, is 0.0005" in outcome.message
    with pytest.raises(ResumeError):
        worker.earlier_outcome(finish(tmp_path / "b", learning_rate=5e-4), 1)


def finish(folder: Path, **train: Any) -> TrainTask:
    """A task whose folder holds a finished run under the default settings."""
    train_in_process(task(folder))
    return task(folder, **train)


def test_not_a_number_fails_and_keeps_the_good_checkpoint(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "build_job", lambda task, base, group: StubJob(0, bad_step=12))
    outcome = train_in_process(task(tmp_path))
    assert outcome.status == "failed"
    assert "step 12" in outcome.message
    newest = CheckpointFolder(Folder(str(tmp_path))).newest()
    assert newest is not None and newest.step == 10


def test_out_of_memory_is_a_failure_with_advice(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(job: StubJob) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StubJob, "step", out_of_memory)
    assert "--gradient-checkpointing" in train_in_process(task(tmp_path)).message


def test_full_disk_is_said_and_keeps_what_there_is(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(task(tmp_path), reporter=stop_after(9))

    def full(self: Folder, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", full)
        outcome = train_in_process(task(tmp_path))
    assert outcome.status == "failed" and "No space left" in outcome.message
    assert train_in_process(task(tmp_path)).resumed_from == 10


def test_one_of_several_workers_raises_what_the_others_do_not_meet(tmp_path: Path) -> None:
    """They wait in a collective, and only an error ends the group."""
    alone = worker.Run(task(tmp_path), DirectReporter(), Group())
    several = worker.Run(task(tmp_path), DirectReporter(), Group(0, 2))
    full = DreamfleetError("checkpoint: No space left")
    assert alone.failed(full).message == str(full)
    with pytest.raises(DreamfleetError, match="No space left"):
        several.failed(full)
    for common in (ResumeError("r"), ConfigError("c"), TrainingError("broke down")):
        assert several.failed(common).message == str(common)


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_none(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(task(tmp_path), reporter=stop_after(9))

    def refused(self: Folder, name: str) -> bytes:
        raise OSError("AWS Error ACCESS_DENIED during GetObject operation")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", refused)
        outcome = train_in_process(task(tmp_path))
    assert outcome.status == "failed" and "ACCESS_DENIED" in outcome.message
    (tmp_path / "step-00000099").write_text("a file")
    assert train_in_process(task(tmp_path)).resumed_from == 10


def test_old_checkpoints_that_cannot_be_deleted_end_no_run(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Folder, name: str) -> None:
        raise OSError("AWS Error ACCESS_DENIED during DeleteObject operation")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete_folder", refused)
        made = task(tmp_path, steps=20, every=5, checkpoints_total_limit=2)
        assert train_in_process(made).status == "finished"


def test_checkpoint_hook_is_called_at_every_checkpoint(tmp_path: Path, jobs: Jobs) -> None:
    seen: list[int] = []
    train_in_process(
        task(tmp_path, steps=12), on_checkpoint=lambda step, metrics: seen.append(step)
    )
    assert seen == [5, 10, 12]


def test_errors_of_ours_are_outcomes_and_bugs_are_raised(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Callable[..., StubJob]:
        def build(*arguments: Any) -> StubJob:
            raise error

        return build

    monkeypatch.setattr(worker, "build_job", fail(DreamfleetError("no")))
    assert train_in_process(task(tmp_path)).message == "no"
    monkeypatch.setattr(worker, "build_job", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        train_in_process(task(tmp_path))
