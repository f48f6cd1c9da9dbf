"""How this project runs Ray Data: quiet, in order, with small blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset

    from dreamfleet.runtime.session import RaySession


def dataset(rows: list[dict[str, Any]], rows_per_block: int) -> Dataset:
    """A dataset of `rows` in blocks of about `rows_per_block`, in the given order."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.from_items(rows, override_num_blocks=max(1, -(-len(rows) // rows_per_block)))


def actor_pool(
    session: RaySession, blocks: int, use_gpu: bool, num_cpus: float = 1.0
) -> tuple[ActorPoolStrategy, dict[str, float]]:
    """One model-holding actor per GPU (or per CPU), but no more than there are blocks of work; and
    what each takes.

    `num_cpus` of an actor without a GPU is less than 1 where tasks feed the pool: they need room
    beside it, on a machine of one core too.
    """
    from ray.data import ActorPoolStrategy

    devices = session.num_gpus if use_gpu else session.num_cpus
    size = max(1, min(int(devices), blocks))
    resources = {"num_gpus": 1.0} if use_gpu else {"num_cpus": num_cpus}
    return ActorPoolStrategy(size=size), resources


def rows_of(pipeline: Dataset) -> Iterator[dict[str, Any]]:
    """The rows as they become ready, in order."""
    iterator: Iterable[dict[str, Any]] = pipeline.iter_rows()
    yield from iterator
