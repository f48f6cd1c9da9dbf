"""One subject on 1…N workers of Ray Train.

The checkpoints that count are ours (training/checkpoints.py): what is reported to Ray Train is a
pointer to one, so that its own bookkeeping agrees. After the loss of a worker Ray starts the group
again, and every rank goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.errors import TrainingError, last_line
from dreamfleet.runtime.relay import RelayClient, start_relay
from dreamfleet.runtime.room import waiting_text
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.fit import Fit, follow
from dreamfleet.training.group import Group
from dreamfleet.training.task import TrainEvent, TrainOutcome, TrainTask
from dreamfleet.training.worker import train_in_process

if TYPE_CHECKING:
    from dreamfleet.runtime.session import RaySession

RAY_FOLDER = "ray"
SMALL_PICTURE = 128  # pixels; bases up to this size are small nets


def train_with_ray(
    task: TrainTask,
    session: RaySession,
    on_event: Callable[[TrainEvent], None],
    warn: Callable[[str], None],
) -> TrainOutcome:
    """Train one subject on `cluster.num_workers` workers.

    `on_event` is called in this thread, and so is `warn`, where the workers wait for room. A
    KeyboardInterrupt here lets the workers write a checkpoint (at most fit.STOP_WITHIN_S), then is
    raised again.

    Raises:
        TrainingError: workers were lost more often than `cluster.max_failures`, or could not start.
    """
    import ray

    def tell() -> None:
        count = task.config.cluster.num_workers
        warn(waiting_text(count, count, "workers", worker_resources(task, session)))

    relay = start_relay()
    fit = Fit(trainer_of(ray.put(task), task, session, relay))
    follow(fit, relay, on_event, tell)
    ray.kill(relay)
    outcome = _outcome(fit, task)
    Folder(task.checkpoints).delete_folder(RAY_FOLDER)
    return outcome


def _outcome(fit: Fit, task: TrainTask) -> TrainOutcome:
    try:
        outcome = fit.returned()
    except BaseException as error:
        raise TrainingError(
            f"{task.subject.id}: training did not end ({last_line(error)}); "
            "worker losses survived: "
            f"cluster.max_failures = {task.config.cluster.max_failures}; what is done "
            "is kept, go on with --resume"
        ) from error
    if not isinstance(outcome, TrainOutcome):
        raise TrainingError(
            f"{task.subject.id}: the training worker returned nothing; go on with --resume"
        )
    return outcome


def trainer_of(task_ref: Any, task: TrainTask, session: RaySession, relay: Any) -> Any:
    """A TorchTrainer as `task.config.cluster` asks for.

    Args:
        task_ref: Ray's reference to `task`, so that it travels to the workers once.
        relay: where the workers' events go.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = task.config.cluster
    resources = worker_resources(task, session)
    scaling: dict[str, Any] = {
        "num_workers": cluster.num_workers,
        "use_gpu": task.device == "cuda" or "GPU" in resources,  # also logical ones
        "placement_strategy": cluster.placement_strategy,
    }
    scaling["resources_per_worker"] = resources
    if cluster.accelerator_type:
        scaling["accelerator_type"] = cluster.accelerator_type
    return TorchTrainer(
        train_worker,
        train_loop_config={"task": task_ref, "relay": relay},
        torch_config=TorchConfig(backend=_backend(task, resources)),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            # A fresh name: under an old one Ray Train would go on from its own pointer, not from
            # what is on disk.
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}",
            storage_path=Folder(task.checkpoints).child(RAY_FOLDER).location,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )


def _backend(task: TrainTask, resources: Mapping[str, float]) -> str:
    """NCCL refuses two workers on one GPU, which is what shares of a GPU are for."""
    return "nccl" if task.device == "cuda" and resources.get("GPU", 0) >= 1 else "gloo"


def worker_resources(task: TrainTask, session: RaySession) -> dict[str, float]:
    """What a worker reserves: the user's wish, else one GPU, or on a private Ray its share of the
    cores.

    Ray gives a worker as many torch threads as it reserves CPUs. Small nets get one: they gain
    little from a second, and beside other busy processes threads that wait for each other in every
    layer make a step up to a hundred times slower.
    """
    cluster = task.config.cluster
    if cluster.resources_per_worker:
        gpu = {"GPU": 1.0} if task.device == "cuda" else {}
        return {"CPU": 1.0, **gpu, **cluster.resources_per_worker}
    if task.device == "cuda":
        return {"CPU": 1, "GPU": 1}
    if not session.local or (task.config.data.resolution or 0) <= SMALL_PICTURE:
        return {"CPU": 1}
    return {"CPU": max(1, int(session.num_cpus) // cluster.num_workers)}


def train_worker(config: dict[str, Any]) -> TrainOutcome:
    """Runs on every worker of the group.

    Args:
        config: `task`, a reference to the TrainTask, and `relay`, where events go.
    """
    import ray
    import ray.train

    task: TrainTask = ray.get(config["task"])
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())

    def report(step: int, metrics: Mapping[str, float]) -> None:
        _report(task, group, step, metrics)

    outcome = train_in_process(
        task, reporter=RelayClient(config["relay"]), group=group, on_checkpoint=report
    )
    if outcome.status == "finished" and outcome.resumed_from == outcome.step:
        report(
            outcome.step, {}
        )  # nothing was left to do: the last report still carries a checkpoint
    return outcome


def _report(task: TrainTask, group: Group, step: int, metrics: Mapping[str, float]) -> None:
    import ray.train

    figures = {"step": step, **metrics}
    if group.rank != 0:
        ray.train.report(figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        pointer = {"location": task.checkpoints, "step": step}
        (Path(folder) / "pointer.json").write_text(json.dumps(pointer), encoding="utf-8")
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))
