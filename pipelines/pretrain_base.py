"""Train the embedded base and its evaluators on the synthetic world.

    python pipelines/pretrain_base.py --config pipelines/recipes/pretrain_embedded.yaml \
        --work-dir /absolute/work/folder [--stage NAME ...] [--no-ray] [--export]

Resumable: run it again on the same folder. Expected on two CPU cores: see docs/embedded_base.md.
"""

from __future__ import annotations

from pathlib import Path

import click

from dreamfleet.errors import DreamfleetError


@click.command(help=__doc__)
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--work-dir", required=True, type=click.Path(file_okay=False))
@click.option("--stage", "stages", multiple=True, help="only these, in this order")
@click.option("--no-ray", is_flag=True, help="run in this process instead of a Ray Train worker")
@click.option("--export", is_flag=True, help="write the shipped weights when done")
@click.option("--num-threads", type=int, default=0, help="torch threads; 0: torch's choice")
def main(
    config: str, work_dir: str, stages: tuple[str, ...], no_ray: bool, export: bool, num_threads: int
) -> None:
    from dreamfleet.training.pretraining.launch import pretrain

    try:
        pretrain(config, Path(work_dir), list(stages), use_ray=not no_ray, export=export,
                 num_threads=num_threads)  # fmt: skip
    except DreamfleetError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
