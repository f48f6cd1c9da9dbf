"""`tune` on a tiny base with real Ray Tune, Optuna and MLflow; the judges are tiny, their work
real.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from PIL import Image

from dreamfleet.adapters.files import load_adapter
from dreamfleet.bases import load_base
from dreamfleet.config import RunConfig, TrackingConfig
from dreamfleet.data.photos import to_png
from dreamfleet.runtime.session import RaySession
from dreamfleet.tracking import NullTracker
from dreamfleet.tuning.command import tune
from dreamfleet.tuning.engine import Sampling, Work
from dreamfleet.tuning.judge import JudgeActor, JudgeTimeoutError, Verdict
from dreamfleet.tuning.pictures import Shot
from dreamfleet.tuning.results import TuneResult
from dreamfleet.tuning.run import Run
from dreamfleet.tuning.trial import Order, _Runner, sheet_name
from tests.integration.recipes import recipe
from tests.tiny_evaluators import write_tiny_blip, write_tiny_dino
from tests.unit.data.helpers import write_photos

pytestmark = pytest.mark.usefixtures("ray_running")
WAIT_S = 900.0
PATIENCE_S = 20.0  # with judges; those that answer take far less, on a busy machine too
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
Driver = Callable[..., "subprocess.Popen[bytes]"]  # a recipe, flags


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("judges")
    dino, blip = write_tiny_dino(folder / "tiny-dino"), write_tiny_blip(folder / "tiny-blip")
    return {"dino": str(dino), "blip": str(blip)}


def small(
    judges: dict[str, str], place: Path, base: Path, output: str = "out", **sections: Any
) -> RunConfig:
    """A recipe of a sweep: small trials, few pictures."""
    search = {
        "num_samples": 4, "num_rungs": 2, "images_per_rung": 4, "images_at_end": 6,
        "final_images": 4, "rung_inference_steps": 2, **judges, **sections.pop("tune", {}),
    }  # fmt: skip
    train = {"max_train_steps": sections.pop("steps", 4)}
    space = {"prior_weight": [0.0], **sections.pop("space", {})}
    return recipe(place, base, output, train=train, space=space, tune=search, **sections)


@pytest.fixture
def sweep(tmp_path: Path, tiny_base: Path, judges: dict[str, str]) -> Callable[..., RunConfig]:
    """Makes recipes of sweeps."""
    return functools.partial(small, judges, tmp_path, tiny_base)


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended."""

    config: RunConfig
    result: TuneResult
    uri: str


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, judges: dict[str, str],
    ray_running: Any,
) -> Swept:  # fmt: skip
    """The first four trials and one more, of a space with and without a prior, and what came of
    them.
    """
    place = tmp_path_factory.mktemp("swept")
    uri = f"sqlite:///{place / 'mlflow.db'}"
    config = small(
        judges, place, tiny_base, tracking={"enabled": True, "uri": uri}, tune={"num_samples": 5},
        space={"prior_weight": {"low": 0.0, "high": 2.0}}, prior={"num_class_images": 2},
    )  # fmt: skip
    return Swept(config, tune(config), uri)


def study_of(config: RunConfig, name: str = "rex") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{config.output_dir}/study.db")


def test_a_sweep_and_its_champion(swept: Swept, tiny_base: Path) -> None:
    config, result = swept.config, swept.result
    (own,) = result.subjects
    trials = study_of(config).trials
    assert [t.state in DONE for t in trials] == [True] * 5
    assert [t.params["sude.weight"] for t in trials[:4]] == [0.0, 0.2, 0.4, 0.8]
    assert {t.params["prior.with_prior_preservation"] for t in trials[:4]} == {False}
    assert trials[0].state == TrialState.COMPLETE and trials[0].user_attrs["host"]
    out = Path(str(config.output_dir))
    assert (out / "champion" / "pytorch_lora_weights.safetensors").is_file()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "alignment" in page and "none, or 0 to 2" in page
    assert list(out.rglob("readings.json")) and not list(out.rglob("state.pt"))
    assert (own.model_version, own.alias) == ("1", "champion")
    assert result.engine_s["search.training"] > 0 and result.engine_s["finals.drawing"] > 0
    load_adapter(load_base(str(tiny_base)), out / "champion")
    _check_runs(swept.uri)


def test_nothing_that_ended_is_repeated(swept: Swept) -> None:
    before = [trial.datetime_complete for trial in study_of(swept.config).trials]
    again = tune(swept.config, resume=True)
    assert [t.datetime_complete for t in study_of(swept.config).trials] == before
    assert again.subjects[0].model_version == "1", "what is published is not published again"


