"""Run a pretraining recipe: in a Ray Train worker, or in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamfleet.training.pretraining.run import DRAWINGS, STAGES, Pretraining, load_recipe


def pretrain(
    config: str | Path,
    work_dir: Path,
    stages: list[str],
    *,
    use_ray: bool = True,
    export: bool = False,
    num_threads: int = 0,
) -> None:
    """Draw and train `stages` (all when empty) of the recipe at `config` in `work_dir`; see the pipeline script."""
    order = stages or [*DRAWINGS, *STAGES]
    settings = {
        "config": str(Path(config).resolve()),
        "work_dir": str(work_dir.resolve()),
        "stages": order,
        "num_threads": num_threads,
    }
    load_recipe(config)  # a wrong recipe is refused before Ray starts
    if use_ray:
        _run_on_ray(settings)
    else:
        _run_here(settings)
    if export:
        from dreamfleet.training.pretraining.export import export_weights

        export_weights(Pretraining(load_recipe(config), work_dir))


def _run_here(settings: dict[str, Any]) -> None:
    """Train in this process, with a progress bar."""
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if settings["num_threads"]:
        torch.set_num_threads(settings["num_threads"])
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            note = " ".join(f"{key} {value:.3f}" for key, value in metrics.items())
            bars.update(tasks[stage], completed=done, total=total, note=note)

        recipe = load_recipe(settings["config"])
        Pretraining(recipe, Path(settings["work_dir"]), report).run(settings["stages"])


def _run_on_ray(settings: dict[str, Any]) -> None:
    raise NotImplementedError  # replaced below once the runtime module stands
