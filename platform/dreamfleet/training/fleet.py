"""Many subjects through a pool of engine actors, each of which trains several in one batch.

Not Ray Train: its report is a barrier, and workers with uneven subjects would wait for each other
for ever. Progress is keyed by subject; `train` is idempotent, so a lost engine is started again and
goes on from the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dreamfleet.config import ClusterConfig, RunConfig
from dreamfleet.data.cache import open_cache
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import DreamfleetError
from dreamfleet.runtime.engine_actor import EngineActor, EngineSource
from dreamfleet.runtime.relay import DRIVER_POLL_S, RelayClient, hand_over, start_relay
from dreamfleet.runtime.room import Silence, bundle, waiting_text
from dreamfleet.training.memory import free_device_memory
from dreamfleet.training.task import StageEvent, TrainEvent, TrainOutcome, TrainTask
from dreamfleet.training.worker import Run, figures

if TYPE_CHECKING:
    from dreamfleet.engine.engine import Engine
    from dreamfleet.engine.metrics import StepMetrics
    from dreamfleet.runtime.session import RaySession

STOP_WITHIN_S = 60.0
WAITING_PER_ENGINE = 1  # the next subject waits at the engine, so that no slot idles between two


@dataclass(frozen=True)
class FleetJob:
    """One subject in the queue; `build` makes its task when an engine is near, so that sets are not
    all in memory.
    """

    subject_id: str
    build: Callable[[], TrainTask]


@dataclass
class FleetSummary:
    """How the subjects were trained.

    Attributes:
        engines: processes, each with one base.
        shared: by subject, how many subjects, itself included, shared its steps on average.
    """

    engines: int
    shared: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """One line for the user."""
        where = "one engine" if self.engines == 1 else f"{self.engines} engines"
        if not self.shared:
            return f"{where}: no subject shared a step"
        mean = sum(self.shared.values()) / len(self.shared)
        return f"{where}: {mean:.1f} subjects shared a training step, on average"


class _Stopped(Exception):
    """A run was asked to stop; its checkpoint is written."""


class FleetEngine(EngineActor):
    """An engine that trains subjects: LoRA runs together, full fine-tuning one at a time."""

    def __init__(self, source: EngineSource, settings: EngineSettings, relay: Any) -> None:
        super().__init__(source, settings)
        self._relay, self._stopping = relay, False
        self._alone = threading.Lock()
        self._slots = threading.BoundedSemaphore(settings.max_slots)
        self._threads = ThreadPoolExecutor(settings.max_slots + WAITING_PER_ENGINE)

    async def train(self, task: TrainTask) -> TrainOutcome:
        """Train to the end, or say why not. May be called again for the same subject at any
        time.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._train, task)

    def _train(self, task: TrainTask) -> TrainOutcome:
        from dreamfleet.engine.packed_job import why_alone

        reporter = RelayClient(self._relay)
        run = Run(task, reporter)
        try:
            done = run.finished_before()
            if done is not None:
                return done
            reason = why_alone(task.config)
            if reason is None:
                with self._slots:
                    return self._together(run)
            with self._alone:
                return self._by_itself(run, reason)
        except Exception as error:
            outcome = _told(run, error)
        finally:
            self._stopping = self._stopping or reporter.should_stop()
        free_device_memory()  # out here the error's traceback holds the job no longer
        return outcome

    def _by_itself(self, run: Run, reason: str) -> TrainOutcome:
        if self._stopping:
            return run.stopped()
        text = f"{reason}, so it trains alone, on a base of its own"
        run.reporter.send(StageEvent(run.task.subject.id, text, "alone"))
        return run.run()

    def _together(self, run: Run) -> TrainOutcome:
        if self._stopping:
            return run.stopped()
        sharing = _Sharing(run)
        job_id = run.task.subject.id
        try:
            self.loop.call(sharing.begin).result().result()
            outcome = self.loop.call(lambda engine: run.finish(engine.job(job_id))).result()
        except _Stopped:
            outcome = run.stopped()
        finally:
            self.loop.call(lambda engine: engine.release(job_id)).result()
        return replace(outcome, details={"jobs_per_step": sharing.mean()})


