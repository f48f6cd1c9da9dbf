"""Run a study: train its arms on its subjects, draw and score; resumable, shared between studies.

\b
    python pipelines/run_study.py --config pipelines/recipes/studies/b_sude_weight.yaml \\
        --output-dir runs/studies [--subjects 3] [--seeds 1] [--num-workers 2]

Run it again to go on. Studies of one output folder share trainings and pictures. --settings: what
the protocol's steps settled; for trials on D pipelines/recipes/studies/trial_settings.yaml. --hosts
and --part I/N run a piece of a study, on another machine or another day; report_studies.py takes
pieces in one after the other (parts that share an output folder: a last run without --part has
all). DreamBench's photographs on a real base: --data-dir, --base-model, --device cuda.
"""

from __future__ import annotations

import functools
from typing import Any

import click

from dreamfleet.errors import BadInputError, DreamfleetError


@click.command(help=__doc__)
@click.option("--config", required=True, type=click.Path(dir_okay=False), help="the study's recipe")
@click.option("--output-dir", required=True, type=click.Path(file_okay=False))
@click.option("--settings", default="docs/evidence/settings.yaml", show_default=True)
@click.option("--subjects", type=click.IntRange(1), help="instead of the recipe's number")
@click.option("--seeds", type=click.IntRange(1), help="instead of the recipe's number")
@click.option("--split", type=click.Choice(["D", "C", "T", "R"]), help="instead of the recipe's")
@click.option("--hosts", help="instead of the recipe's, commas between, e.g. lora,full")
@click.option("--part", default="1/1", show_default=True, help="I/N: subjects I, I + N, …")
@click.option("--num-workers", default=1, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=1, show_default=True, help="torch threads of a worker")
@click.option("--base-model", default="embedded", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="for every arm")
@click.option("--data-dir", help="DreamBench's photographs instead of the drawn world")
@click.option("--clip", default="openai/clip-vit-base-patch32", show_default=True)
@click.option("--dino", default="facebook/dino-vits16", show_default=True)
@click.option("--blip", default="Salesforce/blip-itm-base-coco", show_default=True)
def main(
    hosts: str | None, part: str, overrides: tuple[str, ...], num_workers: int, **options: Any
) -> None:
    from dreamfleet.evaluation.studies import command

    judges = {name: options.pop(name) for name in ("clip", "dino", "blip")}
    try:
        order = command.StudyOrder(
            **options,
            hosts=command.parse_hosts(hosts),
            part=command.parse_part(part),
            overrides=command.parse_overrides(overrides),
            judges=judges,
        )
        report = functools.partial(click.echo, err=True)
        if order.study().searches:
            from dreamfleet.tuning import reach

            if num_workers > 1:
                raise BadInputError(
                    f"--num-workers {num_workers}: each sweep has engines of its own; run "
                    "--part 1/2 and --part 2/2 side by side instead, then once without"
                )
            folder, left = reach.carry_out(order, report)
        else:
            folder, left = command.carry_out(order, report, num_workers)
    except DreamfleetError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on", err=True)
        raise SystemExit(130) from None
    click.echo(f"results, table, chart and pictures: {folder}")
    if left:
        click.echo(f"not done yet: {len(left)} units, first {left[0]}")


if __name__ == "__main__":
    main()
