"""The study on WorldBench's tuning split: does each subject's own setting, found by a sweep, beat
one fixed setting, a sweep without SuDe, and random search?

Selection is `dreamfleet tune` as users run it, on some of the subject's states by oracle A; the
found setting is then trained on seeds that no sweep has used and read on the other states.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from dreamfleet.bases import inspect_base, resolved_config
from dreamfleet.config import ClusterConfig, RunConfig, load_config
from dreamfleet.data.photos import to_png
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.results import write_json
from dreamfleet.evaluation.studies.command import (
    StudyOrder,
    current_hashes,
    load_base_of,
)
from dreamfleet.evaluation.studies.fields import Member, WorldField
from dreamfleet.evaluation.studies.pieces import READINGS
from dreamfleet.evaluation.studies.plan import PlannedArm, arm_config
from dreamfleet.evaluation.studies.recipe import ArmSpec, Study
from dreamfleet.evaluation.studies.report import write_results
from dreamfleet.evaluation.studies.run import Report, StudyRun
from dreamfleet.evaluation.studies.settings import Settings, check_split, read_settings
from dreamfleet.evaluation.studies.tables import write_csv
from dreamfleet.runtime.jobs import durable_folder
from dreamfleet.runtime.storage import write_whole
from dreamfleet.tuning.command import MARKER, tune
from dreamfleet.tuning.pictures import EMBEDDED
from dreamfleet.tuning.space import WEIGHT, applied
from dreamfleet.tuning.study import open_storage, readings_beside_host
from dreamfleet.tuning.trial import Reading

SWEEPS, PHOTOS = "sweeps", "photos"
STEPS = "train.max_train_steps"
Setting = Mapping[str, Any]
Sweep = Callable[[RunConfig, bool], Setting]


def tuned(config: RunConfig, resume: bool) -> Setting:
    """A sweep's champion: parameters, and steps among them."""
    result = tune(config, resume=resume)
    return result.subjects[0].setting


def carry_out(
    order: StudyOrder,
    report: Report = print,
    sweep: Sweep | None = None,
    field: WorldField | None = None,
) -> tuple[Path, list[str]]:
    """Sweep each subject, train what was found, score it; resumable.

    Args:
        sweep: from a sweep's configuration to the setting found; None: `tuned`, on Ray.
        field: instead of the one that the order names; for tests.

    Returns:
        The folder of results, and what is not done.

    Raises:
        BadInputError: settings are missing, or held-back subjects may not be drawn.
    """
    import torch

    torch.set_num_threads(order.threads)
    order = replace(order, output_dir=str(durable_folder("--output-dir", order.output_dir)))
    study, settings = order.study(), read_settings(order.settings)
    check_split(settings, study.split, _hashes(order, study))
    if not isinstance(study.hosts, list) or len(study.hosts) != 1:
        raise BadInputError(f"{order.config}: hosts {study.hosts}: expected one host by its name")
    place = field or WorldField(study, scored=settings.scored_states)
    reach = _Reach(order, study, settings, place, sweep, report)
    own_arms = reach.found()
    load = functools.partial(load_base_of, order)
    run = StudyRun(study, place, next(iter(own_arms.values())), settings.guidance, load,
                   Path(order.output_dir), order.part, report, own_arms,
                   order.overrides)  # fmt: skip
    run.run()
    write_csv(reach.folder / READINGS, reach.readings())
    return write_results(run, settings)


def _hashes(order: StudyOrder, study: Study) -> dict[str, str]:
    return {} if study.split == "D" else current_hashes(order.base_model)


