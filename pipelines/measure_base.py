"""Measure what the embedded base and its evaluators can do: figures, a table, contact sheets.

\b
    python pipelines/measure_base.py --output-dir runs/reach [--quick] [--part NAME ...]

Writes reach.json, reach.md and PNG sheets; every part is written as soon as it is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dreamfleet.errors import DreamfleetError

INTERRUPTED = 130


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--output-dir", required=True, type=click.Path(file_okay=False))
@click.option("--quick", is_flag=True, help="A few pictures of everything.")
@click.option("--guidance", multiple=True, type=float, help="Scales to try; the best one counts.")
@click.option("--per-cell", type=click.IntRange(min=1), help="Pictures of each class x state.")
@click.option("--part", "parts", multiple=True, help="evaluators, samples, variety or words only.")
@click.option("--base-model", default="embedded", show_default=True, help="Or a folder.")
@click.option("--evaluators", type=click.Path(file_okay=False), help="Folder of other evaluators.")
@click.option("--docs", type=click.Path(exists=True, dir_okay=False), help="Page to write into.")
@click.option("--device", default="auto", show_default=True)
@click.option("--num-threads", default=0, help="Threads of torch; 0: torch's choice.")
def main(
    output_dir: str,
    quick: bool,
    guidance: tuple[float, ...],
    per_cell: int | None,
    parts: tuple[str, ...],
    base_model: str,
    evaluators: str | None,
    docs: str | None,
    device: str,
    num_threads: int,
) -> None:
    from dataclasses import replace

    import torch

    from dreamfleet.bases import load_base
    from dreamfleet.evaluation.embedded_reach import QUICK, ReachPlan, load_bench
    from dreamfleet.evaluation.embedded_reach_report import markdown, measure, write_docs
    from dreamfleet.runtime.jobs import durable_folder

    plan = QUICK if quick else ReachPlan()
    plan = replace(
        plan,
        guidance_scales=guidance or plan.guidance_scales,
        per_cell=per_cell or plan.per_cell,
    )
    if num_threads:
        torch.set_num_threads(num_threads)

    try:
        folder = durable_folder("--output-dir", output_dir)
        base = load_base(base_model, device=device)
        judges = Path(evaluators) if evaluators else None
        bench = load_bench(base, plan, judges, lambda text: click.echo(text, err=True))
        click.echo(markdown(measure(bench, parts, folder)))
        if docs:
            write_docs(Path(docs), folder)
    except DreamfleetError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted; finished parts are in the output folder", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
