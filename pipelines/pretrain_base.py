"""Train the embedded base and its evaluators on the synthetic world.

\b
    python pipelines/pretrain_base.py --config pipelines/recipes/pretrain_embedded.yaml \\
        --work-dir /absolute/work/folder [--stage NAME ...] [--no-ray] [--export]

Resumable: run it again on the same folder. How long it takes: see docs/embedded_base.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dreamfleet.errors import DreamfleetError

INTERRUPTED = 130


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--work-dir", required=True, type=click.Path(file_okay=False))
@click.option("--stage", "stages", multiple=True, help="Only these, in this order.")
@click.option("--no-ray", is_flag=True, help="Run in this process instead of a Ray Train worker.")
@click.option(
    "--ray-address", help="A running Ray; default: RAY_ADDRESS, else a private local Ray."
)
@click.option("--max-failures", default=3, show_default=True, help="Worker losses survived.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--num-threads", default=0, help="Threads of torch; 0: torch's choice.")
@click.option("--num-processes", default=0, help="Processes that draw; 0: one a core.")
@click.option("--export", is_flag=True, help="Write the shipped weights when done.")
@click.option("--export-to", type=click.Path(file_okay=False), help="... into this folder.")
def main(
    config: str,
    work_dir: str,
    stages: tuple[str, ...],
    no_ray: bool,
    ray_address: str | None,
    max_failures: int,
    device: str,
    num_threads: int,
    num_processes: int,
    export: bool,
    export_to: str | None,
) -> None:
    from dreamfleet.config import ClusterConfig
    from dreamfleet.runtime.jobs import durable_folder
    from dreamfleet.training.pretraining.launch import PretrainJob, export_job, pretrain

    cluster = ClusterConfig(ray_address=ray_address, max_failures=max_failures)
    try:
        folder = durable_folder("--work-dir", work_dir)
        job = PretrainJob(Path(config), folder, stages, device, num_threads, max(0, num_processes))
        pretrain(job, use_ray=not no_ray, cluster=cluster)
        if export or export_to:
            click.echo(export_job(job, Path(export_to) if export_to else None))
    except DreamfleetError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
