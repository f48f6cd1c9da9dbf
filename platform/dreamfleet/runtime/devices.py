"""Whether to compute on GPUs, asked of the cluster rather than of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamfleet.config import RunConfig
from dreamfleet.errors import BadInputError

if TYPE_CHECKING:
    from dreamfleet.runtime.session import RaySession


def choose_device(config: RunConfig, session: RaySession | None) -> str:
    """`cpu` or `cuda` for the workers.

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
    return "cuda" if wanted and gpus else "cpu"
