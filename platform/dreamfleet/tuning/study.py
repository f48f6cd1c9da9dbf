"""One Optuna study per subject: what was tried and found. It is the only truth of a sweep.

A trial is told COMPLETE with the reading that the selection rule prefers among its rungs, PRUNED
where the pruner ended it, FAIL where its training failed. What a killed driver left RUNNING is told
FAIL and asked again, with the same setting and the same folder: finished readings are not repeated,
and rungs that the attempt had passed are passed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dreamfleet.config import RunConfig, TuneConfig
from dreamfleet.errors import BadInputError, ResumeError, first_line
from dreamfleet.seeding import key_to_int
from dreamfleet.tuning.pruning import ROOT, make_pruner, ranked, root_of
from dreamfleet.tuning.rule import (
    Candidate,
    as_of_last,
    best_first,
    fidelity_excess,
    is_less_aligned,
    rung_value,
)
from dreamfleet.tuning.space import dimensions, first_settings, suggest
from dreamfleet.tuning.trial import Reading

CONSTRAINT = "fidelity"
HOST, FIRST, RETRY, BEATEN, INTERRUPTED, ERROR, SETTINGS, RECORDED, OWNER = (
    "host", "first_setting", "retry_of", "beaten", "interrupted", "error", "settings", "recorded",
    "owner",
)  # fmt: skip
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
DATABASE_TIMEOUT_S = 60
OPEN_ATTEMPTS, OPEN_AGAIN_AFTER_S = 5, 1.0  # of a database that others may be filling
MIN_FAILURES = 3  # a study may lose this many trials, or as many as it is to have
MAX_STARTUP_TRIALS = 10  # Optuna's own number
SEED_LIMIT = 2**32  # of numpy's generators


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """An Optuna storage; SQLite gets a write-ahead log, which a sweep's many small writes need.

    Raises:
        BadInputError: it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return _opened(_sqlite_storage if url.startswith("sqlite:///") else _server_storage, url)
    except Exception as error:  # SQLAlchemy's and the drivers' own, of many kinds
        from dreamfleet.tracking.base import without_password

        raise BadInputError(
            f"tune.storage = {without_password(url)}: cannot be opened ({first_line(error)}); "
            "expected an SQLAlchemy URL, e.g. postgresql+psycopg://user@host/database"
        ) from error


def check_storage(url: str) -> None:
    """Refuse a database that cannot be opened.

    Raises:
        BadInputError: naming it.
    """
    open_storage(url).engine.dispose()


def _opened(
    storage: Callable[[str], optuna.storages.RDBStorage], url: str, attempts: int = OPEN_ATTEMPTS
) -> optuna.storages.RDBStorage:
    """Optuna makes its tables where there are none, and fails where another does meanwhile."""
    from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

    try:
        return storage(url)
    except (DBAPIError, sqlite3.OperationalError) as error:
        # SQLite says so by the error that elsewhere means a server that is not there; and its
        # journal's mode cannot be set while another is at it, however long the timeout.
        is_late = isinstance(error, (IntegrityError, ProgrammingError))
        is_late = is_late or any(text in str(error) for text in ("already exists", "is locked"))
        if attempts == 1 or not is_late:
            raise
    time.sleep(OPEN_AGAIN_AFTER_S)
    return _opened(storage, url, attempts - 1)


