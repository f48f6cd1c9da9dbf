"""Measure a base of the synthetic world: alone, as a host of personalisation, and with adapters.

\b
    python pipelines/check_embedded_base.py --mode base    --output-dir DIR  # guidance, states
    python pipelines/check_embedded_base.py --mode ladder  --output-dir DIR  # four hosts by steps
    python pipelines/check_embedded_base.py --mode adapter --output-dir DIR  # against bare base
    python pipelines/check_embedded_base.py --mode evidence --output-dir LADDER \\
        --base-report base.json --docs docs/evidence.md --settings docs/evidence/settings.yaml

Resumable: run it again on the same folder. A small ladder for a look (minutes on one core):
--subjects 1 --hosts lora --steps 100,300 --images-per-prompt 1 --num-inference-steps 10.
"""

from __future__ import annotations

from typing import Any

import click

from dreamfleet.errors import DreamfleetError

# Settings were chosen on the first eight development subjects; the adapter is judged on the next.
MODES: dict[str, dict[str, Any]] = {
    "base": {},
    "evidence": {},
    "ladder": {"subjects": 4, "first": 0, "hosts": "lora,lora-prior,full,full-prior",
               "steps": "200,400,800,1600"},
    "adapter": {"subjects": 6, "first": 8, "hosts": "lora-teacher", "steps": "200"},
}  # fmt: skip


@click.command(help=__doc__)
@click.option("--mode", type=click.Choice(list(MODES)), default="ladder", show_default=True)
@click.option("--output-dir", required=True, type=click.Path(file_okay=False))
@click.option("--base-model", default="embedded", show_default=True)
@click.option("--split", type=click.Choice(["D"]), default="D", show_default=True)
@click.option("--subjects", type=int, help="how many")
@click.option("--first-subject", type=int, help="number of the first one in the split")
@click.option("--hosts", help="commas between; lora, lora-prior, lora-teacher, full, …")
@click.option("--steps", help="rising training steps, commas between")
@click.option("--images-per-prompt", type=int, default=4, show_default=True)
@click.option("--class-images", type=int, default=12, show_default=True)
@click.option("--num-class-images", type=int, default=50, show_default=True, help="prior set")
@click.option("--num-inference-steps", type=int, default=25, show_default=True)
@click.option("--guidance", type=float, help="default: --base-report's, else the base's own")
@click.option("--base-report", type=click.Path(dir_okay=False), help="base.json of --mode base")
@click.option("--docs", type=click.Path(dir_okay=False), help="page of --mode evidence")
@click.option("--settings", type=click.Path(dir_okay=False), help="for studies; --mode evidence")
@click.option("--seed", type=int, default=0, show_default=True, help="of the training runs")
@click.option("--threads", type=int, default=1, show_default=True, help="torch threads")
@click.option("--device", default="cpu", show_default=True)
def main(**options: Any) -> None:
    import torch

    torch.set_num_threads(options["threads"])
    from dreamfleet.evaluation.worldbench import command
    from dreamfleet.runtime.jobs import durable_folder

    defaults = {name: value for name, value in options.items() if value is not None}
    defaults.setdefault("first_subject", MODES[options["mode"]].get("first"))
    defaults = {**MODES[options["mode"]], **defaults}
    try:
        folder = durable_folder("--output-dir", options["output_dir"])
        steps = {"base": command.check_base, "evidence": command.write_evidence}
        steps.get(options["mode"], command.check_hosts)(folder, defaults, click.echo)
    except DreamfleetError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
