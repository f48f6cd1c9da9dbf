"""Run a pretraining recipe: in a Ray Train worker, or in this process."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.config import ClusterConfig, RunConfig
from dreamfleet.errors import BadInputError, TrainingError, last_line
from dreamfleet.runtime.devices import choose_device
from dreamfleet.runtime.progress import ConsoleProgress, Progress
from dreamfleet.runtime.session import visible_cpus
from dreamfleet.training.pretraining.run import Pretraining, check_stages, load_recipe
from dreamfleet.training.pretraining.stage import Stopped

if TYPE_CHECKING:
    from dreamfleet.runtime.session import RaySession

LOG_EVERY_S = 60.0  # into a log file; a bar on a terminal moves all the time
RAY_FOLDER = "ray"


@dataclass(frozen=True)
class PretrainJob:
    """What to train, where and with how much of the machine.

    Attributes:
        config: the recipe.
        work_dir: drawings, states and logs; the Ray worker must see it too.
        stages: names in order; all when empty.
        device: auto, cpu or cuda.
        num_threads: of torch; 0: torch's choice.
        num_processes: that draw, and cores that a Ray worker reserves; 0: all that are there.
    """

    config: Path
    work_dir: Path
    stages: tuple[str, ...] = ()
    device: str = "auto"
    num_threads: int = 0
    num_processes: int = 0


@dataclass(frozen=True)
class _Event:
    """One word of progress from the worker."""

    stage: str
    done: int
    total: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Outcome:
    """How the worker ended."""

    status: str  # finished, stopped or refused
    message: str = ""


def pretrain(
    job: PretrainJob,
    *,
    use_ray: bool = True,
    cluster: ClusterConfig | None = None,
    progress: Progress | None = None,
) -> None:
    """Draw and train what `job` names; run it again to go on after a stop of any kind.

    Raises:
        BadInputError: a wrong recipe, stage or device, or a stage without what it needs.
        TrainingError: the Ray worker was lost too often.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    check_stages(load_recipe(job.config), job.stages)  # before Ray starts, and hours are drawn
    absolute = replace(job, config=job.config.resolve(), work_dir=job.work_dir.resolve())
    with _Bars(progress or ConsoleProgress(log_every_s=LOG_EVERY_S)) as bars:
        if use_ray:
            _run_on_ray(absolute, cluster or ClusterConfig(), bars)
        else:
            _run_here(absolute, bars)


def export_job(job: PretrainJob, folder: Path | None = None) -> Path:
    """Write the weights of `job`'s working folder into the package, or below `folder`.

    Returns the base's folder; in `folder` it is `base`, beside `evaluators`.

    Raises:
        BadInputError: a stage has not been trained.
    """
    from dreamfleet.training.pretraining.export import BASE_FOLDER, EVALUATOR_FOLDER, export_weights

    base = folder / "base" if folder else BASE_FOLDER
    evaluators = folder / "evaluators" if folder else EVALUATOR_FOLDER
    export_weights(Pretraining(load_recipe(job.config), job.work_dir), base, evaluators)
    return base


class _Bars:
    """One bar after the other, as the stages come."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open = contextlib.ExitStack()
        self._stage: Any = None
        self._name = ""

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def show(self, event: _Event | None) -> None:
        """Move the bar of the event's stage; None is only a sign of life."""
        if event is None:
            return
        if event.stage != self._name:
            self._open.close()
            self._name = event.stage
            self._stage = self._open.enter_context(self._progress.stage(event.stage, event.total))
        note = " ".join(f"{key} {value:.3f}" for key, value in event.metrics.items())
        self._stage.update(event.done, note)


# -- in this process -------------------------------------------------------------------------------


def _run_here(job: PretrainJob, bars: _Bars) -> None:
    def report(stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        bars.show(_Event(stage, done, total, metrics))

    job = replace(job, device=_device_here(job.device))
    _set_threads(job)
    with _first_ctrl_c() as interrupted:
        work = Pretraining(
            load_recipe(job.config),
            job.work_dir,
            report,
            lambda: bool(interrupted),
            job.device,
            job.num_processes or visible_cpus(),
        )
        try:
            work.run(job.stages)
        except Stopped as error:
            raise KeyboardInterrupt from error


@contextlib.contextmanager
def _first_ctrl_c() -> Iterator[list[int]]:
    """A list that the first Ctrl-C fills; the second one interrupts as ever."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: Ctrl-C is someone else's matter
        yield seen
        return
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _device_here(device: str) -> str:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInputError("device 'cuda': torch sees no GPU here; use auto or cpu")
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _set_threads(job: PretrainJob) -> None:
    import torch

    if job.num_threads:
        torch.set_num_threads(job.num_threads)


# -- on Ray ----------------------------------------------------------------------------------------


def _run_on_ray(job: PretrainJob, cluster: ClusterConfig, bars: _Bars) -> None:
    from dreamfleet.runtime.relay import start_relay
    from dreamfleet.runtime.session import ray_session
    from dreamfleet.training.fit import Fit, follow

    with ray_session(cluster) as session:
        import ray

        relay = start_relay()
        placed = _placed(job, session)
        fit = Fit(_trainer(placed, cluster, relay))
        try:
            follow(fit, relay, bars.show)
            outcome = fit.returned()
        except Exception as error:
            raise TrainingError(
                f"pretraining in {job.work_dir} did not end ({last_line(error)}); what is done is "
                "kept: run the same command again to go on"
            ) from error
        finally:
            ray.kill(relay)
            shutil.rmtree(job.work_dir / RAY_FOLDER, ignore_errors=True)
    if outcome.status == "refused":
        raise BadInputError(outcome.message)
    if outcome.status == "stopped":
        raise KeyboardInterrupt


def _placed(job: PretrainJob, session: RaySession) -> PretrainJob:
    """`job` with its device and its number of cores decided for this cluster."""
    device = choose_device(RunConfig.model_validate({"device": job.device}), session)
    cores = job.num_processes or (max(1, int(session.num_cpus)) if session.local else 1)
    return replace(job, device=device, num_processes=cores)


def _trainer(job: PretrainJob, cluster: ClusterConfig, relay: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = job.device == "cuda"
    resources = {"CPU": float(job.num_processes), **({"GPU": 1.0} if use_gpu else {})}
    return TorchTrainer(
        _pretrain_worker,
        train_loop_config={"job": job, "relay": relay},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=use_gpu,
            resources_per_worker=cluster.resources_per_worker or resources,
        ),
        run_config=RunConfig(
            # A fresh name: what there is to go on from lies in the working folder, not with Ray.
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}",
            storage_path=str(job.work_dir / RAY_FOLDER),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )


def _pretrain_worker(config: dict[str, Any]) -> _Outcome:
    """Runs on the worker; after its loss Ray starts it again and it goes on from the folder."""
    from dreamfleet.runtime.relay import RelayClient

    job: PretrainJob = config["job"]
    client = RelayClient(config["relay"])

    def report(stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        client.send(_Event(stage, done, total, metrics))

    def should_stop() -> bool:
        client.send(None)  # the answer to a push says whether to stop
        return client.should_stop()

    _set_threads(job)
    work = Pretraining(
        load_recipe(job.config), job.work_dir, report, should_stop, job.device, job.num_processes
    )
    try:
        work.run(job.stages)
    except Stopped as error:
        return _Outcome("stopped", str(error))
    except BadInputError as error:  # trying again would not help
        return _Outcome("refused", str(error))
    finally:
        client.flush()
    return _Outcome("finished")
