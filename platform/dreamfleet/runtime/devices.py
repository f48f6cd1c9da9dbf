"""Whether to compute on GPUs, asked of the cluster rather than of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamfleet.config import RunConfig
from dreamfleet.errors import BadInputError
from dreamfleet.runtime.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from dreamfleet.runtime.session import RaySession


PROBE_TIMEOUT_S = 60.0


def choose_device(
    config: RunConfig, session: RaySession | None, progress: Progress | None = None
) -> str:
    """`cpu` or `cuda` for the workers. With `auto`, GPUs that a joined cluster announces must be
    such that torch can use: others (logical ones, a CPU build of torch) are warned of.

    Raises:
        BadInputError: a GPU was asked for and the cluster has none.
    """
    gpus = session.num_gpus if session is not None else 0.0
    asked = config.device == "cuda" or config.cluster.use_gpu is True
    if asked and not gpus:
        key = "device = 'cuda'" if config.device == "cuda" else "cluster.use_gpu = True"
        raise BadInputError(
            f"{key}: this Ray has no GPU; use auto or cpu, or join a cluster with GPUs "
            "(--ray-address)"
        )
    wanted = asked or (config.device == "auto" and config.cluster.use_gpu == "auto")
    if not (wanted and gpus):
        return "cpu"
    if asked or session is None or session.local or _workers_see_cuda():
        return "cuda"
    (progress or SilentProgress()).warn(
        f"the cluster announces {gpus:g} GPUs, but torch on its workers cannot use them; "
        "computing on CPUs (give --device cuda to insist)"
    )
    return "cpu"


def _workers_see_cuda() -> bool:
    import ray

    def look() -> bool:
        import torch

        return torch.cuda.is_available()

    found = ray.remote(num_cpus=0, num_gpus=0.001)(look).remote()
    try:
        return bool(ray.get(found, timeout=PROBE_TIMEOUT_S))
    except ray.exceptions.GetTimeoutError:  # all busy: then they are real
        ray.cancel(found)
        return True
