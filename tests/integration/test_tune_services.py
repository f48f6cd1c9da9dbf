"""A sweep as a job on a head with two logical GPUs; two sweeps at once on PostgreSQL and a real
MLflow server. Minutes each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from dreamfleet.config import RunConfig
from dreamfleet.tuning.study import open_storage
from tests.integration.test_jobs import (
    JOB_LINE,
    TOKEN_LINE,
    Shell,
    answers,
    free_ports,
    running,
    shells,
    wait_for,
)
from tests.integration.test_tune import Driver, driver, judges, sweep
from tests.unit.data.helpers import write_photos

__all__ = ["driver", "judges", "shells", "sweep"]  # fixtures
pytestmark = pytest.mark.slow

SMALL = (
    *("--num-samples", "2", "--max-train-steps", "4", "--num-rungs", "2"),
    *("--images-per-rung", "4", "--images-at-end", "4", "--final-images", "4"),
    *("--num-class-images", "2", "--prior-num-inference-steps", "2", "--num-inference-steps", "2"),
    *("--rung-inference-steps", "2", "--num-workers", "2"),
    *("--resources-per-worker", "CPU=1,GPU=1"),
)


def test_a_sweep_as_a_job(shells: Callable[[str], Shell], embedded_base: Path) -> None:
    shell = shells("sweep")
    code, text = shell.run(TOKEN_LINE)
    assert code == 0, text
    ports = ["--port", str(shell.ports[0]), "--dashboard-port", str(shell.ports[1])]
    start = ["ray", "start", "--head", "--dashboard-host", "127.0.0.1", "--block", *ports]
    with running(shell, [*start, *shell.head_options()]):
        wait_for(lambda: answers(f"http://127.0.0.1:{shell.ports[1]}/api/gcs_healthz"), "the head")
        line = JOB_LINE.partition("train_adapter.py")[0] + "tune_adapter.py"
        photos = "examples/subjects/dog-biscuit --class-word dog"
        code, text = shell.run(f'{line} {photos} {" ".join(SMALL)} --output-dir "$HOME/tuned"')
        assert code == 0, text
        assert "slots" in text and "alias champion" in text, text
        out = shell.home / "tuned"
        study = optuna.load_study(study_name="dog-biscuit", storage=f"sqlite:///{out}/study.db")
        assert len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) == 2
        assert (out / "champion" / "adapter.json").is_file()


@pytest.fixture
def postgres() -> Iterator[int]:
    """The port of a PostgreSQL on loopback, with databases mlflow and studies."""
    on_debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # not on its PATH
    initdb = shutil.which("initdb") or next(
        (found for place in on_debian if (found := shutil.which("initdb", path=place))), None
    )
    if initdb is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs PostgreSQL's programs (initdb) and psycopg (pip install '.[dev]')")
    (port,) = free_ports(1)
    folder = Path(initdb).resolve().parent
    # Not below tmp_path: any other pytest that starts closes the folder above it to other users. A
    # PostgreSQL that cannot reach its files ends at its next checkpoint, and cannot be stopped.
    data, user = Path(tempfile.mkdtemp(prefix="df-pg-")), []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(data, "postgres", "postgres")
    control = [*user, str(folder / "pg_ctl"), "-D", str(data), "-w"]
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {data} -c fsync=off"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    make = [*user, str(folder / "initdb"), "-D", str(data), "-U", "fleet", "--auth=trust"]
    subprocess.run(make, **quiet)  # type: ignore[call-overload]
    subprocess.run([*control, "-o", options, "start"], **quiet)  # type: ignore[call-overload]
    try:
        for name in ("mlflow", "studies"):
            create = ["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "fleet", name]
            subprocess.run([str(folder / create[0]), *create[1:]], check=True)
        yield port
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)  # type: ignore[call-overload]
        shutil.rmtree(data, ignore_errors=True)


def test_a_new_database_is_filled_once(postgres: int) -> None:
    """Sweeps that begin at the same time find it empty, all of them."""
    url, at_once = f"postgresql+psycopg://fleet@127.0.0.1:{postgres}/studies", Barrier(4)

    def opened(number: int) -> str:
        at_once.wait(300)
        return str(open_storage(url).create_new_study([StudyDirection.MAXIMIZE], f"s{number}"))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(opened, range(4)))) == 4


@pytest.fixture
def server(postgres: int, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on it."""
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--artifacts-destination", str(tmp_path / "artifacts")),
        *("--backend-store-uri", f"postgresql+psycopg://fleet@127.0.0.1:{postgres}/mlflow"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), "the MLflow server")
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=300)


@pytest.mark.usefixtures("ray_running")
def test_two_sweeps_at_once_on_postgres(
    postgres: int, server: str, sweep: Callable[..., RunConfig], driver: Driver, tmp_path: Path
) -> None:
    """One of them is killed and goes on from the database."""
    storage = f"postgresql+psycopg://fleet@127.0.0.1:{postgres}/studies"
    # Opened once: by its URL every look would leave two connections, of the hundred that there are.
    seen = open_storage(storage)
    tracking = {"enabled": True, "uri": server}
    configs = []
    for name in ("Rex", "Bello"):
        photos = {"images": [str(write_photos(tmp_path / name))], "class_word": "dog"}
        tune = {"num_samples": 3, "storage": storage}
        configs.append(sweep(f"out-{name}", subject=photos, tune=tune, tracking=tracking))

    def ended(name: str) -> dict[int, Any]:
        with contextlib.suppress(KeyError):  # it has not begun
            study = optuna.load_study(study_name=name, storage=seen)
            return {trial.number: trial.datetime_complete for trial in study.trials
                    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)}  # fmt: skip
        return {}

    rex, bello = [driver(config) for config in configs]
    wait_for(lambda: bool(ended("rex")), "the first trial")
    os.killpg(rex.pid, signal.SIGKILL)
    rex.wait()
    before = ended("rex")
    rex = driver(configs[0], "--resume")
    assert [process.wait(timeout=1800) for process in (rex, bello)] == [0, 0]
    assert before.items() <= ended("rex").items(), "nothing that ended is repeated"
    for name in ("rex", "bello"):
        assert len(ended(name)) == 3
        found = f"{server}/api/2.0/mlflow/registered-models/alias?name={name}&alias=champion"
        with urllib.request.urlopen(found, timeout=300) as reply:
            assert json.load(reply)["model_version"]["version"] == "1"
    seen.engine.dispose()
