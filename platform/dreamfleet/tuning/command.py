"""One `tune` call: photos in, one study per subject, each subject's champion out."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dreamfleet.config import RunConfig, dreamfleet_home, dump_config
from dreamfleet.data.subjects import SubjectRequest
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError, TrainingError
from dreamfleet.personalization.command import sigterm_as_interrupt
from dreamfleet.personalization.planning import (
    IdleCase,
    check_resume,
    complete_requests,
    say_without_effect,
    warn_of_prompts,
)
from dreamfleet.runtime.jobs import check_job_places
from dreamfleet.runtime.locks import exclusive_run
from dreamfleet.runtime.progress import Progress, SilentProgress
from dreamfleet.runtime.storage import Folder, is_uri, write_whole
from dreamfleet.training.output import CONFIG
from dreamfleet.tuning.judge import JudgeSource
from dreamfleet.tuning.pictures import EMBEDDED, shots
from dreamfleet.tuning.results import SubjectTuned, TuneResult
from dreamfleet.tuning.space import dimensions

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles

DATABASE, MARKER, TRIALS, FINALS, CHAMPION = (
    "study.db", "sweep.json", "trials", "finals", "champion",
)  # fmt: skip
TUNE_FILES = ".tune"
WRITTEN = (
    DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", MARKER, TRIALS, FINALS, CHAMPION, TUNE_FILES,
    "plots", "report.html", CONFIG,
)  # fmt: skip
# Ctrl-C shall reach us, and nothing is written outside the output folder.
RAY_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def tune(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TuneResult:
    """Find each subject's own setting, and train its champion.

    Args:
        config: the recipe: what is not searched; sections `tune` and `space` say how and what is.
        resume: go on with the studies in the output folder (or in `tune.storage`).
        overwrite: begin again in a used output folder.
        progress: where the table and lines go; default: nowhere.

    Returns:
        One result per subject. With several subjects one that fails is a result; with one subject
        it is raised.

    Raises:
        BadInputError: something given cannot be used; named, before Ray starts where possible.
        TrainingError: the only subject's study ended without a host.
        KeyboardInterrupt: interrupted; `resume` goes on.
    """
    started = time.monotonic()
    command = Command.planned(config, resume, overwrite, progress or SilentProgress())
    with sigterm_as_interrupt(), exclusive_run(command.output):
        command.execute()
    results = [command.results[request.id] for request in command.requests]
    if len(results) == 1 and results[0].status != "finished":
        raise TrainingError(f"{results[0].id}: {results[0].message}")
    return TuneResult(results, time.monotonic() - started, command.engine_s)


@dataclass
class Command:
    """One `tune` call."""

    requests: list[SubjectRequest]
    files: BaseFiles
    config: RunConfig
    output: Path
    resume: bool
    overwrite: bool
    progress: Progress
    results: dict[str, SubjectTuned] = field(default_factory=dict)
    engine_s: dict[str, float] = field(default_factory=dict)
    key: str = ""  # of the sweep; its marker holds it
    former_keys: list[str] = field(default_factory=list)  # of what is overwritten

    @classmethod
    def planned(
        cls, config: RunConfig, resume: bool, overwrite: bool, progress: Progress
    ) -> Command:
        """Check all that can be checked without Ray; nothing is written.

        Raises:
            BadInputError: naming what cannot be used.
        """
        check_resume(resume, overwrite)
        check_job_places(config)
        _check_placement(config)
        _check_storage(config)
        requests, files, resolved = complete_requests(config)
        output = _output_folder(config, requests)
        _check_output(output, resume, overwrite)
        own = cls(requests, files, resolved, output, resume, overwrite, progress)
        for request in requests:
            own._check(request)
        JudgeSource.of(resolved, {}, "cpu").check()
        warn_of_prompts(requests, files, progress)
        _warn_of_idle_settings(resolved, progress)
        return own

    def _check(self, request: SubjectRequest) -> None:
        """Refuse a space or a class word that nothing can be made of."""
        try:
            dimensions(request.config)
            shots(request.config, self.config.tune.final_images)
        except ConfigError:
            raise
        except DreamfleetError as error:
            if len(self.requests) == 1:
                raise
            self.subject_failed(request.id, str(error))

    def subject_failed(self, identity: str, message: str, *, is_said: bool = False) -> None:
        """One of several subjects ends here; the others go on."""
        request = next(own for own in self.requests if own.id == identity)
        if not is_said:
            self.progress.warn(f"{request.display_name}: {message}")
        self.results[identity] = SubjectTuned(
            identity, request.display_name, "failed", self.folder(identity), message
        )

    def folder(self, identity: str) -> Path:
        """Where one subject's results go."""
        return self.output if len(self.requests) == 1 else self.output / identity

    def trial_folder(self, identity: str, root: int) -> str:
        """Where a trial's state and readings lie."""
        return self.storage.child(f"{TRIALS}/{self.key}/{identity}/{root:04d}").location

    def final_folder(self, identity: str, number: int, seed: int) -> str:
        return self.storage.child(f"{FINALS}/{self.key}/{identity}/{number:04d}-{seed}").location

    @property
    def storage(self) -> Folder:
        """Where trials and finals lie, of this sweep and maybe of others."""
        return Folder(self.config.cluster.storage_path or str(self.output))

    # From photos to results

    def execute(self) -> None:
        from dreamfleet.runtime.session import added_environment, ray_session
        from dreamfleet.tracking import open_tracker
        from dreamfleet.tuning.run import Run
        from dreamfleet.tuning.study import check_storage

        if self.config.tune.storage:
            check_storage(self.config.tune.storage)
        self.key = self._begin()
        spool = dreamfleet_home() / "spool"
        tracker = open_tracker(self.config.tracking, spool, self.progress.warn)
        try:
            with (
                added_environment(RAY_TUNE),
                ray_session(self.config.cluster, dashboard=False) as session,
            ):
                Run(self, session, tracker, self.key).run()
        finally:
            tracker.close()

    def _begin(self) -> str:
        """Mark the folder as ours; the sweep's name for the tracking server."""
        marker = self.output / MARKER
        if self.overwrite:
            self.former_keys = _keys_in(marker)
            _clear(self.output)
            for former in self.former_keys:
                self.storage.delete_folder(f"{TRIALS}/{former}")
                self.storage.delete_folder(f"{FINALS}/{former}")
        if marker.is_file():
            return _keys_in(marker)[0]
        if self.resume:
            self.progress.info(f"{self.output}: nothing to go on from; beginning")
        key = uuid.uuid4().hex[:12]
        # Former keys too: a database may still hold their studies when this command fails early.
        about = {"key": key, "former": self.former_keys, "what": "dreamfleet tune"}
        write_whole(marker, json.dumps(about).encode())
        return key

    def write_settings(self) -> None:
        """Beside the studies, once they have taken them: `--resume` may have changed some."""
        complete = self.config.model_copy(update={"output_dir": str(self.output)})
        write_whole(self.output / CONFIG, dump_config(complete).encode())

    @property
    def storage_url(self) -> str:
        return self.config.tune.storage or f"sqlite:///{self.output / DATABASE}"