def _server_storage(url: str) -> optuna.storages.RDBStorage:
    # Rungs may lie further apart than a connection that says nothing is let live.
    return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def _sqlite_storage(url: str) -> optuna.storages.RDBStorage:
    from sqlalchemy import event

    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=DATABASE_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    options = {"connect_args": {"timeout": DATABASE_TIMEOUT_S}}
    storage = optuna.storages.RDBStorage(url, engine_kwargs=options)

    def hasten(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")  # safe with a write-ahead log

    event.listen(storage.engine, "connect", hasten)
    storage.engine.dispose()  # connections from before
    return storage


@dataclass(frozen=True)
class Owner:
    """Whose a study is: several sweeps may share a database.

    Attributes:
        key: of the sweep.
        output_dir: where it writes.
    """

    key: str
    output_dir: str


def delete_study(storage: optuna.storages.BaseStorage, name: str, keys: Collection[str]) -> None:
    """Delete a study of one of these sweeps.

    Raises:
        BadInputError: it is another's.
    """
    study = storage.get_study_id_from_name(name)
    owner = storage.get_study_user_attrs(study).get(OWNER, {})
    if owner.get("key") not in keys:
        raise BadInputError(
            f"study {name!r}: is another sweep's ({_place(owner)}); begin again there, or give "
            "another --subject-id"
        )
    storage.delete_study(study)


def _place(owner: Mapping[str, str]) -> str:
    return f"output folder {owner['output_dir']}" if owner else "of unknown origin"


def make_sampler(tune: TuneConfig, name: str, trials_so_far: int) -> optuna.samplers.BaseSampler:
    """The study's sampler; each study draws numbers of its own, and one that goes on others than
    before.
    """
    seed = key_to_int("sampler", name, tune.sampler_seed, trials_so_far) % SEED_LIMIT
    startup = min(MAX_STARTUP_TRIALS, max(4, tune.num_samples // 3))
    if tune.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    if tune.sampler == "gp":
        # What the host lacks it draws at random, always; a line per parameter and trial is no news.
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=startup, warn_independent_sampling=False
        )
    if tune.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(
            seed=seed, population_size=min(50, max(4, tune.num_samples // 4))
        )
    return optuna.samplers.RandomSampler(seed=seed)


def rungs(tune: TuneConfig, max_train_steps: int) -> tuple[int, ...]:
    """Steps at which a trial is read: each `reduction_factor` times the one before, then the last.

    >>> rungs(TuneConfig(num_rungs=3, reduction_factor=3), 400)
    (44, 132, 400)
    """
    first = max(1, max_train_steps // tune.reduction_factor ** (tune.num_rungs - 1))
    steps = [first * tune.reduction_factor**number for number in range(tune.num_rungs - 1)]
    return tuple(sorted({step for step in steps if step < max_train_steps} | {max_train_steps}))


@dataclass
class Asked:
    """A trial on its way."""

    trial: optuna.trial.Trial
    params: dict[str, Any]
    is_host: bool
    root: int  # the number of its first attempt: its folder
    readings: dict[int, Reading] = field(default_factory=dict)
    # What the pruner knows, a retry from its earlier attempt:
    reported: set[int] = field(default_factory=set)  # steps; it is not asked about them again
    beaten: bool = False  # by others, at a rung: it is asked no more
    pruned: bool = False
    error: str = ""

    @property
    def number(self) -> int:
        return self.trial.number


@dataclass(frozen=True)
class Standing:
    """A trial that counts, at the rung that the selection rule takes of it."""

    trial: FrozenTrial
    steps: int
    candidate: Candidate


class SubjectStudy:
    """One subject's study, with what its running trials have shown so far.

    Args:
        storage: where it lies.
        name: its name there: the subject's id.
        config: the subject's resolved recipe.
        fingerprint: of all that decides a reading; a study goes on under the same only.
        resume: whether a study of that name may exist.
        owner: whose it is.

    Raises:
        BadInputError: there is such a study, and `resume` is off; or another sweep is at it.
        ResumeError: it was begun under other settings.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        config: RunConfig,
        fingerprint: Mapping[str, Any],
        *,
        resume: bool,
        owner: Owner,
    ) -> None:
        self.name, self.config, self.tune = name, config, config.tune
        self.steps = rungs(config.tune, int(config.train.max_train_steps or 0))
        self._space = dimensions(config)
        exists = name in [found.study_name for found in storage.get_all_studies()]
        if exists and not resume:
            raise BadInputError(
                f"study {name!r}: is in this storage already; add --resume to go on with it, "
                "--overwrite to begin again, or give another --subject-id"
            )
        two = ["maximize", "maximize"] if self.tune.sampler == "nsga2" else ["maximize"]
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=two, load_if_exists=True,
            pruner=make_pruner(self.tune, self.steps),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names(["alignment", "fidelity"][: len(two)])  # for dashboards
        self.study.sampler = make_sampler(self.tune, name, len(self.trials()))
        self._settings = self._check_settings(fingerprint)
        self._take_over(owner)
        self.running: dict[int, Asked] = {}
        self._untold: list[Asked] = []  # complete, but their host is not yet
        # A new command is a new chance: what made them fail may have been mended.
        self._forgiven = {trial.number for trial in self.failures}
        self._recover()
        self._enqueue_first()

    # What is there

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    @property
    def done(self) -> int:
        """Trials that count."""
        return len(self.trials(*DONE))

    @property
    def failures(self) -> list[FrozenTrial]:
        """Trials whose training failed; those that were merely interrupted are asked again."""
        failed = self.trials(TrialState.FAIL)
        return [trial for trial in failed if not trial.user_attrs.get(INTERRUPTED)]

    @property
    def finished(self) -> bool:
        """Nothing more is to be tried."""
        return not self.running and (self.done >= self.tune.num_samples or self._hopeless)

    @property
    def _hopeless(self) -> bool:
        most = max(MIN_FAILURES, self.tune.num_samples)
        return self._host_failed or len(self._new_failures) >= most

    @property
    def _host_failed(self) -> bool:
        return any(trial.user_attrs.get(HOST) for trial in self._new_failures)

    @property
    def _new_failures(self) -> list[FrozenTrial]:
        """Those of this command."""
        return [trial for trial in self.failures if trial.number not in self._forgiven]

    def host_error(self) -> str:
        """Why there is no host."""
        errors = [t.user_attrs.get(ERROR, "") for t in self.failures if t.user_attrs.get(HOST)]
        return errors[-1] if errors else "it was not tried"

    def host(self) -> FrozenTrial | None:
        """The finished host."""
        return _host_among(self.trials(TrialState.COMPLETE))

    def standings(self) -> list[Standing]:
        """All trials for the rule, once there is a host. A pruned one is a shorter training: it
        stands as it was at its best rung.
        """
        host = self.host()
        if host is None:
            return []
        whole = [
            Standing(trial, int(trial.user_attrs["steps"]), candidate_of(trial))
            for trial in self.trials(TrialState.COMPLETE)
        ]
        last = readings_of(host)[self.steps[-1]]
        return whole + [self._shorter(trial, last) for trial in self.trials(TrialState.PRUNED)]

    def candidates(self) -> list[Candidate]:
        """`standings` as the rule sees them."""
        return [own.candidate for own in self.standings()]

    def _shorter(self, trial: FrozenTrial, last: Reading) -> Standing:
        """Where a pruned trial stands beside the host's `last` reading."""
        found = {}
        for step, own in _as_of_last(readings_of(trial), last).items():
            excess = fidelity_excess(own.fidelities, last.fidelities, self.tune.fidelity_margin)
            found[step] = Candidate(str(trial.number), own.alignment, excess, own.fidelity)
        best = best_first(list(found.values()))[0]
        return Standing(trial, next(step for step, own in found.items() if own is best), best)

    def setting_of(self, trial: FrozenTrial) -> dict[str, Any] | None:
        """A trial's whole setting, fixed parameters too; None: it was ended before it had one."""
        if "setting" in trial.user_attrs:
            return dict(trial.user_attrs["setting"])
        try:
            fixed = optuna.trial.FixedTrial(trial.params)
            return suggest(fixed, self._space, host=bool(trial.user_attrs.get(HOST)))
        except ValueError:  # a parameter is missing
            return None

    def key_of(self, params: Mapping[str, Any], seed: int, *more: Any) -> str:
        """Of all that decides the readings of a training of this study."""
        parts = [self._settings, params, seed, *more]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # Asking

    def ask(self) -> Asked | None:
        """The next trial; None: not now."""
        training = len(self.running) - len(self._untold)
        if training >= self.tune.max_concurrent_trials or self._hopeless:
            return None
        if self.done + len(self.running) >= self.tune.num_samples:
            return None
        trial = self.study.ask()
        is_host = bool(trial.user_attrs.get(HOST))
        params = suggest(trial, self._space, host=is_host)
        asked = Asked(trial, params, is_host, root_of(trial))
        if RETRY in trial.user_attrs:
            asked.reported |= set(self.trials()[trial.number].intermediate_values)
            asked.beaten = bool(trial.user_attrs.get(BEATEN))
        self.running[trial.number] = asked
        return asked

    # Telling

    def read(self, number: int, reading: Reading) -> bool:
        """Note a rung; True: the trial shall stop here."""
        asked = self.running[number]
        asked.readings[reading.step] = reading
        if self._host_failed:  # there is nothing to be compared with
            return True
        if self.tune.sampler == "nsga2":  # two objectives have no rung value
            return False
        for own in [asked, *self.running.values()] if asked.is_host else [asked]:
            self._report(own)
            self._settle(own)
        return asked.pruned

    def _report(self, asked: Asked) -> None:
        """Tell the pruner the rungs that can be compared: not before the host is known there."""
        for step in sorted(set(asked.readings) - asked.reported):
            host, own = self._host_at(step), asked.readings[step]
            if host is None:
                return
            margin = self.tune.fidelity_margin
            value = rung_value(own.alignment, own.fidelity, host.fidelity, margin)
            asked.trial.report(value, step)
            asked.reported.add(step)
            # The host is not among those that the pruner ranks: it never leaves, and where settings
            # are alike early on, it would end the others by chance. What is worse for sure ends.
            if asked.beaten or asked.is_host or step == self.steps[-1]:
                continue
            worse = is_less_aligned(own.alignments, host.alignments)
            worse = worse and own.fidelity <= host.fidelity
            asked.beaten = asked.trial.should_prune() or worse
            if asked.beaten and self.steps[-1] not in asked.readings:
                return

    def _settle(self, asked: Asked) -> None:
        """Whether it shall stop; noted, for a driver that is killed before it has."""
        pruned = self._is_pruned(asked)
        if pruned != asked.pruned:
            asked.pruned = pruned
            asked.trial.set_user_attr(BEATEN, pruned)

    def _is_pruned(self, asked: Asked) -> bool:
        """Beaten where it is by now: a retry first comes to the rung of its attempt again, and so
        may the host. Where it was decided too late, the trial is whole.
        """
        if not asked.beaten or self.steps[-1] in asked.readings:
            return False
        rung = max(asked.reported)
        return rung in asked.readings and self._host_at(rung) is not None

    def end(self, number: int, error: str = "") -> None:
        """A trial's training is over, for whatever reason."""
        asked = self.running[number]
        asked.error = asked.error or error
        if self._host_failed and not asked.error:
            self._tell_interrupted(asked)
            return
        whole = self.steps[-1] in asked.readings
        if not asked.error and not whole and not asked.pruned:
            asked.error = "ended without a result"
        if asked.error:
            self._tell_failed(asked)
        elif asked.pruned:
            self._tell_pruned(asked)
        elif asked.is_host or self.host() is not None:
            self._tell_complete(asked)
        else:
            self._untold.append(asked)
        if asked.is_host:
            for waiting in self._untold:
                tell = self._tell_interrupted if asked.error else self._tell_complete
                tell(waiting)
            self._untold.clear()

    def _tell_complete(self, asked: Asked) -> None:
        chosen, excess = self._preferred(asked)
        self._note(asked, chosen, excess)
        values = [chosen.alignment, chosen.fidelity][: len(self.study.directions)]
        self._tell(asked, values=values)

    def _tell_pruned(self, asked: Asked) -> None:
        last = asked.readings[max(asked.reported)]  # what it was pruned for
        host = self._host_at(last.step)
        assert host is not None  # or it could not have been compared
        self._note(asked, last, host.fidelity - self.tune.fidelity_margin - last.fidelity)
        self._tell(asked, state=TrialState.PRUNED)

    def _tell_failed(self, asked: Asked) -> None:
        asked.trial.set_user_attr(ERROR, asked.error)
        self._tell(asked, state=TrialState.FAIL)

    def _tell_interrupted(self, asked: Asked) -> None:
        """Its host failed: it is asked again when that one is, and its readings are kept."""
        asked.trial.set_user_attr(INTERRUPTED, True)
        self._tell(asked, state=TrialState.FAIL)

    def _tell(self, asked: Asked, **outcome: Any) -> None:
        self.study.tell(asked.number, **outcome)
        del self.running[asked.number]

    def _preferred(self, asked: Asked) -> tuple[Reading, float]:
        """The rung to stop at, by the selection rule; the host is the whole recipe."""
        last = self.steps[-1]
        margin = self.tune.fidelity_margin
        if asked.is_host:
            return asked.readings[last], -margin
        host = self._host_at(last)
        assert host is not None  # trials without one to be compared with wait
        found, comparable = {}, _as_of_last(asked.readings, asked.readings[last])
        for step in sorted(asked.readings, reverse=True):
            own = comparable[step]
            excess = fidelity_excess(own.fidelities, host.fidelities, margin)
            found[str(step)] = Candidate(str(step), own.alignment, excess, own.fidelity)
        best = best_first(list(found.values()))[0]
        return comparable[int(best.label)], best.excess

    def _note(self, asked: Asked, chosen: Reading, excess: float) -> None:
        """What a reader of the study wants to know of a trial."""
        about = {
            "steps": chosen.step,
            "alignment": chosen.alignment,
            "fidelity": chosen.fidelity,
            "readings": [asdict(own) for own in asked.readings.values()],
            "setting": asked.params,
        }
        for name, value in about.items():
            asked.trial.set_user_attr(name, value)
        asked.trial.set_constraint(CONSTRAINT, excess)

    def recorded(self) -> set[int]:
        """Trials whose end is recorded elsewhere too."""
        return set(self.study.user_attrs.get(RECORDED, ()))

    def mark_recorded(self, number: int) -> None:
        """The tracking server has been told of a finished trial's end."""
        self.study.set_user_attr(RECORDED, sorted(self.recorded() | {number}))

    def _host_at(self, step: int) -> Reading | None:
        """The host at a rung; None: it has not come to it."""
        for asked in self.running.values():
            if asked.is_host:
                return asked.readings.get(step)
        host = self.host()
        return None if host is None else readings_of(host).get(step)

    # Beginning

    def _enqueue_first(self) -> None:
        """Those first settings that are not there yet: a driver may have been killed between two,
        or a study of fewer trials goes on.
        """
        there = {trial.user_attrs.get(FIRST) for trial in self.trials()}
        wanted = first_settings(self.config)[: self.tune.num_samples]
        for number, params in enumerate(wanted):
            if number not in there:
                attrs = {FIRST: number} | ({HOST: True} if number == 0 else {})
                self.study.enqueue_trial(params, user_attrs=attrs)

    def _take_over(self, owner: Owner) -> None:
        before = self.study.user_attrs.get(OWNER)
        if before == asdict(owner):
            return
        if before and before["key"] != owner.key and self.trials(TrialState.RUNNING):
            raise BadInputError(
                f"study {self.name!r}: trials of another sweep run in it ({_place(before)}); end "
                "that one, or go on with it by --resume with its own --output-dir"
            )
        self.study.set_user_attr(OWNER, asdict(owner))

    def _recover(self) -> None:
        running = self.trials(TrialState.RUNNING)
        if self.host() is None:  # it comes first, but Optuna hands waiting trials out by number
            running += self.trials(TrialState.WAITING)
        storage = self.study._storage
        for trial in running:
            storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        retried = {trial.user_attrs.get(RETRY) for trial in self.trials()}
        failed = self.trials(TrialState.FAIL)
        for trial in sorted(failed, key=lambda own: not own.user_attrs.get(HOST)):
            if is_asked_again(trial) and trial.number not in retried:
                self._retry(trial)

    def _retry(self, trial: FrozenTrial) -> None:
        """Ask once more, in the same folder and with what the pruner knows of it; one that had no
        setting yet only counts as asked.
        """
        is_host = bool(trial.user_attrs.get(HOST))
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if not params and not is_host:
            return
        kept = {name: trial.user_attrs[name] for name in (HOST, BEATEN) if name in trial.user_attrs}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                system_attrs={"fixed_params": params, **ranked(trial)},  # as `enqueue_trial` has it
                user_attrs={RETRY: trial.number, ROOT: root_of(trial), **kept},
                intermediate_values=trial.intermediate_values,
            )
        )

    def _check_settings(self, fingerprint: Mapping[str, Any]) -> dict[str, str]:
        text = json.dumps(fingerprint, sort_keys=True, default=str)
        own = {name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode())
               .hexdigest()[:16] for name, value in fingerprint.items()}  # fmt: skip
        before = self.study.user_attrs.get(SETTINGS)
        if before is None:
            self.study.set_user_attr(SETTINGS, own)
            self.study.set_user_attr("recipe", text[:60_000])
            return own
        different = [name for name in sorted({*own, *before}) if own.get(name) != before.get(name)]
        if different:
            raise ResumeError(
                f"study {self.name!r}: was begun under other settings ({', '.join(different)}); go "
                "on with those (they are in its config.yaml), or begin again with --overwrite or "
                "another --output-dir"
            )
        return own


def _as_of_last(readings: Mapping[int, Reading], last: Reading) -> dict[int, Reading]:
    """Rungs with means that can be compared: earlier ones are judged by fewer pictures."""
    return {
        step: replace(
            own,
            alignment=as_of_last(own.alignments, last.alignments, own.alignment, last.alignment),
            fidelity=as_of_last(own.fidelities, last.fidelities, own.fidelity, last.fidelity),
        )
        for step, own in readings.items()
    }


def is_asked_again(failed: FrozenTrial) -> bool:
    """Whether `--resume` tries a failed trial once more: one that was merely interrupted, and the
    host, for without it nothing can be compared.
    """
    return bool(failed.user_attrs.get(INTERRUPTED) or failed.user_attrs.get(HOST))


def readings_beside_host(study: optuna.Study) -> list[tuple[FrozenTrial, int, Reading]]:
    """Every rung of the trials that count, with means that can be compared with the host's last:
    (trial, steps, reading), the host's own last one first; empty without a finished host.
    """
    trials = study.get_trials(deepcopy=False, states=DONE)
    host = _host_among([trial for trial in trials if trial.state is TrialState.COMPLETE])
    if host is None:
        return []
    of_host = readings_of(host)
    end = max(of_host)
    found = [
        (trial, step, own)
        for trial in trials
        for step, own in _as_of_last(readings_of(trial), of_host[end]).items()
    ]
    return sorted(found, key=lambda row: (row[0].number, row[1]) != (host.number, end))


def _host_among(complete: Sequence[FrozenTrial]) -> FrozenTrial | None:
    return next((trial for trial in complete if trial.user_attrs.get(HOST)), None)


def readings_of(trial: FrozenTrial) -> dict[int, Reading]:
    """What was read of a trial that counts, by step."""
    return {row["step"]: Reading(**row) for row in trial.user_attrs["readings"]}


def candidate_of(trial: FrozenTrial) -> Candidate:
    """A finished trial for the rule."""
    attrs = trial.user_attrs
    excess = float(trial.constraints.get(CONSTRAINT, 0.0))
    return Candidate(str(trial.number), attrs["alignment"], excess, attrs["fidelity"])
