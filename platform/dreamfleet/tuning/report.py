"""`report.html` of a study: one file, no script, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from optuna.trial import FrozenTrial, TrialState
from PIL import Image

from dreamfleet.evaluation.charts import Point, scatter
from dreamfleet.evaluation.report import REPORT, PictureEncoder, page_environment
from dreamfleet.runtime.storage import Folder, write_whole
from dreamfleet.tuning.finals import Exported, Finals
from dreamfleet.tuning.pruning import root_of
from dreamfleet.tuning.results import SubjectTuned
from dreamfleet.tuning.rule import best_first, pareto_front
from dreamfleet.tuning.space import PRIOR, WITH_PRIOR, dimensions
from dreamfleet.tuning.study import ERROR, HOST, INTERRUPTED, Standing, SubjectStudy
from dreamfleet.tuning.trial import sheet

SHOWN_SHEETS = 16  # trials with pictures; the table holds all
MAX_PHOTOS = 4
NAMES = {
    "sude.weight": "w_s",
    "prior.weight": "λ",
    "sude.truncation_point": "ρ*",
    "sude.teacher": "teacher",
    "train.learning_rate": "learning rate",
    "train.rank": "rank",
    "method": "method",
    "train.max_train_steps": "steps",
}
PLOT_TITLES = {  # the page draws the Pareto front itself
    "history": "What was found when",
    "importances": "What mattered",
    "slice": "Parameter by parameter",
}


@dataclass(frozen=True)
class TuneReport:
    """All that the page shows.

    Attributes:
        photos: PNGs of the training squares.
        plots: pictures by kind.
        sheets: folder of a trial's pictures, by the number of its first attempt.
        command: makes all of it again.
    """

    study: SubjectStudy
    finals: Finals
    result: SubjectTuned
    photos: Sequence[bytes]
    exported: Exported
    plots: Mapping[str, Path]
    sheets: Callable[[int], Folder]
    command: str


@dataclass(frozen=True)
class _Row:
    number: int
    state: str
    params: list[str]
    steps: int
    alignment: float | None
    fidelity: float | None
    verdict: str
    note: str


def write_tune_report(report: TuneReport) -> Path:
    """Write the page into the subject's folder; whole or not at all."""
    return write_whole(report.result.output_dir / REPORT, render_tune_report(report).encode())


def render_tune_report(report: TuneReport) -> str:
    """The page as HTML."""
    study = report.study
    photos = [_opened(png) for png in report.photos[:MAX_PHOTOS]]
    pairs = list(zip(report.exported.shots, report.exported.pngs, report.exported.bare,
                     strict=True))  # fmt: skip
    pictures = [(shot, _opened(png), _opened(bare)) for shot, png, bare in pairs]
    shown = [*photos, *(image for _, own, bare in pictures for image in (own, bare))]
    names = [name for name in NAMES if name in dimensions(study.config)]
    standings = {own.trial.number: own for own in study.standings()}
    return page_environment().get_template("tune.html.j2").render(
        result=report.result,
        study=study,
        config=study.config,
        margin=study.tune.fidelity_margin,
        photos=photos,
        pictures=pictures,
        picture=PictureEncoder.fitting(shown).attributes,
        setting=[(NAMES[n], _shown(v)) for n, v in report.result.setting.items() if n in NAMES],
        finals=[_final(report, score) for score in report.finals.scores],
        space=_space(study),
        columns=[NAMES[name] for name in names],
        rows=[_row(study, trial, names, standings) for trial in study.trials()],
        front=[own.label for own in pareto_front(study.candidates())],
        chart=Markup(_chart(study)),
        plots=[
            (title, _data(report.plots[kind].read_bytes()), kind == "slice")
            for kind, title in PLOT_TITLES.items() if kind in report.plots
        ],
        sheets=_sheets(report),
        command=report.command,
    )  # fmt: skip


def _space(study: SubjectStudy) -> list[tuple[str, str]]:
    """What was searched, by name."""
    space = dimensions(study.config)
    texts = {name: own.text() for name, own in space.items() if name != WITH_PRIOR}
    if WITH_PRIOR in space:
        texts[PRIOR] = f"none, or {texts[PRIOR]}"
    return [(NAMES[name], text) for name, text in texts.items()]


def _final(report: TuneReport, score: Any) -> dict[str, Any]:
    contender = score.contender
    return {
        "number": contender.number,
        "host": contender.is_host,
        "winner": score is report.finals.winner,
        "steps": contender.steps,
        "alignment": score.alignment,
        "fidelity": score.fidelity,
        "seeds": [(s, r.alignment, r.fidelity) for s, r in score.readings.items()],
        "allowed": score.excess <= 0,
    }


def _row(
    study: SubjectStudy,
    trial: FrozenTrial,
    names: Sequence[str],
    standings: Mapping[int, Standing],
) -> _Row:
    attrs = trial.user_attrs
    setting = study.setting_of(trial) or {}
    known = "alignment" in attrs
    verdict, standing = "", standings.get(trial.number)
    if standing is not None and standing.candidate.feasible:
        verdict = "allowed" + (f" at {standing.steps}" if trial.state == TrialState.PRUNED else "")
    elif trial.state == TrialState.COMPLETE:
        verdict = "too far from the subject"
    notes = ["host"] if attrs.get(HOST) else []
    notes += ["interrupted, asked again"] if attrs.get(INTERRUPTED) else []
    notes += [str(attrs[ERROR])] if attrs.get(ERROR) else []
    return _Row(
        trial.number,
        trial.state.name.lower(),
        [_shown(setting[name]) if name in setting else "" for name in names],
        int(attrs.get("steps", 0)),
        float(attrs["alignment"]) if known else None,
        float(attrs["fidelity"]) if known else None,
        verdict,
        ", ".join(notes),
    )


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _chart(study: SubjectStudy) -> str:
    front = {own.label for own in pareto_front(study.candidates())}
    points = [
        Point(f"#{own.label}", own.alignment, own.fidelity, 2 if own.feasible else 0,
              faint=own.label not in front)
        for own in study.candidates()
    ]  # fmt: skip
    return scatter(points, "alignment", "fidelity")


def _sheets(report: TuneReport) -> list[tuple[str, str]]:
    """Pictures of finalists and of the best others, each at the rung that the rule takes."""
    found = []
    standings = {own.candidate.label: own for own in report.study.standings()}
    finalists = [score.candidate.label for score in report.finals.scores]
    best = [own.label for own in best_first([own.candidate for own in standings.values()])]
    for label in list(dict.fromkeys([*finalists, *best]))[:SHOWN_SHEETS]:
        own = standings[label]
        png = sheet(report.sheets(root_of(own.trial)), own.steps)
        if png is not None:
            found.append((f"#{label}, {own.steps} steps", _data(png)))
    return found


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")
