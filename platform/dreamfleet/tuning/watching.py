"""Who looks on while a sweep runs: the tracking server (a parent run per subject, a child per
trial) and the table on the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from dreamfleet.config import plain_tree
from dreamfleet.runtime.progress import Board
from dreamfleet.runtime.storage import Folder
from dreamfleet.tuning.engine import STATE
from dreamfleet.tuning.pruning import root_of
from dreamfleet.tuning.rule import best_first
from dreamfleet.tuning.space import POINT, PRIOR, RANK, RATE, TEACHER, WEIGHT, Params
from dreamfleet.tuning.study import (
    DONE,
    ERROR,
    HOST,
    Asked,
    Standing,
    SubjectStudy,
    candidate_of,
    is_asked_again,
)
from dreamfleet.tuning.trial import Reading, sheet

if TYPE_CHECKING:
    from dreamfleet.tracking import Run, Tracker

BOARD_EVERY_S = 0.5
RUN_NAME = "mlflow.runName"
COLUMNS = ("trial", "step", "alignment", "fidelity", "w_s", "setting")
SHORT = {PRIOR: "λ", POINT: "ρ*", TEACHER: "", RATE: "lr", RANK: "rank"}
OUTCOMES = {
    TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED",
}  # fmt: skip


@dataclass
class Recorder:
    """Runs of a sweep.

    Attributes:
        key: of the sweep; a resumed one goes on with its runs.
        folder: of a trial's readings and sheets.
    """

    tracker: Tracker
    key: str
    output_dir: str
    folder: Callable[[SubjectStudy, int], Folder]
    _parents: dict[str, Run] = field(default_factory=dict)
    _children: dict[tuple[str, int], Run] = field(default_factory=dict)

    def parent(self, study: SubjectStudy) -> Run:
        """The subject's run."""
        if study.name not in self._parents:
            tags = {
                "dreamfleet.kind": "tune",
                "dreamfleet.subject": study.name,
                "dreamfleet.class_word": study.config.subject.class_word,
                "dreamfleet.output_dir": self.output_dir,
            }
            self._parents[study.name] = self.tracker.start_run(
                f"tune {study.name}", plain_tree(study.config), tags, key=f"{self.key}-{study.name}"
            )
        return self._parents[study.name]

    def started(
        self, study: SubjectStudy, number: int, params: Mapping[str, Any], is_host: bool
    ) -> Run:
        """A trial's run, begun or gone on with; what all trials share is told of its parent."""
        key = (study.name, number)
        if key not in self._children:
            own = {**params, "train.max_train_steps": study.steps[-1], "trial": number}
            tags = {"dreamfleet.kind": "trial", "dreamfleet.subject": study.name}
            self._children[key] = self.tracker.start_run(
                _name(study, number, "host" if is_host else ""),
                own,
                tags,
                parent=self.parent(study),
                key=f"{self.key}-{study.name}-{number}",
            )
        return self._children[key]

    def read(self, study: SubjectStudy, asked: Asked, reading: Reading) -> None:
        """A rung: figures and pictures."""
        run = self.started(study, asked.number, asked.params, asked.is_host)
        scores = {"alignment": reading.alignment, "fidelity": reading.fidelity}
        run.log_metrics({**scores, **reading.figures}, reading.step)  # MLflow shows the first one
        png = sheet(self.folder(study, asked.root), reading.step)
        if png is not None:
            run.log_image(png, "pictures", reading.step)

    def settle(self, study: SubjectStudy) -> None:
        """Record the end of every finished trial that is not recorded yet: of this sweep, and of
        drivers that were killed before they could. What a training would go on from is then needed
        no more.
        """
        recorded = study.recorded()
        for trial in study.trials(*OUTCOMES):
            if trial.number in recorded:
                continue
            self._finish(study, trial)
            if trial.state in DONE or not is_asked_again(trial):
                self.folder(study, root_of(trial)).delete(STATE)
            study.mark_recorded(trial.number)

    def _finish(self, study: SubjectStudy, trial: FrozenTrial) -> None:
        attrs, setting = trial.user_attrs, study.setting_of(trial)
        run = self._children.pop((study.name, trial.number), None)
        if run is None and setting is not None:
            run = self.started(study, trial.number, setting, bool(attrs.get(HOST)))
            del self._children[study.name, trial.number]
        if run is None:
            return  # it was ended before it had begun
        if trial.state == TrialState.COMPLETE:  # a pruned one is at another step than the others
            about = {name: float(attrs[name]) for name in ("steps", "alignment", "fidelity")}
            about["fidelity_excess"] = candidate_of(trial).excess
            run.log_metrics({f"trial.{name}": value for name, value in about.items()}, 0)
        tags = {"trial.state": trial.state.name, "trial.error": attrs.get(ERROR, "")}
        if trial.state == TrialState.PRUNED:
            tags[RUN_NAME] = _name(study, trial.number, "pruned")
        run.set_tags({name: value for name, value in tags.items() if value})
        run.finish(OUTCOMES[trial.state], timeout_s=0.0)  # type: ignore[arg-type]

    def abandon(self) -> None:
        """The sweep was interrupted. With `--resume` the parents' runs go on; trials are asked
        again under other numbers, in runs of their own.
        """
        for run in [*self._children.values(), *self._parents.values()]:
            run.finish("KILLED", timeout_s=1.0)


