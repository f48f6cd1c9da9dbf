"""Optuna's own plots of a study, as pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

    from dreamfleet.tuning.study import SubjectStudy

DPI = 110
PANEL_IN = 2.2  # width of a panel of a picture that has many


def write_plots(study: SubjectStudy, folder: Path) -> dict[str, Path]:
    """history, importances, slice and pareto below `folder`; one that cannot be drawn (too few
    trials, a single value) is left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import optuna.visualization.matplotlib as draw

    target = _alignment if len(study.study.directions) > 1 else None
    name = "alignment"
    kinds: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(
            study.study, target=target, target_name=name
        ),
        "importances": lambda: draw.plot_param_importances(
            study.study, target=target, target_name=name
        ),
        "slice": lambda: draw.plot_slice(study.study, target=target, target_name=name),
        "pareto": lambda: _pareto(study),
    }
    folder.mkdir(parents=True, exist_ok=True)
    found = {kind: _drawn(make, folder / f"{kind}.png") for kind, make in kinds.items()}
    return {kind: path for kind, path in found.items() if path is not None}


def _alignment(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.user_attrs["alignment"])


def _drawn(make: Callable[[], Any], path: Path) -> Path | None:
    from matplotlib import pyplot

    pyplot.close("all")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental", and logarithms of nothing
            make()
            figure = pyplot.gcf()
            figure.set_size_inches(max(6.0, PANEL_IN * len(figure.axes)), 3.8)
            figure.savefig(path, dpi=DPI, bbox_inches="tight")
    except Exception:  # a plot is an extra, and fails in as many ways as there are studies
        return None
    finally:
        pyplot.close("all")
    return path


def _pareto(study: SubjectStudy) -> None:
    from matplotlib import pyplot

    from dreamfleet.tuning.rule import pareto_front

    found = study.candidates()
    front = pareto_front(found)
    _, axes = pyplot.subplots(figsize=(6, 4))
    for feasible, colour in ((False, "#b0b7bd"), (True, "#2f7a8c")):
        own = [c for c in found if c.feasible == feasible]
        label = "allowed" if feasible else "too far from the subject"
        axes.scatter([c.alignment for c in own], [c.fidelity for c in own], c=colour, label=label)
    axes.plot([c.alignment for c in front], [c.fidelity for c in front], c="#c2491d", lw=1)
    for candidate in front:
        axes.annotate(f" #{candidate.label}", (candidate.alignment, candidate.fidelity))
    axes.set_xlabel("alignment")
    axes.set_ylabel("fidelity")
    axes.legend()