def _check_placement(config: RunConfig) -> None:
    if config.tune.placement == "packed" and config.train.mode == "full":
        raise ConfigError(
            "train.mode = 'full' with tune.placement = 'packed': full fine-tuning changes the base "
            "itself and cannot share it; add --placement one_per_device"
        )
    if config.tune.placement == "packed":
        from dreamfleet.engine.packed_job import why_alone

        if reason := why_alone(config):
            raise ConfigError(f"{reason}; add --placement one_per_device")


def _warn_of_idle_settings(config: RunConfig, progress: Progress) -> None:
    """Say which of the settings given take no part in the search."""
    world, tune = config.base_model == EMBEDDED, config.tune
    one_rung = tune.num_rungs == 1
    judges = ("tune.blip", "tune.dino", "tune.judge_num_gpus")
    pictures = (
        "sampling.validation_prompts", "sampling.num_validation_images",
        "sampling.validation_steps",
    )  # fmt: skip
    checkpoints = ("train.checkpointing_steps", "train.checkpoints_total_limit")
    between = ("tune.pruner", "tune.reduction_factor", "tune.images_per_rung")
    cases: list[IdleCase] = [
        (world, judges, "the embedded base has judges of its own"),
        (not world, ("tune.evaluators",), "real bases are judged by tune.blip and tune.dino"),
        (one_rung, between, "tune.num_rungs is 1: a trial is read at its end only"),
        (
            tune.sampler == "nsga2" and not one_rung,
            ("tune.pruner",),
            "tune.sampler nsga2 prunes nothing",
        ),
        (tune.placement != "packed", ("cluster.max_slots",), "trials share no engine"),
        (config.train.mode == "full", ("space.rank",), "train.mode is full: no LoRA is trained"),
        (True, pictures, "a sweep draws what it judges by"),
        (True, checkpoints, "a trial's state is kept at each of its rungs"),
        (True, ("cluster.max_failures",), "a trial is tried thrice, a lost engine comes back"),
        (
            True,
            ("cluster.parallel", "cluster.parallel_strategy"),
            "no trial is trained by several workers",
        ),
    ]
    say_without_effect(cases, config, [RunConfig()], progress)


def _check_storage(config: RunConfig) -> None:
    """A database's URL is written into settings and records: no secret may be in it."""
    from dreamfleet.tracking.base import without_password

    given = config.tune.storage or ""
    shown = without_password(given)
    if shown != given:
        raise BadInputError(
            f"tune.storage = {shown} with a password: it would be written into "
            "settings and records; give it by the environment, e.g. PGPASSWORD, or ~/.pgpass"
        )


def _output_folder(config: RunConfig, requests: Sequence[SubjectRequest]) -> Path:
    default = f"runs/tune-{requests[0].id if len(requests) == 1 else 'fleet'}"
    place = config.output_dir or default
    if is_uri(place):
        raise BadInputError(
            f"output_dir = {place!r}: a study grows in a folder; give a local or shared one, and "
            "name a database by --storage where several hosts look on"
        )
    return Path(place).expanduser().absolute()


def _check_output(output: Path, resume: bool, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise BadInputError(f"output folder {output}: a file of that name is in the way")
    used = output.is_dir() and any(path.name != ".lock" for path in output.iterdir())
    if not used:
        return
    if not (output / MARKER).is_file():
        raise BadInputError(
            f"output folder {output}: holds other files than those of a sweep; give another "
            "--output-dir"
        )
    if not resume and not overwrite:
        raise BadInputError(
            f"output folder {output}: not empty; add --resume to go on, --overwrite to begin "
            "again, or give another --output-dir"
        )


def _keys_in(marker: Path) -> list[str]:
    """The sweep's key, then those of sweeps that it has overwritten."""
    if not marker.is_file():
        return []
    about = json.loads(marker.read_text(encoding="utf-8"))
    return [str(about["key"]), *about.get("former", ())]


def _clear(output: Path) -> None:
    """Delete what a sweep writes, and nothing else."""
    for name in WRITTEN:
        target = output / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    for place in output.iterdir():  # subjects of a sweep over several
        if place.is_dir() and (place / CHAMPION).is_dir():
            shutil.rmtree(place)
