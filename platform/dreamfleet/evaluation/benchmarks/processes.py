"""Eight processes that train one subject each, against one that trains all eight."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

from dreamfleet.evaluation.benchmarks.settings import BenchSettings


def race(settings: BenchSettings, kind: str, count: int, steps: int, rounds: int) -> Any:
    """Seconds of each round, and the processes' memory (PSS; on a GPU what
    their allocators took of it) in bytes.

    Args:
        kind: `diffusers` or `packed`.
        count: processes; all start a round together.
        steps: of every job in a round; the first round is a warm-up and not returned.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    memory: Any = context.Queue()
    workers = [
        context.Process(
            target=_work, args=(settings, kind, index, steps, rounds, barrier, memory), daemon=True
        )
        for index in range(count)
    ]
    for worker in workers:
        worker.start()
    seconds = []
    try:
        for _ in range(rounds + 1):
            barrier.wait(600)
            started = time.perf_counter()
            barrier.wait(600)
            seconds.append(time.perf_counter() - started)
        total = sum(memory.get(timeout=600) for _ in workers)
        barrier.wait(600)  # nobody leaves before all have been weighed
    finally:
        for worker in workers:
            worker.join(60)
            worker.terminate()
    return seconds[1:], total


def _work(
    settings: BenchSettings,
    kind: str,
    index: int,
    steps: int,
    rounds: int,
    barrier: Any,
    memory: Any,
) -> None:
    import psutil
    import torch

    torch.set_num_threads(1 if kind == "diffusers" else settings.num_threads)
    run = _contestant(settings, kind, index)
    for _ in range(rounds + 1):
        barrier.wait(600)
        run(steps)
        barrier.wait(600)
    if torch.cuda.is_initialized():
        memory.put(torch.cuda.max_memory_reserved())
    else:
        memory.put(psutil.Process(os.getpid()).memory_full_info().pss)
    barrier.wait(600)


def _contestant(settings: BenchSettings, kind: str, index: int) -> Any:
    import torch

    from dreamfleet.evaluation.benchmarks.measures import diffusers_job, packed_jobs

    if kind == "packed":
        return packed_jobs(settings).run
    training = diffusers_job(settings, index, settings.packed_batch)

    def run(steps: int) -> None:
        for _ in range(steps):
            training.step()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    return run