class _Sharing:
    """A run that steps with others; lives in the engine's thread."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._counts: list[int] = []
        self._last = time.perf_counter()

    def begin(self, engine: Engine) -> Future[Any]:
        """Take a slot, go on from the checkpoint, and train to the last step."""
        from dreamfleet.training.jobs import job_spec

        run, job_id = self._run, self._run.task.subject.id

        def on_step(metrics: StepMetrics) -> None:
            now = time.perf_counter()
            took, self._last = now - self._last, now
            self._counts.append(engine.sharing)
            job = engine.job(job_id)
            if run.after_step(job, figures(asdict(metrics)), run.reporter.should_stop(), took):
                raise _Stopped

        run.begin(engine.add_job(job_id, job_spec(run.task, run.group), on_step=on_step))
        self._last = time.perf_counter()
        return engine.run_until(job_id, run.last_step)

    def mean(self) -> float:
        """Jobs of a step, this one included, on average."""
        return sum(self._counts) / len(self._counts) if self._counts else 0.0


def _told(run: Run, error: Exception) -> TrainOutcome:
    """What went wrong with a run, whatever it is: an error that left the actor would look like the
    actor's own.
    """
    try:
        return run.failed(error)
    except Exception:
        return failed(run.task.subject.id, error)


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
    resources = engine_resources(cluster, device)
    there = {"num_cpus": session.num_cpus, "num_gpus": session.num_gpus}
    places = [int(there[name] / resources[name]) for name in there if resources.get(name)]
    return max(1, min(cluster.num_workers, jobs, *places))


def engine_resources(cluster: ClusterConfig, device: str) -> dict[str, Any]:
    """Ray's options for an actor that computes: one CPU and, on GPUs, one of these, unless
    `cluster.resources_per_worker` says otherwise.
    """
    wished = dict(cluster.resources_per_worker)
    resources: dict[str, Any] = {"num_cpus": wished.pop("CPU", 1)}
    gpus = wished.pop("GPU", 1.0 if device == "cuda" else 0.0)
    if gpus:
        resources["num_gpus"] = gpus
    if cluster.accelerator_type:
        resources["accelerator_type"] = cluster.accelerator_type
    if memory := wished.pop("memory", 0.0):
        resources["memory"] = memory
    if wished:
        resources["resources"] = wished
    if cluster.placement_strategy.endswith("SPREAD"):
        resources["scheduling_strategy"] = "SPREAD"
    return resources


def engine_settings(config: RunConfig, max_slots: int) -> EngineSettings:
    """Bounds of an engine that trains; its teacher's predictions are kept where photos are."""
    gib = config.data.teacher_cache_gib
    if not gib:
        return EngineSettings(max_slots=max_slots)
    folder = open_cache(config.data.cache_path).teacher_folder.expanduser().absolute()
    return EngineSettings(
        max_slots=max_slots,
        teacher_cache_folder=str(folder),
        teacher_cache_disk_mib=max(1, int(gib * 1024)),
    )


def train_fleet(
    jobs: Sequence[FleetJob],
    config: RunConfig,
    session: RaySession,
    device: str,
    on_event: Callable[[TrainEvent], None],
    on_outcome: Callable[[TrainOutcome], None],
    warn: Callable[[str], None],
) -> FleetSummary:
    """Train all `jobs`; `on_outcome` gets each subject's end as it comes. Nothing one subject does
    stops the others. `warn` is called where the engines wait for room.

    All callbacks run in this thread. A KeyboardInterrupt lets the engines write checkpoints, then
    is raised again.

    Args:
        config: what the subjects have in common: base, precision, cluster.
    """
    import ray

    cluster, relay = config.cluster, start_relay()
    places = engine_count(cluster, session, len(jobs), device)
    settings = engine_settings(config, min(cluster.max_slots, math.ceil(len(jobs) / places)))
    # Of a cluster that is joined, what is there now says little: nodes come when asked for.
    count = places if session.local else min(cluster.num_workers, len(jobs))
    engine = ray.remote(
        max_restarts=cluster.max_failures,
        max_task_retries=-1,
        max_concurrency=settings.max_slots + WAITING_PER_ENGINE + 1,
        **engine_resources(cluster, device),
    )(FleetEngine)
    source = EngineSource.of(config, device)
    summary = FleetSummary(places)

    def note(outcome: TrainOutcome) -> None:
        if outcome.details.get("jobs_per_step"):
            summary.shared[outcome.subject_id] = float(outcome.details["jobs_per_step"])
        on_outcome(outcome)

    def start() -> Any:
        return engine.remote(source, settings, relay)

    def tell() -> None:
        each = bundle(engine_resources(cluster, device))
        warn(waiting_text(count, count, "engines", each))

    queue = _Queue(list(jobs), start, count, settings.max_slots + WAITING_PER_ENGINE, note)
    silence = Silence(tell)
    try:
        while queue.busy():
            queue.fill()
            queue.collect(DRIVER_POLL_S)
            silence.note(hand_over(relay, on_event))
            summary.engines = max(1, len(queue.ready))
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
    return summary


