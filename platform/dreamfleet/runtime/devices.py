"""Whether to compute on GPUs, asked of the cluster rather than of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamfleet.config import RunConfig
from dreamfleet.errors import BadInputError
from dreamfleet.runtime.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from dreamfleet.runtime.session import RaySession


PROBE_TIMEOUT_S = 60.0
LOCAL_RESOURCES = frozenset({"CPU", "GPU", "memory"})  # of a private Ray


def check_local_device(config: RunConfig) -> None:
    """Refuse settings that contradict each other, and a GPU or another resource that this machine
    has not, where the work would be done by a private Ray here: it would be waited for without end.

    Raises:
        BadInputError: as `choose_device`, before Ray starts.
    """
    import sys

    from dreamfleet.runtime.session import ray_address

    if (config.device, config.cluster.use_gpu) in (("cpu", True), ("cuda", False)):
        raise BadInputError(
            f"device = {config.device!r} with cluster.use_gpu = {config.cluster.use_gpu}: one says "
            "the opposite of the other; leave one of them out"
        )
    ray = sys.modules.get("ray")
    if ray_address(config.cluster) or (ray is not None and ray.is_initialized()):
        return
    unknown = sorted({*config.cluster.resources_per_worker} - LOCAL_RESOURCES)
    if unknown:
        raise BadInputError(
            f"cluster.resources_per_worker: a private Ray has no {unknown[0]!r}; expected CPU or "
            "GPU, or join a cluster that has it (--ray-address)"
        )
    if not (_gpu_asked(config) or config.cluster.resources_per_worker.get("GPU")):
        return
    import torch

    if not torch.cuda.is_available():
        raise BadInputError(_no_gpu(config, "torch sees no GPU on this machine"))


def choose_device(
    config: RunConfig, session: RaySession | None, progress: Progress | None = None
) -> str:
    """`cpu` or `cuda` for the workers. With `auto`, GPUs that Ray announces must be such that torch
    can use: others (logical ones, a CPU build of torch, an old driver) are warned of.

    Raises:
        BadInputError: a GPU was asked for and the cluster has none.
    """
    gpus = session.num_gpus if session is not None else 0.0
    asked = _gpu_asked(config)
    if asked and not gpus:
        raise BadInputError(_no_gpu(config, "this Ray has no GPU"))
    wanted = asked or (config.device == "auto" and config.cluster.use_gpu == "auto")
    if not (wanted and gpus):
        if wanted and session is not None and not session.local:
            (progress or SilentProgress()).info(
                "the cluster has no GPU now: computing on CPUs; where a GPU node is still to come, "
                "stop, and begin again when it is there"
            )
        return "cpu"
    if asked or session is None or _workers_see_cuda(session):
        return "cuda"
    (progress or SilentProgress()).warn(
        f"Ray announces {gpus:g} GPUs, but torch on its workers cannot use them; "
        "computing on CPUs (give --device cuda to insist)"
    )
    return "cpu"


def _gpu_asked(config: RunConfig) -> bool:
    return config.device == "cuda" or config.cluster.use_gpu is True


def _no_gpu(config: RunConfig, reason: str) -> str:
    key = "device = 'cuda'" if config.device == "cuda" else "cluster.use_gpu = True"
    if not _gpu_asked(config):
        key = f"cluster.resources_per_worker = {config.cluster.resources_per_worker}"
    return f"{key}: {reason}; use auto or cpu, or join a cluster with GPUs (--ray-address)"


def _workers_see_cuda(session: RaySession) -> bool:
    """What torch says where they run: for a private Ray here, without a worker's start."""
    import ray

    def look() -> bool:
        import torch

        return torch.cuda.is_available()

    if session.local:
        return look()
    found = ray.remote(num_cpus=0, num_gpus=0.001)(look).remote()
    try:
        return bool(ray.get(found, timeout=PROBE_TIMEOUT_S))
    except ray.exceptions.GetTimeoutError:  # all busy: then they are real
        ray.cancel(found)
        return True