def _check_runs(uri: str) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("dreamfleet")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["dreamfleet.kind"] == "tune"]
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert len(children) == 5
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert all({"alignment", "fidelity", "loss"} <= set(run.data.metrics) for run in children)
    assert {run.data.params["sude.weight"] for run in children} >= {"0.0", "0.2", "0.4", "0.8"}
    assert all(len(run.data.params) < 12 for run in children), "what tells them apart, no more"
    assert parent.data.params["tune.num_samples"] == "5"
    names = {run.info.run_name: run.data for run in children}
    assert "trial 0 host (rex)" in names and parent.data.tags["champion.trial"] in "01234"
    pruned = {name for name, data in names.items() if data.tags["trial.state"] == "PRUNED"}
    assert all("pruned" in name for name in pruned)
    assert pruned == {name for name, data in names.items() if "trial.alignment" not in data.metrics}
    kept = {file.path for file in client.list_artifacts(parent.info.run_id, "plots")}
    assert "plots/history.png" in kept
    assert client.list_artifacts(children[0].info.run_id, "images")


def test_both_placements_read_the_same(swept: Swept) -> None:
    few = {"num_samples": 2, "placement": "one_per_device", "max_concurrent_trials": 1,
           "final_seeds": 1, "pruner": "none"}  # fmt: skip
    config = swept.config.model_copy(
        update={
            "output_dir": f"{swept.config.output_dir}-alone",
            "tune": swept.config.tune.model_copy(update=few),
            "tracking": TrackingConfig(enabled=False),
        }
    )
    assert tune(config).subjects[0].status == "finished"
    for packed, alone in zip(
        study_of(swept.config).trials[:2], study_of(config).trials, strict=True
    ):
        assert packed.params.items() >= alone.params.items()  # it has more to choose from
        one, other = (_by_step(own.user_attrs["readings"]) for own in (packed, alone))
        assert one and set(one) <= set(other), "the packed one may have been pruned"
        for step, scores in one.items():
            assert scores == pytest.approx(other[step], abs=0.01)


def _by_step(rows: list[dict[str, float]]) -> dict[float, tuple[float, float]]:
    return {row["step"]: (row["alignment"], row["fidelity"]) for row in rows}


def test_many_subjects_at_once(sweep: Callable[..., RunConfig], tmp_path: Path) -> None:
    """One of them cannot be used; the others do not mind."""
    other, spoilt = write_photos(tmp_path / "Bello"), tmp_path / "Spoilt"
    spoilt.mkdir()
    (spoilt / "photo.jpg").write_bytes(b"no picture")
    folders = [str(tmp_path / "Rex"), str(spoilt), str(other)]
    config = sweep(subject={"images": folders, "class_word": "dog"}, tune={"num_samples": 2})
    result = tune(config)
    assert [own.status for own in result.subjects] == ["finished", "failed", "finished"]
    assert "photo.jpg" in result.failures[0].message
    for own in (result.subjects[0], result.subjects[2]):
        assert study_of(config, own.id).trials[1].state in DONE
        assert (own.output_dir / "champion" / "adapter.json").is_file()


def test_full_fine_tuning_names_its_placement(sweep: Callable[..., RunConfig]) -> None:
    from dreamfleet.errors import ConfigError

    config = sweep()
    config.train.mode = "full"
    with pytest.raises(ConfigError, match="one_per_device"):
        tune(config)


@pytest.mark.slow
def test_full_fine_tuning_has_a_base_of_its_own(sweep: Callable[..., RunConfig]) -> None:
    few = {"num_samples": 2, "placement": "one_per_device", "max_concurrent_trials": 1}
    config = sweep(tune=few)
    config.train.mode = "full"
    (own,) = tune(config).subjects
    assert own.status == "finished" and own.trials["COMPLETE"] >= 1
    assert "train.rank" not in study_of(config).trials[1].params
    assert (own.output_dir / "champion" / "unet" / "config.json").is_file()


