"""One Ray per command: a private local one that ends with the command, or the cluster that the user
names.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dreamfleet.config import ClusterConfig, environment
from dreamfleet.errors import DreamfleetError, first_line
from dreamfleet.runtime.auth import token_environment

# The default of 30 % of the memory is far more than photos and latents need; what does not fit is
# spilled.
OBJECT_STORE_BYTES = 256 * 2**20

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning a task without accelerators
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
TRAIN = {
    # report() passes one result per poll of the controller, so the poll is what a checkpoint waits
    # for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ranks report equally often; should one hang all the same, the run fails instead of waiting for
    # ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
}
SERVE = {
    # Serve gives its proxy 5 s to start, and kills it else; on a busy machine it needs longer.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}
LOCAL_ONLY = {
    # Ray gives way to every other process (niceness 15); but this is what its user waits for.
    "RAY_worker_niceness": "0",
    # On a busy machine Ray's helpers need longer than the 15 s that its node grants them.
    "RAY_agent_register_timeout_ms": "120000",
    # Makes Ray take 127.0.0.1 as its node address, so that every port is on loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True)
class RaySession:
    """The Ray that this process is connected to."""

    address: str | None  # None: private and local
    num_cpus: float
    num_gpus: float

    @property
    def local(self) -> bool:
        return self.address is None


def ray_address(cluster: ClusterConfig) -> str | None:
    """The cluster to join, or None for a private local Ray."""
    return cluster.ray_address or environment("RAY_ADDRESS")


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig, *, dashboard: bool = True) -> Iterator[RaySession]:
    """Start or join Ray, and end what was started.

    An already connected process keeps its connection. `dashboard` must be on for Ray Train: without
    it the end of every fit waits 12 s for an API that is not there.

    Raises DreamfleetError when the named cluster cannot be joined.
    """
    address = ray_address(cluster)
    variables = {
        **QUIET,
        **TRAIN,
        **SERVE,
        **({} if address else {**LOCAL_ONLY, **token_environment()}),
    }
    with added_environment(variables):
        import ray

        if ray.is_initialized():
            yield _session(address)
            return
        _read_environment_again()
        with _own_sigterm():
            _init(address, cluster, dashboard)
        try:
            yield _session(address)
        finally:
            ray.shutdown()


def _read_environment_again() -> None:
    """Ray's core reads its variables once, when `ray.serve`, `ray.tune` or the like is imported: it
    would then know nothing of the token, and be refused by the cluster that it starts.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def added_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set those `variables` that the user has not set, for the time of the block."""
    added = [name for name in variables if environment(name) is None]
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself, as a plain exit; a handler of ours (checkpoints first)
    comes back.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _init(address: str | None, cluster: ClusterConfig, dashboard: bool) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        with _without_log_level_line():
            ray.init(
                address="local",  # never join a cluster that merely happens to run on this machine
                num_cpus=max(visible_cpus(), _cpus_wanted(cluster)),
                include_dashboard=dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        return
    try:
        with _without_log_level_line():
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DreamfleetError(
            f"Ray at {address} cannot be joined ({first_line(error)}); check the address, "
            "that the cluster runs, "
            "and that RAY_AUTH_TOKEN or ~/.ray/auth_token holds its token (or leave "
            "--ray-address and RAY_ADDRESS "
            "out to use a private local Ray)"
        ) from error


@contextlib.contextmanager
def _without_log_level_line() -> Iterator[None]:
    """Ray's core says on the real stderr that it was told to be quiet; pass on everything but that
    line.
    """
    import sys
    import tempfile

    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # no stderr at all
        yield
        return
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            buffer.seek(0)
            lines = [
                line
                for line in buffer
                if b"Set ray log level from environment variable" not in line
            ]
            if lines:
                os.write(2, b"".join(lines))


def _session(address: str | None) -> RaySession:
    import ray

    resources = ray.cluster_resources()
    return RaySession(address, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def visible_cpus() -> int:
    """Cores that this process may use (a container's or taskset's share, not the machine's)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _cpus_wanted(cluster: ClusterConfig) -> int:
    """Logical CPUs so that all workers can start: on a small machine they share cores instead of
    waiting for ever.
    """
    return max(1, math.ceil(cluster.num_workers * cluster.resources_per_worker.get("CPU", 1)))
