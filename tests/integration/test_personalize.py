"""`personalize` on a real Ray: the main job, interruptions, lost workers, several workers, several
subjects.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from dreamfleet.config import load_config
from dreamfleet.errors import ResumeError
from dreamfleet.personalization import personalize
from dreamfleet.runtime.session import RaySession
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import CheckpointFolder
from dreamfleet.training.fleet import FleetJob, train_fleet
from dreamfleet.training.ray_train import train_with_ray
from dreamfleet.training.task import TrainOutcome
from tests.integration.recipes import (
    ENDLESS,
    STEPS,
    WEIGHTS,
    WatchingProgress,
    assert_equal,
    interrupt_once,
    own_train_workers,
    prepared,
    recipe,
    train_task,
    trained_here,
)
from tests.unit.data.helpers import encoded, picture, write_photos

# One DREAMFLEET_HOME for all: the photos are the same everywhere, and preparing them takes a
# process that loads the libraries. The first test that runs prepares them.
pytestmark = pytest.mark.usefixtures("ray_running")


def test_two_actors_on_two_cores_leave_room_for_what_feeds_them(
    tmp_path: Path, tiny_base: Path, ray_running: RaySession
) -> None:
    """With a whole core each they starved the tasks before them, for ever."""
    write_photos(tmp_path / "Rex", 40)  # five blocks: two actors
    request, preparation = prepared(recipe(tmp_path, tiny_base), tmp_path, ray_running)
    assert len(preparation.subject_set(request).photos) == 40


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal but for rounding, which a shared batch orders otherwise."""
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert torch.linalg.norm(one[name] - value) <= 1e-3 * torch.linalg.norm(value) + 1e-7, name


def test_main_job_with_prior_and_sude(tmp_path: Path, tiny_base: Path) -> None:
    config = recipe(
        tmp_path,
        tiny_base,
        sude={"weight": 0.4},
        prior={"with_prior_preservation": True, "num_class_images": 3, "num_inference_steps": 2},
    )
    progress = WatchingProgress()
    (tmp_path / "Rex").joinpath("page.jpg").write_bytes(b"<html>")
    result = personalize(config, progress=progress)
    (subject,) = result.subjects
    out = tmp_path / "out"
    assert (subject.status, subject.steps, subject.output_dir) == ("finished", STEPS, out)
    assert any("page.jpg: a web page" in line for line in progress.lines)
    assert load_config(out / "config.yaml").train.rank is not None
    assert len(list((out / "samples").glob("*.png"))) == 7
    assert not (out / "checkpoints" / "ray").exists()
    assert_equal(load_file(out / WEIGHTS), trained_here(config, tmp_path / "here"))


def test_interrupted_gone_on_with_by_two_workers_and_one_of_them_killed(
    tmp_path: Path, tiny_base: Path
) -> None:
    """Ends as one uninterrupted process with the double batch does."""
    doubled = {"checkpointing_steps": 40, "train_batch_size": 2}
    endless = recipe(tmp_path, tiny_base, train={**doubled, "max_train_steps": ENDLESS})
    with pytest.raises(KeyboardInterrupt):
        personalize(endless, progress=WatchingProgress(interrupt_once(3)))
    assert not (tmp_path / "out" / WEIGHTS).exists()
    stopped_at = CheckpointFolder(Folder(str(tmp_path / "out" / "checkpoints"))).newest_step()
    assert stopped_at is not None and 3 <= stopped_at < ENDLESS

    steps = stopped_at + 150
    config = recipe(tmp_path, tiny_base, train={**doubled, "max_train_steps": steps})
    train = {"max_train_steps": steps, "checkpointing_steps": 40}
    two = recipe(tmp_path, tiny_base, train=train, cluster={"num_workers": 2})
    killed: list[int] = []

    def kill(step: int) -> None:
        if step > stopped_at and not killed:
            worker = own_train_workers()[0]
            killed.append(worker.pid)
            worker.kill()

    progress = WatchingProgress(kill)
    (subject,) = personalize(two, resume=True, progress=progress).subjects
    assert killed
    assert (subject.status, subject.steps) == ("finished", steps)
    assert sum("going on from step" in line for line in progress.lines) >= 2
    assert_close(load_file(tmp_path / "out" / WEIGHTS), trained_here(config, tmp_path / "here"))
    again = personalize(two, resume=True).subjects[0]  # finished: nothing is trained
    assert again.status == "finished"
    settings = tmp_path / "out" / "config.yaml"
    assert load_config(settings).cluster.num_workers == 2  # as it was finished, not as it began
    kept = settings.read_bytes()
    other = recipe(tmp_path, tiny_base, train={**train, "seed": 6}, cluster={"num_workers": 2})
    with pytest.raises(ResumeError, match=r"train\.seed was 5, is 6"):
        personalize(other, resume=True)
    assert settings.read_bytes() == kept  # the message sends its reader there


