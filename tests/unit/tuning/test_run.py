"""A sweep with its Ray: places for engines, finals, what is told apart by its settings."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamfleet.config import RunConfig, load_config
from dreamfleet.errors import ConfigError
from dreamfleet.runtime.engine_actor import EngineSource
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.runtime.room import bundle
from dreamfleet.runtime.session import RaySession
from dreamfleet.tracking import NullTracker
from dreamfleet.training.fleet import engine_resources
from dreamfleet.tuning import run as run_module
from dreamfleet.tuning.command import Command
from dreamfleet.tuning.engine import Sampling, Work
from dreamfleet.tuning.finals import Contender
from dreamfleet.tuning.run import Run, _check_gpus
from dreamfleet.tuning.trial import AloneRunner, Order, Reading
from tests.unit.tuning.test_space import recipe


def test_engines_leave_the_judge_a_place() -> None:
    session = RaySession("host:6379", 4.0, 2.0)
    _check_gpus(2, 0.9, 0.1, session)
    _check_gpus(2, 1.0, 0.0, session)
    with pytest.raises(ConfigError, match="judge_num_gpus"):
        _check_gpus(2, 1.0, 0.1, session)
    _check_gpus(1, 4.0, 0.0, session)  # the cluster may grow
    with pytest.raises(ConfigError, match=r"4 GPU each \(cluster.resources_per_worker\) take 4"):
        _check_gpus(1, 4.0, 0.0, replace(session, address=None))


def test_workers_of_their_own_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "_start_judge", lambda *about: "judge")

    def started(**more: Any) -> Run:
        config = recipe(tune__placement="one_per_device", tune__max_concurrent_trials=4, **more)
        command, session = SimpleNamespace(config=config), RaySession(None, 4.0, 1.0)
        run = Run(cast(Any, command), session, cast(Any, None), "")
        run._start_actors("cuda" if config.base_model != "embedded" else "cpu", [])
        return run

    assert started()._slots_each == 1
    run = started(cluster__num_workers=2)
    assert (run._slots_each, run._tokens().qsize()) == (2, 2)
    with pytest.raises(ConfigError, match="judge_num_gpus"):
        started(base_model="a base", cluster__resources_per_worker={"GPU": 1.0})


def test_what_judges_read_is_not_blacked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base's safety checker turns flagged pictures black, and black ones would lose."""
    sources: list[EngineSource] = []

    def load(source: EngineSource) -> None:
        sources.append(source)

    monkeypatch.setattr(
        run_module, "start_engine", lambda kind, source, *rest, **options: load(source)
    )
    monkeypatch.setattr(Run, "_judges_by_node", lambda *about: {})
    command = cast(Any, SimpleNamespace(config=recipe()))
    Run(command, RaySession(None, 4.0, 0.0), cast(Any, None), "")._start_actors("cpu", [])
    monkeypatch.setattr("ray.get_actor", lambda name: None)
    monkeypatch.setattr(EngineSource, "load", load)
    monkeypatch.setattr("dreamfleet.training.jobs.build_job", lambda *about: None)
    monkeypatch.setattr("dreamfleet.tuning.trial.work_task", lambda task, work: task)
    order = Order(Work("a", "rex", {}, 0, (1,), ""), {}, Sampling(1, 1.0, "ddim"), "", None)
    AloneRunner(order, cast(Any, SimpleNamespace(config=recipe())))
    assert len(sources) > 1 and not any(source.safety_checker for source in sources)
    assert recipe().sampling.safety_checker == "auto"


def test_a_worker_of_its_own_is_of_the_wished_kind() -> None:
    resources = engine_resources(recipe(cluster__accelerator_type="A100").cluster, "cuda")
    assert bundle(resources) == {"CPU": 1.0, "GPU": 1.0, "accelerator_type:A100": 0.001}


def test_a_finalist_that_fails_leaves_the_others() -> None:
    said: list[str] = []
    command = SimpleNamespace(
        progress=SimpleNamespace(warn=said.append),
        subject_failed=lambda *about: said.append(about[1]),
    )
    run = Run(cast(Any, command), cast(Any, None), cast(Any, None), "")
    study = cast(Any, SimpleNamespace(name="rex", tune=recipe().tune))
    host, other = Contender(0, {}, 40, True), Contender(5, {}, 20, False)
    good = Reading(40, 0.5, 0.6, {}, {"a": 0.6, "b": 0.6}, {})
    found: dict[tuple[int, int], Reading | str] = {(0, 1): good, (5, 1): good}
    finals = run._decided(study, [other, host], found | {(5, 2): "loss is not a number"})
    assert finals is not None and [own.contender for own in finals.scores] == [host]
    assert "trial 5" in said.pop() and not said
    assert run._decided(study, [other, host], found | {(0, 2): "out of memory"}) is None
    assert "out of memory" in said.pop()