def _name(study: SubjectStudy, number: int, what: str) -> str:
    """A child run's. MLflow's list shows its beginning, below the subject's run; comparisons show
    all of it.
    """
    return f"trial {number} {what}".strip() + f" ({study.name})"


@dataclass
class Watcher:
    """Witness of a sweep: records, and keeps the table."""

    recorder: Recorder
    board: Board
    studies: Sequence[SubjectStudy]
    slots: Callable[[], tuple[int, int]]  # in use, in all
    _begun: float = field(default_factory=time.monotonic)
    _shown: float = 0.0
    _done_before: int | None = None
    _known: dict[str, tuple[int, Standing | None]] = field(default_factory=dict)

    def started(self, study: SubjectStudy, asked: Asked) -> None:
        self.recorder.started(study, asked.number, asked.params, asked.is_host)

    def read(self, study: SubjectStudy, asked: Asked, reading: Reading) -> None:
        self.recorder.read(study, asked, reading)

    def ended(self, study: SubjectStudy, asked: Asked) -> None:
        self.recorder.settle(study)
        self._known.pop(study.name, None)

    def tick(self) -> None:
        if time.monotonic() - self._shown < BOARD_EVERY_S:
            return
        self._shown = time.monotonic()
        self.board.show(self.title(), self.rows())

    def title(self) -> str:
        """How far, who leads, how long still."""
        done = sum(self._told(study)[0] for study in self.studies)
        self._done_before = done if self._done_before is None else self._done_before
        total = sum(study.tune.num_samples for study in self.studies)
        used, places = self.slots()
        best = self._told(self.studies[0])[1] if len(self.studies) == 1 else None
        left = self._left_s(done, total)
        return (
            f"trials {done}/{total}, slots {used}/{places}"
            + (f", best #{best.candidate.label} {best.candidate.alignment:.3f}" if best else "")
            + (f", about {left / 60:.0f} min left" if left >= 90 else "")
        )

    def _left_s(self, done: int, total: int) -> float:
        ended = done - (self._done_before or 0)
        spent = time.monotonic() - self._begun
        return spent / ended * (total - done) if ended else 0.0

    def rows(self) -> list[tuple[str, ...]]:
        """A row per trial under way, and one per subject for the best so far."""
        return [
            _row(study, asked) for study in self.studies for asked in list(study.running.values())
        ] + [
            _best_row(study, best)
            for study in self.studies
            if (best := self._told(study)[1]) is not None
        ]

    def _told(self, study: SubjectStudy) -> tuple[int, Standing | None]:
        """How many trials count, and the best one. Both change only when a trial ends: asking the
        database at every tick took a twelfth of a core.
        """
        if study.name not in self._known:
            self._known[study.name] = study.done, _best(study)
        return self._known[study.name]


def _best(study: SubjectStudy) -> Standing | None:
    known = {own.candidate.label: own for own in study.standings()}
    found = best_first([own.candidate for own in known.values()])
    return known[found[0].label] if found and found[0].feasible else None


def _best_row(study: SubjectStudy, best: Standing) -> tuple[str, ...]:
    scores = (best.candidate.alignment, best.candidate.fidelity)
    label = f"{study.name} #{best.trial.number} best"
    return _cells(study, label, best.steps, scores, best.trial.user_attrs["setting"])


def _row(study: SubjectStudy, asked: Asked) -> tuple[str, ...]:
    last = asked.readings[max(asked.readings)] if asked.readings else None
    scores = (last.alignment, last.fidelity) if last else None
    label = f"{study.name} #{asked.number}{' host' if asked.is_host else ''}"
    return _cells(study, label, last.step if last else 0, scores, asked.params)


def _cells(
    study: SubjectStudy, label: str, step: int, scores: tuple[float, float] | None, params: Params
) -> tuple[str, ...]:
    setting = ", ".join(
        f"{name} {_short(params[key])}".strip() for key, name in SHORT.items() if key in params
    )
    shown = [f"{score:.3f}" for score in scores] if scores else ["", ""]
    return (label, f"{step}/{study.steps[-1]}", *shown, _short(params[WEIGHT]), setting)


def _short(value: Any) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