class _Queue:
    """Subjects waiting, and those at an engine. An engine is handed subjects once it answers: one
    that waits for room in the cluster would keep them from those that have it.
    """

    def __init__(
        self,
        waiting: list[FleetJob],
        start_engine: Callable[[], Any],
        count: int,
        in_flight: int,
        on_outcome: Callable[[TrainOutcome], None],
    ) -> None:
        self._in_flight = in_flight
        self._waiting = waiting[::-1]
        self._start_engine = start_engine
        self._on_outcome = on_outcome
        self.ready: set[int] = set()
        self._pings: dict[Any, int] = {}
        self.engines = [self._start(index) for index in range(count)]
        self._running: dict[
            Any, tuple[FleetJob, int]
        ] = {}  # in the order in which they were handed over

    def _start(self, index: int) -> Any:
        engine = self._start_engine()
        self._pings[engine.ping.remote()] = index
        return engine

    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def fill(self) -> None:
        """Hand subjects to the least loaded engines; a task that cannot be built is that subject's
        failure.
        """
        # A single one gets them at once: there is none to keep them from.
        usable = sorted(self.ready) if len(self.engines) > 1 else [0]
        while self._waiting and usable:
            load = {
                index: sum(engine == index for _, engine in self._running.values())
                for index in usable
            }
            index = min(load, key=load.__getitem__)
            if load[index] >= self._in_flight:
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

        known = [*self._running, *self._pings]
        ready, _ = ray.wait(known, timeout=timeout) if known else ([], [])
        for reference in ready:
            if reference in self._pings:
                self._answered(reference)
                continue
            if reference not in self._running:
                continue  # went back into the queue with its engine
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # the engine itself lives
                cause = error.cause if isinstance(error.cause, Exception) else error
                outcome = failed(self._running[reference][0].subject_id, cause)
            except ray.exceptions.RayError as error:
                self._engine_lost(self._running[reference][1], error)
                continue
            del self._running[reference]
            self._on_outcome(outcome)

    def _answered(self, ping: Any) -> None:
        import ray

        index = self._pings.pop(ping)
        try:
            ray.get(ping)
        except ray.exceptions.RayTaskError:
            pass  # it lives; why its base did not load, its subjects' outcomes say
        except ray.exceptions.RayError as error:
            self._engine_lost(index, error)
            return
        self.ready.add(index)

    def _engine_lost(self, index: int, error: Exception) -> None:
        """An engine died more than `max_failures` times: the subject at work is blamed (where it
        had none, the next, so that this ends), the waiting one goes elsewhere.
        """
        import ray

        there = [
            (reference, job)
            for reference, (job, engine) in self._running.items()
            if engine == index
        ]
        for reference, _ in there:
            del self._running[reference]
        lost = [job for _, job in there]
        if not lost and self._waiting:
            lost = [self._waiting.pop()]
        self._waiting += lost[1:]
        with contextlib.suppress(Exception):
            ray.kill(self.engines[index])  # none may train the same folders beside the next one
        self._pings = {ping: engine for ping, engine in self._pings.items() if engine != index}
        self.ready.discard(index)
        self.engines[index] = self._start(index)
        if lost:
            self._on_outcome(failed(lost[0].subject_id, error))

    def wait(self, timeout: float) -> None:
        """Wait for what is at the engines."""
        import ray

        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=timeout)