class _Occupied:
    def ready(self) -> bool:
        return True


@pytest.mark.parametrize("fleet", [False, True], ids=["Ray Train", "fleet"])
def test_what_waits_for_room_in_a_full_cluster_says_so(
    fleet: bool,
    tmp_path: Path,
    tiny_base: Path,
    ray_running: RaySession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dreamfleet.runtime.room.TELL_AFTER_S", 0.5)
    task = train_task(recipe(tmp_path, tiny_base, train={"max_train_steps": 2}), tmp_path / "task")
    cores = ray.cluster_resources()["CPU"]
    occupied = ray.remote(num_cpus=cores)(_Occupied).remote()
    ray.get(occupied.ready.remote())
    said, outcomes = list[str](), list[TrainOutcome]()

    def warn(line: str) -> None:
        said.append(line)
        ray.kill(occupied)

    if fleet:
        jobs = [FleetJob(task.subject.id, lambda: task)]
        train_fleet(
            jobs, task.config, ray_running, "cpu", lambda event: None, outcomes.append, warn
        )
    else:
        outcomes.append(train_with_ray(task, ray_running, lambda event: None, warn))
    assert [outcome.status for outcome in outcomes] == ["finished"]
    (line,) = said
    what = "engines" if fleet else "workers"
    assert f"1 of 1 {what} have not started within 0.5 s: each wants 1 CPU, free in" in line


def test_many_subjects_and_a_bad_one(
    tmp_path: Path, tiny_base: Path, ray_running: RaySession
) -> None:
    folders = [write_photos(tmp_path / name, 2) for name in ("Ada", "Bo")]
    (tmp_path / "Empty").mkdir()
    (tmp_path / "Broken").mkdir()
    (tmp_path / "Broken" / "cut.jpg").write_bytes(encoded(picture(), "JPEG")[:-300])
    images = [
        str(path) for path in (folders[0], tmp_path / "Empty", folders[1], tmp_path / "Broken")
    ]
    config = recipe(tmp_path, tiny_base, subject={"images": images})
    progress = WatchingProgress()
    result = personalize(config, progress=progress)
    assert [subject.status for subject in result.subjects] == [
        "finished",
        "failed",
        "finished",
        "failed",
    ]
    assert "it is empty" in result.subjects[1].message
    assert "truncated" in result.subjects[3].message
    alone = recipe(tmp_path, tiny_base, subject={"images": [str(folders[1])]})
    assert_close(
        load_file(tmp_path / "out" / "bo" / WEIGHTS), trained_here(alone, tmp_path / "here")
    )
    assert sum("Empty" in line for line in progress.lines) >= 1
    (line,) = (line for line in progress.lines if "shared a training step" in line)
    assert line.startswith("one engine:") and float(line.split()[2]) > 1


def test_many_subjects_go_on_where_they_were_and_full_ones_run_alone(
    tmp_path: Path, tiny_base: Path
) -> None:
    images = [str(write_photos(tmp_path / name, 2)) for name in ("Ada", "Bo", "Cleo")]
    endless = recipe(
        tmp_path, tiny_base, subject={"images": images}, train={"max_train_steps": ENDLESS}
    )

    def interrupt(step: int) -> None:
        if step >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        personalize(endless, progress=WatchingProgress(interrupt))
    kept = [
        CheckpointFolder(Folder(str(tmp_path / "out" / name / "checkpoints"))).newest_step() or 0
        for name in ("ada", "bo", "cleo")
    ]
    train = {"max_train_steps": max(kept) + 20}
    config = recipe(tmp_path, tiny_base, subject={"images": images}, train=train)
    progress = WatchingProgress()
    result = personalize(config, resume=True, progress=progress)
    assert [subject.status for subject in result.subjects] == ["finished"] * 3
    assert sum("going on from step" in line for line in progress.lines) >= 1
    alone = recipe(tmp_path, tiny_base, subject={"images": images[2:]}, train=train)
    assert_close(
        load_file(tmp_path / "out" / "cleo" / WEIGHTS), trained_here(alone, tmp_path / "here")
    )
    full = recipe(
        tmp_path,
        tiny_base,
        "full",
        subject={"images": images[:2]},
        train={"max_train_steps": 2, "mode": "full"},
    )
    progress = WatchingProgress()
    result = personalize(full, progress=progress)
    assert [subject.status for subject in result.subjects] == ["finished"] * 2
    assert sum("trains alone" in line for line in progress.lines) == 2
    assert any("no subject shared a step" in line for line in progress.lines)