def test_one_subject_that_cannot_be_published_keeps_its_finals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    done: list[str] = []
    command = SimpleNamespace(
        requests=[SimpleNamespace(id="rex"), SimpleNamespace(id="bello")],
        key="k", subject_failed=lambda *about: done.append(": ".join(about)),
        storage=SimpleNamespace(delete_folder=lambda name: done.append(f"deleted {name}")),
    )  # fmt: skip
    parent = SimpleNamespace(finish=done.append)
    work = Work("rex#final", "rex", {}, 1, (4,), "")
    order = Order(work, {}, Sampling(1, 1.0, "ddim"), "", None)

    def lost(*about: Any) -> Any:
        raise ray.exceptions.RayTaskError("exported", "a long text", OSError("disk full"))

    run = Run(cast(Any, command), cast(Any, None), cast(Any, None), "")
    run._engines = [""]
    monkeypatch.setattr(run, "_final_order", lambda *about: order)
    monkeypatch.setattr(run, "_carried_out", lost)
    host = Contender(0, {}, 40, True)
    winner = SimpleNamespace(contender=host, readings={1: None})
    study, finals = SimpleNamespace(name="rex", config=None), SimpleNamespace(winner=winner)
    recorder = SimpleNamespace(parent=lambda study: parent)
    run._publish(*cast(Any, (study, finals, recorder, None)))
    assert done == ["rex: disk full; its finals are kept, --resume publishes them", "FAILED"]

    tokens = queue.SimpleQueue[str]()
    tokens.put("")
    assert run._final_reading(tokens, cast(Any, study), host, 1) == "disk full"
    assert tokens.get_nowait() == "", "the place is free again"


def test_a_study_goes_on_with_more_trials() -> None:
    """Its first four need no prior set, the others may: the settings are the same."""

    def settings(num_samples: int) -> dict[str, Any]:
        config = recipe(base_model="embedded", tune__num_samples=num_samples)
        run, task = _run_with_task(config)
        return run._fingerprint(task)

    four = settings(4)
    assert four == settings(16) and four["prior set"] == "prior"
    assert four["space"]["prior.weight"] == "0 to 2"


def _run_with_task(config: RunConfig) -> tuple[Run, Any]:
    run = Run(cast(Any, SimpleNamespace(config=config)), cast(Any, None), cast(Any, None), "")
    run._prior_keys["rex"] = "prior"
    subject = SimpleNamespace(id="rex", content_key="photos")
    task: Any = SimpleNamespace(config=config, subject=subject, base_hash="base")
    run._tasks["rex"] = task
    return run, task


@pytest.mark.parametrize(
    ("setting", "base", "weights"),
    [
        ("evaluators", "embedded", "oracle_a/model.safetensors"),
        ("blip", "a base", "model.safetensors"),
        ("dino", "a base", "model.safetensors"),
    ],
)
def test_judges_are_told_apart_by_their_weights(
    tmp_path: Path, setting: str, base: str, weights: str
) -> None:
    """Which a folder of the same name may have exchanged; they are hashed once for all subjects."""
    path = tmp_path / weights
    path.parent.mkdir(exist_ok=True)
    config = recipe(base_model=base, **{f"tune__{setting}": str(tmp_path)})
    study: Any = SimpleNamespace(name="rex", config=config)

    def told(content: bytes) -> tuple[dict[str, Any], str]:
        path.write_bytes(content)
        run, task = _run_with_task(config)
        found = run._fingerprint(task), run._ruler(study)
        path.unlink()
        assert (run._fingerprint(task), run._ruler(study)) == found
        return found

    (first, ruler), (other, other_ruler) = told(b"1"), told(b"2")
    assert told(b"1") == (first, ruler) and ruler != other_ruler
    different = [name for name, value in first.items() if other[name] != value]
    assert different == ["weights of the judges"]


def test_settings_are_those_that_the_study_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the report's command makes again what there is."""
    monkeypatch.setattr(Run, "_prepare", lambda run: (SimpleNamespace(device="cpu"), []))
    monkeypatch.setattr(Run, "_start_actors", lambda *about: None)
    monkeypatch.setattr(Run, "_search", _refuses)

    def begin(config: RunConfig) -> None:
        files, progress = cast(Any, None), SilentProgress()
        command = Command([], files, config, tmp_path, True, False, progress)
        command.key = command._begin()
        Run(command, cast(Any, None), NullTracker(), command.key).run()

    settings = tmp_path / "config.yaml"
    for number_of_trials in (4, 16):
        with pytest.raises(OSError, match="far enough"):
            begin(recipe(tune__num_samples=number_of_trials))
        assert load_config(settings).tune.num_samples == number_of_trials
    monkeypatch.setattr(Run, "_open_studies", _refuses)
    with pytest.raises(OSError, match="far enough"):
        begin(recipe(tune__num_samples=32))
    assert load_config(settings).tune.num_samples == 16


def _refuses(*about: Any) -> None:
    raise OSError("far enough")
