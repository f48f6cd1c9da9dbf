"""Ray jobs: what a command inside one must not do, and handing a command to a cluster as one."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamfleet.config import RunConfig, environment
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError, first_line
from dreamfleet.runtime.auth import client_environment
from dreamfleet.runtime.session import added_environment
from dreamfleet.runtime.storage import is_uri

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Ray kills a stopped job after 3 s; the workers' last checkpoint may take longer.
STOP_WAIT_S = 90
STOPPED = 130


def inside_job() -> bool:
    """True in the driver of a Ray job."""
    return environment("RAY_JOB_CONFIG_JSON_ENV_VAR") is not None


def check_job_places(
    config: RunConfig, *, writes_output: bool = True, in_job: bool | None = None
) -> None:
    """Inside a Ray job refuse places to write to that would be lost with the job's copy of the
    working folder. `in_job` None: find out.

    Raises:
        ConfigError: naming the key.
    """
    if not (inside_job() if in_job is None else in_job):
        return
    if writes_output and not config.output_dir:
        raise ConfigError(_lost("output_dir", None, "--output-dir"))
    for key, flag, value in (
        ("output_dir", "--output-dir", config.output_dir),
        ("cluster.storage_path", "--storage-path", config.cluster.storage_path),
        ("data.cache_path", "--cache-path", config.data.cache_path),
    ):
        if value and not _is_anchored(value):
            raise ConfigError(_lost(key, value, flag))
    _check_tracking("tracking.uri", config.tracking.uri)
    _check_tracking("tune.storage", config.tune.storage)
    if not config.tracking.uri:
        _check_tracking("MLFLOW_TRACKING_URI", environment("MLFLOW_TRACKING_URI"))


def durable_folder(flag: str, value: str) -> Path:
    """`value` as a path; ConfigError for a URI, and for a relative one inside a Ray job."""
    if is_uri(value):
        raise ConfigError(f"{flag} = {value!r}: expected a folder, on a disk that all nodes share")
    if inside_job() and not _is_anchored(value):
        raise ConfigError(_lost(flag, value, flag).removesuffix(", or a URI"))
    return Path(value).expanduser()


def _is_anchored(value: str) -> bool:
    return is_uri(value) or Path(value).expanduser().is_absolute()


def _lost(key: str, value: str | None, flag: str) -> str:
    return (
        f"{key} = {value!r}: inside a Ray job a relative folder lies in the job's own copy of the "
        f"working folder and is lost; give an absolute {flag}, or a URI"
    )


def _check_tracking(key: str, uri: str | None) -> None:
    scheme, _, place = (uri or "").partition(":")
    if scheme in ("databricks", "databricks-uc", "uc"):  # servers named by a word
        return
    relative = {
        "sqlite": not place.startswith("////"),
        "file": not place.startswith("//"),
    }.get(scheme, bool(uri) and not _is_anchored(str(uri)))
    if relative:
        raise ConfigError(
            f"{key} = {uri!r}: inside a Ray job a relative place lies in the job's own copy "
            "and is lost; give an absolute one, e.g. sqlite:////shared/mlflow.db"
        )


@dataclass(frozen=True)
class Submission:
    """A dreamfleet command for a cluster."""

    arguments: tuple[str, ...]  # of `dreamfleet`
    address: str | None = None  # of the head's dashboard
    working_dir: str | None = None  # sent along; default: the present folder, where a checkout
    submission_id: str | None = None

    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment: the code comes along from a checkout; elsewhere the cluster's
        image has it.
        """
        folder = Path(self.working_dir or ".")
        if not folder.is_dir():
            raise BadInputError(f"--working-dir {folder}: no such folder")
        checkout = (folder / "platform" / "dreamfleet").is_dir()
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
        if checkout:
            variables["PYTHONPATH"] = "platform"
        sent = {"working_dir": str(folder)} if checkout or self.working_dir else {}
        return {**sent, "env_vars": variables}

    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "dreamfleet", *self.arguments])


def submit(job: Submission, *, wait: bool, say: Callable[[str], None]) -> int:
    """Submit `job`, pass its log to `say` line by line, and return its exit code (0 at once
    without `wait`).

    Raises:
        DreamfleetError: the head cannot be reached, or refuses the job.
    """
    address = job.address or environment("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if not address.startswith(("http://", "https://")):
        raise BadInputError(
            f"--ray-address {address}: expected the head's dashboard, e.g. {DEFAULT_ADDRESS}"
        )
    runtime_env = job.runtime_env()
    with added_environment(client_environment()):
        from ray.job_submission import JobSubmissionClient

        try:
            client = JobSubmissionClient(address)
            identity = client.submit_job(
                entrypoint=job.entrypoint(),
                submission_id=job.submission_id,
                runtime_env=runtime_env,
            )
        except Exception as error:  # Ray raises bare ConnectionError, RuntimeError and others
            raise DreamfleetError(
                f"Ray head at {address}: the job was not taken ({first_line(error)}); check the "
                "address, that the head runs with its dashboard, and that ~/.ray/auth_token or "
                "RAY_AUTH_TOKEN holds its token"
            ) from error
        say(f"job {identity}; stop it with: ray job stop {identity} --address {address}")
        return _follow(client, identity, say) if wait else 0


def _follow(client: Any, identity: str, say: Callable[[str], None]) -> int:
    async def tail() -> None:
        async for text in client.tail_job_logs(identity):
            for line in text.splitlines():
                say(line)

    try:
        asyncio.run(tail())
        info = client.get_job_info(identity)
    except Exception as error:  # Ray's and aiohttp's, of many kinds
        raise DreamfleetError(
            f"job {identity}: its head answers no more ({first_line(error)}); the job may go on: "
            f"`ray job status {identity}` tells"
        ) from error
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        say(f"job {identity} was stopped")
        return STOPPED
    if info.driver_exit_code is None:  # it never ran
        raise DreamfleetError(f"job {identity}: {info.status}: {first_line(info.message)}")
    return int(info.driver_exit_code) or 1