class _Reach:
    """Sweeps of all subjects, and the arms that follow."""

    def __init__(
        self,
        order: StudyOrder,
        study: Study,
        settings: Settings,
        field: WorldField,
        sweep: Sweep | None,
        report: Report,
    ) -> None:
        self.order, self.study, self.settings, self.field = order, study, settings, field
        first, step = order.part
        self.members = field.members()[first::step]
        self.sweep, self.report = sweep, report
        self.folder = Path(order.output_dir) / study.study
        self.host = study.hosts[0]
        self.files = inspect_base(order.base_model)

    def found(self) -> dict[str, list[PlannedArm]]:
        """The arms of this part's subjects, whose sweeps are done first."""
        with self._ray(self.members):
            for member in self.members:
                for spec in self.study.arms:
                    if spec.search is not None:
                        self._setting(member, spec)
        return {member.subject_id: self._arms(member) for member in self.members}

    def readings(self) -> list[dict[str, Any]]:
        """What the sweeps saw: the host's end and every rung, one row each."""
        return [
            {
                "arm": spec.name, "subject": member.subject_id, "trial": trial.number,
                "steps": step, "is_end_of_host": number == 0,
                WEIGHT: trial.user_attrs["setting"][WEIGHT],
                "alignment": own.alignment, "fidelity": own.fidelity,
            }
            for member in self.members
            for spec in self.study.arms if spec.search is not None
            for number, (trial, step, own) in enumerate(self._seen(member, spec))
        ]  # fmt: skip

    def _seen(self, member: Member, spec: ArmSpec) -> list[tuple[FrozenTrial, int, Reading]]:
        file = self._place(member, spec).with_suffix("") / "study.db"
        if not file.is_file():  # a sweep of another kind
            return []
        storage = open_storage(f"sqlite:///{file}")
        (known,) = storage.get_all_studies()
        return readings_beside_host(optuna.load_study(study_name=known.study_name, storage=storage))

    @contextlib.contextmanager
    def _ray(self, members: list[Member]) -> Iterator[None]:
        """One Ray for all sweeps, where any is left."""
        if self.sweep is not None or all(self._is_swept(member) for member in members):
            yield
            return
        from dreamfleet.runtime.session import ray_session

        with ray_session(ClusterConfig(), dashboard=False):
            yield

    def _is_swept(self, member: Member) -> bool:
        return all(
            self._place(member, spec).is_file()
            for spec in self.study.arms
            if spec.search is not None
        )

    def _arms(self, member: Member) -> list[PlannedArm]:
        arms = []
        for spec in self.study.arms:
            if spec.search is None:
                config = arm_config(spec, self.host, self.settings, self.order.overrides)
                steps = self.settings.steps(self.host)
            else:
                config, steps = self._tuned(member, spec)
            if config is not None:
                arms.append(PlannedArm(spec.name, self.host, config, (steps,), (1.0,)))
        return arms

    def _tuned(self, member: Member, spec: ArmSpec) -> tuple[RunConfig, int]:
        setting = dict(self._setting(member, spec))
        steps = int(setting.pop(STEPS))
        return applied(self._recipe(member, spec), setting), steps

    def _place(self, member: Member, spec: ArmSpec) -> Path:
        return self.folder / SWEEPS / f"{member.subject_id}-{_word(spec.name)}.json"

    def _setting(self, member: Member, spec: ArmSpec) -> Setting:
        """What the arm's sweep found for a subject; swept once."""
        place = self._place(member, spec)
        if not place.is_file():
            config = self._recipe(member, spec)
            output = place.with_suffix("")
            config.output_dir = str(output)
            self.report(f"{member.subject_id}: sweep {spec.name}")
            found = dict((self.sweep or tuned)(config, (output / MARKER).is_file()))
            if not {STEPS, WEIGHT} <= set(found):
                raise BadInputError(
                    f"{member.subject_id}, {spec.name}: the sweep found {found}; expected a "
                    f"setting with {STEPS} and {WEIGHT}"
                )
            write_json(place, found)
        setting: Setting = json.loads(place.read_text(encoding="utf-8"))
        return setting

    def _recipe(self, member: Member, spec: ArmSpec) -> RunConfig:
        """What a sweep begins with: the arm on its host, for as many steps as the fixed setting."""
        start = arm_config(spec, self.host, self.settings, self.order.overrides)
        if start is None:  # no setting kept the likeness: begin without SuDe
            start = arm_config(spec.model_copy(update={"sude": "none"}), self.host,
                               self.settings, self.order.overrides)  # fmt: skip
        assert start is not None
        common: dict[str, Any] = {
            "base_model": self.order.base_model,
            "subject.images": [str(self._photo(member))],
            "subject.id": member.subject_id,  # names the study, and so its sampler's numbers
            "subject.class_word": member.class_name,
            STEPS: self.settings.steps(self.host),
            "prior.num_class_images": self.study.num_class_images,
            "sampling.guidance_scale": self.settings.guidance,
            "sampling.num_inference_steps": self.study.num_inference_steps,
            "tracking.enabled": False,
        }
        if self.order.base_model == EMBEDDED:
            common["tune.states"] = self.field.selection(member)
        flat = _flat(start) | common | (spec.search or {}) | dict(self.order.overrides)
        return resolved_config(load_config(overrides=flat), self.files)

    def _photo(self, member: Member) -> Path:
        path = self.folder / PHOTOS / member.subject_id / "00.png"
        if not path.is_file():
            arm = PlannedArm("photo", self.host, None, (1,), (1.0,))
            photo = self.field.photos(member, arm, self.files.resolution)[0]
            write_whole(path, to_png(photo))
        return path


def _flat(config: RunConfig) -> dict[str, Any]:
    """Every set key with dots; presets are applied already and would lie over them again."""
    tree = config.model_dump(mode="json", include={"sude", "prior", "train"})
    return {
        f"{section}.{name}": value
        for section, inner in tree.items()
        for name, value in inner.items()
        if name != "preset"
    }


def _word(name: str) -> str:
    """An arm's name as part of a file's."""
    return "".join(c if c.isalnum() else "_" for c in name)
