"""An engine of the fleet, without Ray around it: subjects share steps, each has its own end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.torch import load_file

from dreamfleet.config import ClusterConfig, load_config
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.runtime.engine_actor import EngineSource
from dreamfleet.training import fleet
from dreamfleet.training.fleet import FleetEngine, FleetJob, FleetSummary, _Queue
from dreamfleet.training.task import DirectReporter, StageEvent, TrainEvent, TrainOutcome, TrainTask
from dreamfleet.training.worker import Run, train_in_process
from tests.tiny_jobs import tiny_config
from tests.unit.training.stubs import subject
from tests.unit.training.stubs import task as stub_task

pytestmark = pytest.mark.heavy


def real_task(base: Path, folder: Path, identity: str, **options: Any) -> TrainTask:
    """A task that the engine can train, on random latents."""
    options = {"train__max_train_steps": 6, "train__checkpointing_steps": 4, **options}
    config = tiny_config(base, base_model=str(base), **options)
    generator = np.random.default_rng(len(identity))
    latents = generator.standard_normal((1, 4, 16, 16)).astype(np.float32)
    own = replace(
        subject(identity),
        latent_mean=latents,
        latent_std=0.1 * np.abs(latents),
        flipped_mean=latents,
        flipped_std=latents,
    )
    made = stub_task(folder / identity)
    return replace(made, config=config, subject=own, checkpoints=str(folder / identity))


@pytest.fixture
def engine(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetEngine]:
    events: list[TrainEvent] = []
    monkeypatch.setattr(fleet, "RelayClient", lambda relay: DirectReporter(events.append))
    engine = FleetEngine(EngineSource(str(tiny_base_folder), "cpu"), EngineSettings(4), events)
    yield engine
    engine.loop.close()


def test_engines_keep_the_teachers_answers_where_photos_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuning and many subjects take their bounds from here."""
    monkeypatch.setenv("DREAMFLEET_HOME", str(tmp_path / "home"))
    given = {"data.cache_path": str(tmp_path / "cache"), "data.teacher_cache_gib": 0.5}
    own = fleet.engine_settings(load_config(None, given), 3)
    assert own.max_slots == 3 and own.teacher_cache_disk_mib == 512
    assert own.teacher_cache_folder == str(tmp_path / "cache" / "teacher")
    shared = load_config(None, {**given, "data.cache_path": "s3://bucket/cache"})
    folder = fleet.engine_settings(shared, 3).teacher_cache_folder
    assert folder == str(tmp_path / "home" / "cache" / "teacher"), "on this machine's own disk"
    assert fleet.engine_settings(load_config(None, {}), 3).teacher_cache_folder is None


def trained(engine: FleetEngine, *tasks: TrainTask) -> list[TrainOutcome]:
    """All at once, as Ray would call it."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(engine._train, tasks))


def test_subjects_share_steps_and_fail_alone(
    engine: FleetEngine, tiny_base_folder: Path, tmp_path: Path
) -> None:
    engine.loop.call(lambda own: None).result(60)  # the base is loaded before all begin
    ada, bo = (real_task(tiny_base_folder, tmp_path, name) for name in ("ada", "bo"))
    sick = real_task(tiny_base_folder, tmp_path, "sick")
    sick.subject.latent_mean[:] = np.nan
    full = real_task(tiny_base_folder, tmp_path, "full", train__mode="full")
    wrong = replace(
        real_task(tiny_base_folder, tmp_path, "wrong"), config=stub_task(tmp_path).config
    )
    outcomes = trained(engine, ada, sick, bo, full, wrong)
    assert [own.status for own in outcomes] == [
        "finished",
        "failed",
        "finished",
        "finished",
        "failed",
    ]
    assert "sick: training broke down at step 1" in outcomes[1].message
    assert "train.rank" in outcomes[4].message
    assert outcomes[0].details["jobs_per_step"] > 1
    notes = [own for own in engine._relay if isinstance(own, StageEvent) and own.stage == "alone"]
    assert [own.subject_id for own in notes] == ["full"]
    assert engine.loop.call(lambda own: own.metrics()["slots"]).result(60) == 0, "memory returned"
    alone = train_in_process(replace(ada, checkpoints=str(tmp_path / "alone")))
    assert [own["step"] for own in outcomes[0].history] == [own["step"] for own in alone.history]
    weights = "adapter/pytorch_lora_weights.safetensors"
    mine, theirs = load_file(tmp_path / "ada" / weights), load_file(tmp_path / "alone" / weights)
    assert all(np.allclose(mine[name], value, atol=1e-5) for name, value in theirs.items())
    (again,) = trained(engine, ada)
    assert (again.status, again.resumed_from) == ("finished", 6), "a finished run is not repeated"


def test_stopped_subjects_go_on_from_their_checkpoint(
    engine: FleetEngine, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = real_task(tiny_base_folder, tmp_path, "ada")
    seen: list[TrainEvent] = []
    stopping = DirectReporter(seen.append, lambda: len(seen) >= 3)
    monkeypatch.setattr(fleet, "RelayClient", lambda relay: stopping)
    (first,) = trained(engine, task)
    assert first.status == "stopped" and 0 < first.step < 6
    (late,) = trained(engine, replace(task, checkpoints=str(tmp_path / "late")))
    assert (late.status, late.step) == ("stopped", 0), "nothing begins after that"
    monkeypatch.setattr(fleet, "RelayClient", lambda relay: DirectReporter())
    engine._stopping = False
    (second,) = trained(engine, task)
    assert (second.status, second.step, second.resumed_from) == ("finished", 6, first.step)


def test_an_error_of_any_kind_is_an_outcome(
    engine: FleetEngine, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Run, job: Any) -> None:
        raise RuntimeError("mat1 and mat2 do not fit")

    monkeypatch.setattr(Run, "begin", broken)
    (outcome,) = trained(engine, real_task(tiny_base_folder, tmp_path, "ada"))
    assert (outcome.status, outcome.message) == ("failed", "RuntimeError: mat1 and mat2 do not fit")


class RayError(Exception):
    """As `ray.exceptions.RayError`; Ray itself is imported once its environment is set."""


class RayTaskError(RayError):
    cause = ValueError("no such token")


class Handle:
    """What the queue knows of an actor; its `train` gives a reference, and so does its `ping`."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.train = SimpleNamespace(remote=self.take)
        self.ping = SimpleNamespace(remote=lambda: self)

    def take(self, task: str) -> str:
        self.tasks.append(task)
        return task


