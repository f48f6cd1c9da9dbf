"""Measure what sharing a base is worth, and write docs/benchmarks.md and docs/benchmarks.json.

    python pipelines/run_benchmarks.py --quick
    python pipelines/run_benchmarks.py --gpu

Time only counts on a quiet machine.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dreamfleet.evaluation.benchmarks.settings import BenchSettings

DEFAULTS = BenchSettings()
ON_A_GPU = replace(
    DEFAULTS, jobs=16, packed_batch=1, device="cuda", dtype="bfloat16", num_threads=4
)


@click.command()
@click.option("--quick", is_flag=True, help="Only the table's figures: minutes on two cores.")
@click.option(
    "--gpu",
    is_flag=True,
    help="The table for SD1.5 (random weights, bf16, 16 jobs), into benchmarks_gpu.*.",
)
@click.option("--gpu-device", default=ON_A_GPU.device, show_default=True)
@click.option(
    "--gpu-shape",
    type=click.Choice(["sd15", "tiny"]),
    default="sd15",
    show_default=True,
    help="tiny, with --gpu-device cpu: to see that it works.",
)
@click.option("--jobs", type=click.IntRange(1), help="Packed together.  [8; with --gpu 16]")
@click.option("--only", multiple=True, help="A measure by its name, e.g. single_job; repeatable.")
@click.option("--base-model", default=DEFAULTS.base_model, show_default=True)
@click.option("--rank", default=DEFAULTS.rank, show_default=True)
@click.option("--layers", default=DEFAULTS.layers, show_default=True, help="As --lora-layers.")
@click.option("--rounds", default=DEFAULTS.rounds, show_default=True)
@click.option("--steps", default=DEFAULTS.steps, show_default=True)
@click.option("--inference-steps", default=DEFAULTS.inference_steps, show_default=True)
@click.option("--num-threads", default=DEFAULTS.num_threads, show_default=True)
@click.option("--output-dir", default="docs", type=click.Path(path_type=Path), show_default=True)
def main(
    quick: bool,
    gpu: bool,
    gpu_device: str,
    gpu_shape: str,
    jobs: int | None,
    only: tuple[str, ...],
    base_model: str,
    rank: int,
    layers: Any,
    rounds: int,
    steps: int,
    inference_steps: int,
    num_threads: int,
    output_dir: Path,
) -> None:
    """Run the benchmarks."""
    from dreamfleet.evaluation.benchmarks.run import run_benchmarks

    given = ON_A_GPU if gpu else replace(DEFAULTS, base_model=base_model, num_threads=num_threads)
    settings = replace(
        given,
        rank=rank,
        layers=layers,
        jobs=jobs or given.jobs,
        rounds=rounds,
        steps=steps,
        inference_steps=inference_steps,
    )
    if not gpu:
        from dreamfleet.tuning.benchmark import sweep

        run_benchmarks(
            settings, output_dir, quick=quick, only=only, further=[sweep], say=click.echo
        )
        return
    from dreamfleet.evaluation.benchmarks.random_base import SHAPES, write_random_base

    with tempfile.TemporaryDirectory() as place:
        base = write_random_base(Path(place) / f"random-{gpu_shape}", SHAPES[gpu_shape])
        settings = replace(settings, base_model=str(base), device=gpu_device)
        run_benchmarks(settings, output_dir, quick=False, gpu=True, only=only, say=click.echo)


if __name__ == "__main__":
    main()
