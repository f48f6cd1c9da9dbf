"""Measure what sharing a base is worth, and write docs/benchmarks.md and docs/benchmarks.json.

    python pipelines/run_benchmarks.py --quick

Time only counts on a quiet machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dreamfleet.evaluation.benchmarks.settings import BenchSettings

DEFAULTS = BenchSettings()


@click.command()
@click.option("--quick", is_flag=True, help="Only the table's figures: minutes on two cores.")
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
    from dreamfleet.tuning.benchmark import sweep

    settings = BenchSettings(
        base_model=base_model,
        rank=rank,
        layers=layers,
        rounds=rounds,
        steps=steps,
        inference_steps=inference_steps,
        num_threads=num_threads,
    )
    run_benchmarks(settings, output_dir, quick=quick, only=only, further=[sweep], say=click.echo)


if __name__ == "__main__":
    main()
