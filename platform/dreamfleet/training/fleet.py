"""Many subjects through a pool of engine actors.

Not Ray Train: its report is a barrier, and workers with uneven subjects would wait for each other
for ever. Progress is keyed by subject; `train` is idempotent, so a lost engine is started again and
goes on from the files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamfleet.config import ClusterConfig
from dreamfleet.errors import DreamfleetError
from dreamfleet.runtime.relay import DRIVER_POLL_S, RelayClient, hand_over, start_relay
from dreamfleet.training.task import TrainEvent, TrainOutcome, TrainTask
from dreamfleet.training.worker import train_in_process

if TYPE_CHECKING:
    from dreamfleet.runtime.session import RaySession

STOP_WITHIN_S = 60.0
IN_FLIGHT_PER_ENGINE = 2  # the next subject waits at the engine, so that none idles between two


@dataclass(frozen=True)
class FleetJob:
    """One subject in the queue; `build` makes its task when an engine is near, so that sets are not
    all in memory.
    """

    subject_id: str
    build: Callable[[], TrainTask]


class _FleetEngine:
    """Trains subjects one after the other in its own process."""

    def __init__(self, relay: Any) -> None:
        self._reporter = RelayClient(relay)

    def train(self, task: TrainTask) -> TrainOutcome:
        """Train to the end, or say why not. May be called again for the same subject at any
        time.
        """
        if self._reporter.should_stop():
            return TrainOutcome(task.subject.id, "stopped", 0)
        try:
            return train_in_process(task, reporter=self._reporter)
        except Exception as error:
            return failed(task.subject.id, error)


def failed(subject_id: str, error: BaseException) -> TrainOutcome:
    line = (str(error).strip().splitlines() or [""])[0]
    message = (
        str(error) if isinstance(error, DreamfleetError) else f"{type(error).__name__}: {line}"
    )
    return TrainOutcome(subject_id, "failed", 0, message=message)


def engine_count(cluster: ClusterConfig, session: RaySession, jobs: int, device: str) -> int:
    """Engines to start: `cluster.num_workers`, but no more than there are subjects or places for
    them.
    """
    resources = _engine_resources(cluster, device)
    places = (
        session.num_gpus / resources.get("num_gpus", 1) if device == "cuda" else session.num_cpus
    )
    return max(1, min(cluster.num_workers, jobs, int(places) or 1))


def _engine_resources(cluster: ClusterConfig, device: str) -> dict[str, Any]:
    wished = dict(cluster.resources_per_worker)
    resources: dict[str, Any] = {"num_cpus": wished.pop("CPU", 1)}
    gpus = wished.pop("GPU", 1.0 if device == "cuda" else 0.0)
    if gpus:
        resources["num_gpus"] = gpus
    if cluster.accelerator_type:
        resources["accelerator_type"] = cluster.accelerator_type
    if wished:
        resources["resources"] = wished
    if cluster.placement_strategy.endswith("SPREAD"):
        resources["scheduling_strategy"] = "SPREAD"
    return resources


def train_fleet(
    jobs: Sequence[FleetJob],
    cluster: ClusterConfig,
    session: RaySession,
    device: str,
    on_event: Callable[[TrainEvent], None],
    on_outcome: Callable[[TrainOutcome], None],
) -> None:
    """Train all `jobs`; `on_outcome` gets each subject's end as it comes. Nothing one subject does
    stops the others.

    Both callbacks run in this thread. A KeyboardInterrupt lets the engines write checkpoints, then
    is raised again.
    """
    import ray

    relay = start_relay()
    engine = ray.remote(
        max_restarts=cluster.max_failures, max_task_retries=-1, **_engine_resources(cluster, device)
    )(_FleetEngine)
    count = engine_count(cluster, session, len(jobs), device)
    queue = _Queue(list(jobs), lambda: engine.remote(relay), count, on_outcome)
    try:
        while queue.busy():
            queue.fill()
            queue.collect(DRIVER_POLL_S)
            hand_over(relay, on_event)
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt, ray.exceptions.RayError):
            relay.request_stop.remote()
            queue.wait(STOP_WITHIN_S)
            hand_over(relay, on_event)
        raise
    finally:
        for actor in [*queue.engines, relay]:
            with contextlib.suppress(Exception):
                ray.kill(actor)


class _Queue:
    """Subjects waiting, and those at an engine."""

    def __init__(
        self,
        waiting: list[FleetJob],
        start_engine: Callable[[], Any],
        count: int,
        on_outcome: Callable[[TrainOutcome], None],
    ) -> None:
        self._waiting = waiting[::-1]
        self._start_engine = start_engine
        self._on_outcome = on_outcome
        self.engines = [start_engine() for _ in range(count)]
        self._running: dict[
            Any, tuple[FleetJob, int]
        ] = {}  # in the order in which they were handed over

    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def fill(self) -> None:
        """Hand subjects to the least loaded engines; a task that cannot be built is that subject's
        failure.
        """
        while self._waiting:
            load = [
                sum(engine == index for _, engine in self._running.values())
                for index in range(len(self.engines))
            ]
            index = load.index(min(load))
            if load[index] >= IN_FLIGHT_PER_ENGINE:
                return
            job = self._waiting.pop()
            try:
                task = job.build()
            except Exception as error:
                self._on_outcome(failed(job.subject_id, error))
                continue
            self._running[self.engines[index].train.remote(task)] = (job, index)

    def collect(self, timeout: float) -> None:
        """Take what is ready, waiting at most `timeout` seconds for the first."""
        import ray

        ready, _ = ray.wait(list(self._running), timeout=timeout) if self._running else ([], [])
        for reference in ready:
            if reference not in self._running:
                continue  # went back into the queue with its engine
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                self._engine_lost(self._running[reference][1], error)
                continue
            del self._running[reference]
            self._on_outcome(outcome)

    def _engine_lost(self, index: int, error: Exception) -> None:
        """An engine died more than `max_failures` times: the subject at work is blamed, the waiting
        one goes elsewhere.
        """
        there = [
            (reference, job)
            for reference, (job, engine) in self._running.items()
            if engine == index
        ]
        for reference, _ in there:
            del self._running[reference]
        self._waiting += [job for _, job in there[1:]]
        self.engines[index] = self._start_engine()
        self._on_outcome(failed(there[0][1].subject_id, error))

    def wait(self, timeout: float) -> None:
        """Wait for what is at the engines."""
        import ray

        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=timeout)