def fake_ray(monkeypatch: pytest.MonkeyPatch, answers: Mapping[Any, Any], ready: Any) -> list[Any]:
    """Answers by reference, an exception raised; which references are ready; what was killed."""

    def get(reference: Any) -> Any:
        answer = answers.get(reference, True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    killed: list[Any] = []
    ray = SimpleNamespace(
        wait=lambda references, timeout: (ready(references), []),
        get=get,
        kill=killed.append,
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    return killed


def job(name: str) -> FleetJob:
    return FleetJob(name, lambda: cast(Any, name))


def test_an_engine_without_room_keeps_no_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[TrainOutcome] = []
    names = ("ada", "bo", "cleo", "dot", "eve")
    answers: dict[Any, Any] = {name: TrainOutcome(name, "finished", 6) for name in names}
    late: list[Any] = []
    fake_ray(monkeypatch, answers, lambda known: [own for own in known if own not in late])
    queue = _Queue([job(name) for name in names], Handle, 3, 2, outcomes.append)
    one, two, three = queue.engines
    late += [two, three]
    queue.fill()
    assert not one.tasks, "none has answered"
    queue.collect(0)
    queue.fill()
    assert one.tasks == ["ada", "bo"] and not two.tasks
    late.remove(two)
    queue.collect(0)
    queue.fill()
    assert queue.ready == {0, 1} and sorted([*one.tasks, *two.tasks]) == sorted(names)
    assert not three.tasks
    answers[three] = RayError("no such node")
    late.remove(three)
    queue.collect(0)
    assert len(outcomes) == 5 and not queue.busy()
    assert all(own.status == "finished" for own in outcomes), "nobody's subject was at it"


def test_engines_that_never_come_up_end_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(Handle):
        def __init__(self) -> None:
            super().__init__()
            answers[self] = RayError("the node has no such base")

    answers: dict[Any, Any] = {}
    killed = fake_ray(monkeypatch, answers, list)
    outcomes: list[TrainOutcome] = []
    queue = _Queue([job(name) for name in ("ada", "bo", "cleo")], Dead, 2, 2, outcomes.append)
    for _ in range(4):
        queue.fill()
        queue.collect(0)
    assert [own.status for own in outcomes] == ["failed"] * 3 and not queue.busy()
    assert "no such base" in outcomes[0].message and len(killed) >= 3


def test_a_task_that_raises_is_no_lost_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[Any, Any] = {
        "ada": RayTaskError("a long traceback"),
        "bo": TrainOutcome("bo", "finished", 6),
        "cleo": RayError(),
        "dot": TrainOutcome("dot", "finished", 6),
    }

    killed = fake_ray(monkeypatch, answers, list)
    outcomes: list[TrainOutcome] = []
    queue = _Queue([job(name) for name in answers], Handle, 1, 2, outcomes.append)
    first = queue.engines[0]
    queue.fill()
    queue.collect(0)
    assert [(own.subject_id, own.status) for own in outcomes] == [
        ("ada", "failed"),
        ("bo", "finished"),
    ]
    assert outcomes[0].message == "ValueError: no such token"
    assert queue.engines == [first] and not killed
    queue.fill()
    queue.collect(0)
    assert [own.subject_id for own in outcomes[2:]] == ["cleo"], "dot goes to the next engine"
    assert killed == [first] and queue.engines != [first]
    queue.fill()
    queue.collect(0)
    assert outcomes[3].subject_id == "dot" and not queue.busy()


def test_the_summary_says_how_many_shared_a_step() -> None:
    assert FleetSummary(1, {"ada": 3.0, "bo": 2.0}).text() == (
        "one engine: 2.5 subjects shared a training step, on average"
    )
    assert FleetSummary(2).text() == "2 engines: no subject shared a step"


def test_no_more_engines_than_cpus_and_gpus_hold() -> None:
    def count(device: str, cpus: float, gpus: float, **resources: float) -> int:
        cluster = ClusterConfig(num_workers=8, resources_per_worker=resources)
        session: Any = SimpleNamespace(num_cpus=cpus, num_gpus=gpus)
        return fleet.engine_count(cluster, session, 100, device)

    assert count("cpu", 4, 0) == 4
    assert count("cpu", 4, 0, CPU=2) == 2
    assert count("cpu", 4, 0, CPU=8) == 1
    assert count("cuda", 16, 2, GPU=0.5) == 4
    assert count("cuda", 2, 2, GPU=0.25) == 2


def test_memory_is_an_option_of_ray_s_own() -> None:
    cluster = ClusterConfig(resources_per_worker={"CPU": 2, "memory": 1e9, "fast": 1})
    assert fleet.engine_resources(cluster, "cpu") == {
        "num_cpus": 2, "memory": 1e9, "resources": {"fast": 1.0}
    }  # fmt: skip
