"""A whole benchmark run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.benchmarks.record import Figure, record
from dreamfleet.evaluation.benchmarks.settings import BenchSettings


def run_benchmarks(
    settings: BenchSettings,
    folder: Path,
    *,
    quick: bool,
    only: Sequence[str] = (),
    further: Sequence[Callable[[BenchSettings], dict[str, Figure]]] = (),
    gpu: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Figure]:
    """Measure and write; a figure is written as soon as it is there.

    Args:
        folder: where benchmarks.json and benchmarks.md are.
        quick: leave out what the table does not ask for.
        gpu: the table, and how well the device is used, into benchmarks_gpu.json and .md.
        only: names of measures (`measures.QUICK`, `FULL`, `SERVICES`, `further`); empty: all.
        further: measures of what stands above this package, for the full run; they have all cores.

    Raises:
        BadInputError: `only` names what this run does not measure.
    """
    import torch

    from dreamfleet.evaluation.benchmarks.measures import FULL, GPU, QUICK, SERVICES

    measures = GPU if gpu else QUICK if quick else (*FULL, *SERVICES, *further)
    _check_only(only, measures)
    everywhere = _pin(settings.num_threads) if settings.device == "cpu" else set()
    torch.set_num_threads(settings.num_threads)
    figures: dict[str, Figure] = {}
    name = "benchmarks_gpu" if gpu else "benchmarks"
    for measure in measures:
        if only and measure.__name__ not in only:
            continue
        if measure in (*SERVICES, *further) and everywhere:
            _unpin(everywhere)
        given = settings
        if measure in SERVICES:  # an engine in a service takes all cores that there are
            given = replace(settings, num_threads=len(everywhere) or os.cpu_count() or 1)
        own = measure(given)
        record(folder, own, given, name)
        for key, figure in own.items():
            say(f"{key:<30} {figure.value:8.3f} {figure.unit}")
        figures.update(own)
    return figures


def run_gpu_benchmarks(
    settings: BenchSettings,
    folder: Path,
    shape: str,
    *,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Figure]:
    """The table on a base of random weights of Stable Diffusion 1.5's (or a tiny) shape, into
    benchmarks_gpu.json and .md.

    Raises:
        BadInputError: as `run_benchmarks`.
    """
    from dreamfleet.evaluation.benchmarks.measures import GPU
    from dreamfleet.evaluation.benchmarks.random_base import SHAPES, write_random_base

    _check_only(only, GPU)  # before gigabytes of weights are written
    with tempfile.TemporaryDirectory() as place:
        base = write_random_base(Path(place) / f"random-{shape}", SHAPES[shape])
        settings = replace(settings, base_model=str(base))
        return run_benchmarks(settings, folder, quick=False, gpu=True, only=only, say=say)


def _check_only(only: Sequence[str], measures: Sequence[Callable[..., object]]) -> None:
    names = [measure.__name__ for measure in measures]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise BadInputError(f"--only {', '.join(unknown)}: expected some of {', '.join(names)}")


def _pin(cores: int) -> set[int]:
    """Give all contestants the same cores, however many processes they are; returns all cores."""
    if not hasattr(os, "sched_setaffinity"):
        return set()
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:cores])
    return all_cores


def _unpin(all_cores: set[int]) -> None:
    os.sched_setaffinity(0, all_cores)
