"""What is refused inside a Ray job, and what `dreamfleet submit` sends; no Ray is started here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dreamfleet import cli
from dreamfleet.config import RunConfig
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError
from dreamfleet.runtime import auth
from dreamfleet.runtime.jobs import Submission, _follow, check_job_places, durable_folder
from dreamfleet.training.fit import STOP_WITHIN_S

ROOT = Path(__file__).resolve().parents[3]
GOOD: dict[str, Any] = {"output_dir": "/shared/rex"}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"output_dir": None}, "output_dir"),
        ({"output_dir": "runs/rex"}, "output_dir"),
        ({**GOOD, "cluster": {"storage_path": "fleet"}}, "cluster.storage_path"),
        ({**GOOD, "data": {"cache_path": "cache"}}, "data.cache_path"),
        ({**GOOD, "tracking": {"uri": "mlruns"}}, "tracking.uri"),
        ({**GOOD, "tracking": {"uri": "sqlite:///mlflow.db"}}, "tracking.uri"),
        ({**GOOD, "tracking": {"uri": "file:mlruns"}}, "tracking.uri"),
    ],
)
def test_places_that_would_be_lost(
    values: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate(values)
    check_job_places(config)  # outside a job all is well
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="is lost") as error:
        check_job_places(config)
    assert str(error.value).startswith(f"{key} = ")


@pytest.mark.parametrize(
    "values",
    [
        GOOD,
        {"output_dir": "s3://bucket/rex", "data": {"cache_path": "s3://bucket/cache"}},
        {**GOOD, "tracking": {"uri": "http://mlflow:5000"}},
        {**GOOD, "tracking": {"uri": "sqlite:////shared/mlflow.db"}},
        {**GOOD, "tracking": {"uri": "databricks"}},
        {**GOOD, "tracking": {"uri": "databricks-uc://profile"}},
    ],
)
def test_places_that_last(values: dict[str, Any]) -> None:
    check_job_places(RunConfig.model_validate(values), in_job=True)


def test_the_environment_and_scripts_are_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        check_job_places(RunConfig.model_validate(GOOD), in_job=True)
    assert durable_folder("--work-dir", "work") == Path("work")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="--work-dir = 'work'"):
        durable_folder("--work-dir", "work")
    assert durable_folder("--work-dir", "/shared/work") == Path("/shared/work")
    with pytest.raises(ConfigError, match="expected a folder"):
        durable_folder("--work-dir", "s3://bucket/work")


def test_a_checkout_sends_its_code_and_another_folder_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    job = Submission(("personalize", "a b"))
    sent = job.runtime_env()
    assert (sent["working_dir"], sent["env_vars"]["PYTHONPATH"]) == (".", "platform")
    assert int(sent["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > STOP_WITHIN_S
    assert job.entrypoint() == "python -m dreamfleet personalize 'a b'"
    monkeypatch.chdir(tmp_path)
    assert set(Submission(("runs",)).runtime_env()) == {"env_vars"}
    named = Submission(("runs",), working_dir=str(tmp_path)).runtime_env()
    assert named["working_dir"] == str(tmp_path) and "PYTHONPATH" not in named["env_vars"]
    with pytest.raises(BadInputError, match="no such folder"):
        Submission(("runs",), working_dir="nowhere").runtime_env()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fly",), "expected a command"),
        (("personalize", "--rnak", "3"), "No such option"),
        (("personalize", "--rank", "0", "--output-dir", "/o"), "train.rank"),
        (("personalize", "s3://b/p", "--class-word", "dog"), "absolute --output-dir"),
        (("prepare", "s3://b/p", "--output-dir", "squares"), "absolute --output-dir"),
        (("benchmark", "worldbench"), "absolute --output-dir"),
        (("evaluate", "--adapter", "s3://b/a", "--output-dir", "here"), "absolute --output-dir"),
    ],
)
def test_refused_before_anything_is_sent(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = ("--ray-address", "http://127.0.0.1:9")  # nobody answers there
    assert cli.main(["submit", *address, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_address_that_is_no_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--ray-address", "127.0.0.1:6379", "runs"]) == 2
    assert "expected the head's dashboard" in capsys.readouterr().err


def test_a_head_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--ray-address", "http://127.0.0.1:9", "runs"]) == 1
    assert "the job was not taken" in capsys.readouterr().err


def test_a_head_that_goes_away_leaves_the_job() -> None:
    said: list[str] = []

    class Client:
        async def tail_job_logs(self, identity: str) -> AsyncIterator[str]:
            yield "step 1\nstep 2"
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    with pytest.raises(DreamfleetError, match=r"job a: .*code 1006.*ray job status a"):
        _follow(Client(), "a", said.append)
    assert said == ["step 1", "step 2"]


def test_clients_send_the_token_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth.client_environment() == {}
    auth.token_environment()
    assert auth.client_environment() == {"RAY_AUTH_MODE": "token"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth.client_environment() == {}