@pytest.mark.slow
def test_judges_that_hang_fail_their_own_trial_alone(tmp_path: Path) -> None:
    import ray

    class Judges:  # sent by value: workers know nothing of the tests
        def load(self) -> Judges:
            return self

        def alignment(self, subject: str, shots: Any, images: Any) -> list[float]:
            while subject == "hangs":
                time.sleep(0.1)
            return [0.5] * len(images)

        def fidelity(self, subject: str, images: Any) -> list[float]:
            return [0.5] * len(images)

    name = "judges-that-hang"
    actor = ray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=10)(JudgeActor)
    kept = actor.options(name=name, num_cpus=0).remote(Judges(), PATIENCE_S)
    shown = (Shot("a", "state", 0, state="sleeping"), Shot("b", "scene", 0))
    pngs = [to_png(Image.new("RGB", (8, 8)))] * 2

    def judged(subject: str) -> Verdict:
        work = Work(subject, subject, {}, 0, (4,), str(tmp_path / subject))
        return _Runner(Order(work, {4: shown}, Sampling(2, None, "ddim"), name, None)).judged(
            4, pngs
        )

    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(judged, "hangs")
        time.sleep(0.5)
        other = pool.submit(judged, "rex")
        with pytest.raises(JudgeTimeoutError, match=f"did not answer within {PATIENCE_S:g} s"):
            hanging.result()
        assert other.result().fidelity == 0.5
    assert judged("rex").alignment == 0.5, "they are back"
    ray.kill(kept)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """Starts `dreamfleet tune` as a program, on the session's Ray."""
    import ray

    from dreamfleet.config import dump_config

    started: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def start(config: RunConfig, *flags: str) -> subprocess.Popen[bytes]:
        path = tmp_path / f"recipe-{len(started)}.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-m", "dreamfleet", "tune", "--config", str(path), *flags]
        with path.with_suffix(".log").open("wb") as log:
            started.append(
                subprocess.Popen(command, env=environment, start_new_session=True,
                                 stdout=log, stderr=subprocess.STDOUT)
            )  # fmt: skip
        return started[-1]

    yield start
    for number, process in enumerate(started):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print((tmp_path / f"recipe-{number}.log").read_text(encoding="utf-8"))  # when it failed


def finished(config: RunConfig) -> dict[int, Any]:
    """Finished trials by number: when they ended, and with what."""
    if not Path(f"{config.output_dir}/study.db").is_file():
        return {}
    with contextlib.suppress(KeyError):
        return {
            trial.number: (trial.datetime_complete, trial.value)
            for trial in study_of(config).trials
            if trial.state in DONE
        }
    return {}


def readings(config: RunConfig) -> list[tuple[str, float]]:
    """Every rung whose reading is kept, with when its pictures were written."""
    found = []
    for path in Path(str(config.output_dir)).rglob("readings.json"):
        for row in json.loads(path.read_text(encoding="utf-8"))["readings"]:
            pictures = path.with_name(sheet_name(row["step"]))
            found.append((str(pictures), pictures.stat().st_mtime))
    return sorted(found)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert process.poll() is None, "the driver ended"
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_trials_engines_and_drivers_lose_nothing(
    sweep: Callable[..., RunConfig], driver: Driver
) -> None:
    config = sweep(steps=24, tune={"num_samples": 6, "max_concurrent_trials": 2, "pruner": "none"})
    process = driver(config)
    wait_for(lambda: len(readings(config)) >= 1, process)
    _kill("ray::ImplicitFunc")  # trials
    _kill("ray::TuneEngine")
    wait_for(lambda: len(finished(config)) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before, judged = finished(config), readings(config)
    assert len(before) < 6, "killed too late to show anything"
    result = tune(config, resume=True)
    after = finished(config)
    assert len(after) == 6 and {number: after[number] for number in before} == before
    still = dict(readings(config))
    assert all(still[name] == when for name, when in judged), "a rung was judged twice"
    retried = [t for t in study_of(config).trials if "retry_of" in t.user_attrs]
    settings = [json.dumps(t.params, sort_keys=True) for t in study_of(config).trials
                if t.state in DONE]  # fmt: skip
    assert len(set(settings)) == 6 and all(t.state in DONE for t in retried)
    assert result.subjects[0].status == "finished"


def _kill(title: str) -> None:
    """Those of the session's own Ray, whose raylet is their parent."""
    import ray

    address = ray.get_runtime_context().gcs_address
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if title in " ".join(process.info["cmdline"] or ())
        and (parent := process.parent()) is not None
        and address in " ".join(parent.cmdline())
    ]
    assert found, f"no {title} is running"
    for process in found:
        process.kill()


class _SlowToStart:
    """An engine that starts once a file is there."""

    def __init__(self, path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.01)

    def node(self) -> str:
        return "here"


def test_engines_that_wait_for_room_say_so(
    tmp_path: Path, sweep: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr("dreamfleet.runtime.room.TELL_AFTER_S", 0.1)
    gate, said = tmp_path / "room", list[str]()

    def warn(line: str) -> None:
        said.append(line)
        gate.touch()

    command: Any = SimpleNamespace(config=sweep(), progress=SimpleNamespace(warn=warn))
    run = Run(command, RaySession(None, 2.0, 0.0), NullTracker(), "")
    run._resources = {"num_cpus": 0}
    engine = ray.remote(num_cpus=0)(_SlowToStart).remote(str(gate))
    assert run._answers([engine.node.remote()]) == ["here"]
    assert len(said) == 1 and "1 of 1 engines have not started within 0.1 s" in said[0]
    assert "free in the cluster are" in said[0]
    assert run._answers([engine.node.remote()]) == ["here"]
    ray.kill(engine)
