"""Measure what sharing a base is worth, and write docs/benchmarks.md and docs/benchmarks.json.

    python pipelines/run_benchmarks.py --quick
    python pipelines/run_benchmarks.py --gpu

Time only counts on a quiet machine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dreamfleet.evaluation.benchmarks.settings import ON_A_GPU, BenchSettings

DEFAULTS = BenchSettings()


@click.command()
@click.option("--quick", is_flag=True, help="Only the table's figures: minutes on two cores.")
@click.option("--gpu", is_flag=True, help="The table for SD1.5 (random weights, bf16, 16 jobs).")
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
def main(gpu: bool, gpu_device: str, gpu_shape: str, quick: bool, only: tuple[str, ...],
         output_dir: Path, **options: Any) -> None:  # fmt: skip
    """Run the benchmarks."""
    from dreamfleet.errors import DreamfleetError

    given = {name: value for name, value in options.items() if value is not None}
    try:
        _run(gpu, gpu_device, gpu_shape, quick, only, output_dir, given)
    except DreamfleetError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error


def _run(gpu: bool, gpu_device: str, gpu_shape: str, quick: bool, only: tuple[str, ...],
         output_dir: Path, given: dict[str, Any]) -> None:  # fmt: skip
    from dreamfleet.evaluation.benchmarks.run import run_benchmarks, run_gpu_benchmarks

    if gpu:
        del given["base_model"], given["num_threads"]  # a base of its own, and its own threads
        settings = replace(ON_A_GPU, **given, device=gpu_device)
        run_gpu_benchmarks(settings, output_dir, gpu_shape, only=only, say=click.echo)
        return
    from dreamfleet.tuning.benchmark import sweep

    settings = replace(DEFAULTS, **given)
    run_benchmarks(settings, output_dir, quick=quick, only=only, further=[sweep], say=click.echo)


if __name__ == "__main__":
    main()
