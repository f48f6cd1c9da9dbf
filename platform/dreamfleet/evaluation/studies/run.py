"""Run a study: per subject and seed, train what is not trained, draw and score what is not scored.

LoRA arms of a subject share one engine and its frozen teacher; a fully fine-tuned host has a base
of its own. Whatever is finished, of this study or of another in the same output folder, is not done
again, so the command can be stopped at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from dreamfleet.adapters.files import load_adapter
from dreamfleet.bases import Base, resolved_config
from dreamfleet.config import RunConfig
from dreamfleet.engine.batch import sample_timestep
from dreamfleet.engine.job import StepMetrics
from dreamfleet.engine.packed_job import AnyJob
from dreamfleet.engine.spec import TrainJobSpec
from dreamfleet.errors import TrainingError, first_line
from dreamfleet.evaluation.studies.fields import Field, Member
from dreamfleet.evaluation.studies.plan import BARE, PlannedArm, training_key
from dreamfleet.evaluation.studies.recipe import Study
from dreamfleet.evaluation.studies.store import ArmFolder, Row, Rung, arm_folder, picture_name
from dreamfleet.evaluation.worldbench.ladder import (
    Ladder,
    RungReached,
    draw_jobs,
    encode_pictures,
    prior_latents,
    train_alone,
    train_together,
)
from dreamfleet.evaluation.worldbench.plan import BenchSettings, Job
from dreamfleet.runtime.locks import shared_work

TOGETHER = 24  # arms on one engine
SCORED_AT_ONCE = 64
TELL_EVERY_S = 30.0
SAVE_EVERY_S = 300.0  # what a kill may cost
PRIORS = "priors"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Unit:
    """One arm of one subject and seed.

    Attributes:
        config: resolved; None: the bare base.
        folder: its files, shared with every study that trains the same.
        jobs: the pictures of a rung.
    """

    member: Member
    arm: PlannedArm
    seed: int
    config: RunConfig | None
    folder: ArmFolder
    jobs: Sequence[Job]

    @property
    def text(self) -> str:
        """For people."""
        if self.arm is BARE:
            return f"{self.member.subject_id} bare base"
        return f"{self.member.subject_id} seed {self.seed} {self.arm.host}: {self.arm.name}"


@dataclass
class StudyRun:
    """One study on one device.

    Attributes:
        field: subjects, prompts, judges.
        arms: what is trained; the bare base always comes first.
        own_arms: by subject, where each has settings of its own; else empty.
        guidance: of all pictures; None: the base's own.
        load: gives a fresh base.
        output_dir: everything is written here; several studies may share it.
        part: (i, n): subjects i, i + n, …, for several machines or another time.
        overrides: of every arm, as a command line gave them; they are in `arms` already.
    """

    study: Study
    field: Field
    arms: Sequence[PlannedArm]
    guidance: float | None
    load: Callable[[], Base]
    output_dir: Path
    part: tuple[int, int] = (0, 1)
    report: Report = print
    own_arms: Mapping[str, Sequence[PlannedArm]] = dataclasses.field(default_factory=dict)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _base: list[Base] = dataclasses.field(default_factory=list)

    @property
    def base(self) -> Base:
        """The bare base; whoever trains in it leaves it bare."""
        if not self._base:
            self._base.append(self.load())
        return self._base[0]

    def members(self) -> list[Member]:
        """This part's subjects."""
        first, step = self.part
        return self.field.members()[first::step]

    def run(self) -> None:
        """Do what is not done yet for this part's subjects."""
        for batch in self.batches():
            self.run_members(batch)

    def batches(self, num_workers: int = 1) -> list[list[Member]]:
        """This part's subjects: together those whose LoRA arms fill an engine, as far as that
        leaves none of `num_workers` idle.
        """
        mine = self.members()
        arms = max((sum(arm.packs for arm in self.arms_of(member)) for member in mine), default=0)
        size = max(1, TOGETHER // max(1, arms * len(self.study.training_seeds)))
        size = min(size, max(1, -(-len(mine) // num_workers)))
        return [mine[start : start + size] for start in range(0, len(mine), size)]

    def run_members(self, members: Sequence[Member]) -> None:
        """Some subjects; another process that is at one is waited for, where anything is missing.

        All processes take subjects in the study's order, so none waits for one that waits for it.
        """
        missing = [m for m in members if not all(map(self.is_done, self._units_of(m)))]
        with contextlib.ExitStack() as locks:
            for member in missing:
                name = member.subject_id
                lock = self.output_dir / "arms" / name / ".lock"
                say = functools.partial(self.report, f"{name}: waiting for another process")
                locks.enter_context(shared_work(lock, say))
                self._read(self.unit(member, BARE, 0), 0, self.base)
            self._train_missing(missing)
        for member in members:
            self.report(f"{member.subject_id} done")

    def arms_of(self, member: Member) -> Sequence[PlannedArm]:
        """The arms of a subject."""
        return self.own_arms.get(member.subject_id, self.arms)

    def units(self) -> Iterator[Unit]:
        """Every unit of this part, the bare base first for each subject."""
        for member in self.members():
            yield from self._units_of(member)

    def _units_of(self, member: Member) -> Iterator[Unit]:
        yield self.unit(member, BARE, 0)
        for seed in self.study.training_seeds:
            for arm in self.arms_of(member):
                yield self.unit(member, arm, seed)

    def unit(self, member: Member, arm: PlannedArm, seed: int) -> Unit:
        """An arm's folder and pictures."""
        config = self._config(member, arm, seed)
        key = training_key(self._parts(member, arm, config), config)
        folder = arm_folder(self.output_dir, member.subject_id, key)
        return Unit(member, arm, seed, config, folder, self.field.jobs(member, arm))

    def rung(self, unit: Unit, steps: int) -> Rung:
        """A unit's pictures at a number of steps."""
        bench = self.bench
        text = f"{bench.num_inference_steps} {self._scale} {bench.scheduler}"
        sampler = hashlib.sha256(text.encode()).hexdigest()[:6]
        return unit.folder.rung(steps, sampler, self.field.judges_key)

    def is_done(self, unit: Unit) -> bool:
        """All of a unit's pictures are scored, up to where its training broke down."""
        return not any(self.rung(unit, step).missing(unit.jobs) for step in _reachable(unit))

    @property
    def bench(self) -> BenchSettings:
        """Sampling, as WorldBench has it."""
        return BenchSettings(
            num_inference_steps=self.study.num_inference_steps,
            guidance_scale=self.guidance,
            num_class_images=self.study.num_class_images,
        )

    @property
    def _scale(self) -> float:
        return self.base.defaults.guidance_scale if self.guidance is None else self.guidance

    def _config(self, member: Member, arm: PlannedArm, seed: int) -> RunConfig | None:
        if arm.config is None:
            return None
        config = arm.config.model_copy(deep=True)
        config.base_model = self.base.name
        config.subject.class_word = self.field.class_word(member, arm) or member.class_name
        config.train.seed = seed
        config.train.max_train_steps = arm.rungs[-1]
        config.prior.num_class_images = self.study.num_class_images
        return resolved_config(config, self.base)

    def _parts(
        self, member: Member, arm: PlannedArm, config: RunConfig | None
    ) -> Mapping[str, Any]:
        if config is None:
            return {"base": self.base.hash, "bare": member.subject_id}
        parts: dict[str, Any] = {
            "base": self.base.hash,
            "prompt": self.field.training_prompt(member, arm),
            "photos": self.field.photo_parts(member, arm),
        }
        if config.prior.with_prior_preservation and config.prior.form == "images":
            parts["prior"] = [self.bench.num_class_images, self.bench.num_inference_steps]
        return parts

    # Training

    def _train_missing(self, members: Sequence[Member]) -> None:
        """LoRA arms together: a step of six takes 15 % less time a training than of three, one of
        24 a further 12 %.
        """
        units: dict[Path, Unit] = {}
        for unit in (unit for member in members for unit in self._units_of(member)):
            if unit.arm is not BARE and not self.is_done(unit):
                path = unit.folder.path
                units[path] = _joined(units[path], unit) if path in units else unit
        waiting = []
        for unit in units.values():
            if not self._read_known(unit):
                waiting.append(unit)
        together = [unit for unit in waiting if unit.arm.packs]
        for start in range(0, len(together), TOGETHER):
            self._train(together[start : start + TOGETHER], self._packed)
        for unit in waiting:
            if not unit.arm.packs:
                self._train([unit], self._alone)

    def _read_known(self, unit: Unit) -> bool:
        """Score pictures that are there, draw with weights that are kept; whether that was all."""
        done = True
        for step in _reachable(unit):
            rung, kept = self.rung(unit, step), unit.folder.weights(step)
            drawn = all(rung.picture(job).is_file() for job in rung.missing(unit.jobs))
            if drawn:
                self._read(unit, step, self.base)
            elif any(kept.glob("*.safetensors")):  # a kill may leave the folder without
                base = self.load()
                load_adapter(base, kept)
                self._read(unit, step, base)
            else:
                done = False
        return done

    def _packed(self, ladders: Sequence[Ladder]) -> Iterator[RungReached]:
        return train_together(self.base, ladders)

    def _alone(self, ladders: Sequence[Ladder]) -> Iterator[RungReached]:
        return train_alone(self.load(), ladders[0])

    def _train(
        self,
        units: Sequence[Unit],
        train: Callable[[Sequence[Ladder]], Iterator[RungReached]],
    ) -> None:
        logs: dict[str, list[Row]] = {unit.text: [] for unit in units}
        by_name = dict(zip(logs, units, strict=True))
        ladders = [self._ladder(name, unit, logs[name]) for name, unit in by_name.items()]
        ladders[0] = self._told(ladders[0], units)
        began, spent = time.process_time(), 0.0
        for reached in train(ladders):
            unit = by_name[reached.name]
            paused = time.process_time()
            if reached.error is not None:
                if not isinstance(reached.error, TrainingError):
                    raise reached.error  # a full disk is no outcome of the arm
                unit.folder.note(failed=first_line(reached.error), failed_at=reached.step)
                self.report(f"{unit.text}: broke down before {reached.step} steps")
            else:
                self._keep(unit, reached, logs[reached.name])
            spent += time.process_time() - paused
        each = (time.process_time() - began - spent) / len(units)
        for unit in units:
            unit.folder.note(train_s=each)
            unit.folder.drop_state()

    def _ladder(self, name: str, unit: Unit, log: list[Row]) -> Ladder:
        member, arm, config, base = unit.member, unit.arm, unit.config, self.base
        assert config is not None
        text = self.field.training_prompt(member, arm)
        photos = self.field.photos(member, arm, base.resolution)
        noun = config.subject.class_word
        place = self.output_dir / PRIORS
        with shared_work(place / f"{noun.replace(' ', '_')}.lock", lambda: None):
            prior = prior_latents(base, noun, config, self.bench, place)
        spec = TrainJobSpec(
            config=config,
            subject=encode_pictures(base, photos, [text] * len(photos)),
            prior=prior,
            subject_id=member.subject_id,
        )
        kept = self._kept_state(unit)
        if kept is not None:
            log += kept[1]
        batch = config.train.train_batch_size * config.train.gradient_accumulation_steps
        length = base.schedule.num_train_timesteps
        saved = [time.monotonic()]

        def note(metrics: StepMetrics, job: AnyJob) -> None:
            t = sample_timestep(config.train.seed, (metrics.step - 1) * batch, length)
            log.append({**asdict(metrics), "t": t if batch == 1 else None})
            if time.monotonic() - saved[0] >= SAVE_EVERY_S:
                unit.folder.save_state(job.state_dict(), log)
                saved[0] = time.monotonic()

        return Ladder(name, spec, arm.rungs, note, None if kept is None else kept[0])

    def _kept_state(self, unit: Unit) -> tuple[dict[str, Any], list[Row]] | None:
        """A training that was stopped, unless it is past a rung that is still to be read."""
        kept = unit.folder.load_state()
        if kept is None:
            return None
        reached = len(kept[1])
        missed = [step for step in unit.arm.rungs
                  if step < reached and self.rung(unit, step).missing(unit.jobs)]  # fmt: skip
        return None if missed or reached > unit.arm.rungs[-1] else kept

    def _told(self, ladder: Ladder, units: Sequence[Unit]) -> Ladder:
        """The ladder, telling now and then how far its engine is."""
        last = [time.monotonic()]

        def note(metrics: StepMetrics, job: AnyJob) -> None:
            ladder.on_step(metrics, job)
            if time.monotonic() - last[0] >= TELL_EVERY_S:
                last[0] = time.monotonic()
                names = dict.fromkeys(unit.member.subject_id for unit in units)
                self.report(
                    f"{', '.join(names)}: {len(units)} trainings, "
                    f"step {metrics.step} of {ladder.steps[-1]}"
                )

        return replace(ladder, on_step=note)

    def _keep(self, unit: Unit, reached: RungReached, log: Sequence[Row]) -> None:
        assert reached.base is not None and reached.job is not None
        unit.folder.write_log(log)  # first: with its weights a rung is not trained again
        if unit.arm.packs:
            reached.job.export(unit.folder.weights(reached.step))
        self._read(unit, reached.step, reached.base)

    # Pictures

    def _read(self, unit: Unit, step: int, base: Base) -> None:
        """Draw and score what is missing of a rung."""
        rung = self.rung(unit, step)
        missing = rung.missing(unit.jobs)
        if not missing:
            return
        began = time.process_time()
        to_draw = [job for job in missing if not rung.picture(job).is_file()]
        for start in range(0, len(to_draw), SCORED_AT_ONCE):
            chunk = to_draw[start : start + SCORED_AT_ONCE]
            rung.save(chunk, draw_jobs(base, chunk, self.bench))
        drawn = time.process_time()
        self._note_variety(unit, rung)  # first: with its rows a rung counts as read
        rung.add(self._rows(unit, rung, missing))
        unit.folder.note(
            what=unit.text,
            config=None if unit.config is None else unit.config.model_dump(mode="json"),
            draw_s=drawn - began,
            score_s=time.process_time() - drawn,
        )
        self.report(
            f"{unit.text}, {step} steps: {len(missing)} pictures in "
            f"{time.process_time() - began:.0f} CPU s"
        )

    def _rows(self, unit: Unit, rung: Rung, jobs: Sequence[Job]) -> list[Row]:
        images = rung.open(jobs)
        figures = self.field.score(unit.member, unit.arm, jobs, images)
        return [
            {
                "name": picture_name(job),
                "subject": unit.member.subject_id,
                "class": unit.member.class_name,
                "live": unit.member.live,
                "kind": job.request.kind,
                "asks": job.request.name,
                "prompt": job.request.prompt,
                **{
                    f"asked_{k}": getattr(job.request, k)
                    for k in ("state", "scene", "view", "style")
                },
                "index": job.index,
                "noise_seed": job.seed,
                "picture": str(rung.picture(job).relative_to(self.output_dir)),
                **own,
            }
            for job, own in zip(jobs, figures, strict=True)
        ]

    def _note_variety(self, unit: Unit, rung: Rung) -> None:
        """The variety of the class's pictures, which is of all of them together."""
        jobs = [job for job in unit.jobs if job.request.kind == "class"]
        if len(jobs) < 2:
            return
        value = self.field.variety(rung.open(jobs))
        if value is not None:
            known = dict(unit.folder.about.get("class_variety", {}))
            unit.folder.note(class_variety={**known, f"{rung.path.name} {len(jobs)}": value})

    # Results

    def rows(self) -> tuple[list[Row], list[str]]:
        """All rows of this part with their arms, and the units that are not done yet."""
        rows: list[Row] = []
        left = []
        for unit in self.units():
            if not self.is_done(unit):
                left.append(unit.text)
            if unit.arm is BARE:
                rows += self._arm_rows(unit, 0)
                continue
            rows += self._arm_rows(unit, unit.seed)
        return rows, left

    def _arm_rows(self, unit: Unit, seed: int) -> list[Row]:
        wanted = [picture_name(job) for job in unit.jobs]
        found: list[Row] = []
        for factor, step in zip(unit.arm.factors, unit.arm.rungs, strict=True):
            rung = self.rung(unit, step)
            known = rung.rows()
            shared = {"study": self.study.study, "host": unit.arm.host, "arm": unit.arm.name,
                      "rung": factor, "steps": step, "seed": seed}  # fmt: skip
            variety = unit.folder.about.get("class_variety", {})
            classes = sum(job.request.kind == "class" for job in unit.jobs)
            extra = {"class_variety": variety.get(f"{rung.path.name} {classes}")}
            found += [{**shared, **known[name], **extra} for name in wanted if name in known]
        return found

    def logs(self) -> list[Row]:
        """Figures of every training step that an arm is of, with their arms; another study may have
        trained it for longer.
        """
        found = []
        for unit in self.units():
            shared = {"host": unit.arm.host, "arm": unit.arm.name,
                      "subject": unit.member.subject_id, "seed": unit.seed}  # fmt: skip
            found += [{**shared, **row} for row in unit.folder.read_log()
                      if row["step"] <= unit.arm.rungs[-1]]  # fmt: skip
        return found

    def costs(self) -> list[Row]:
        """CPU seconds of every arm, averaged over subjects and seeds."""
        sums: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for unit in self.units():
            sums.setdefault((unit.arm.host, unit.arm.name), []).append(unit.folder.about)
        names = ("train_s", "draw_s", "score_s")
        return [
            {"host": host, "arm": arm,
             **{n: sum(a.get(n, 0.0) for a in known) / len(known) for n in names}}
            for (host, arm), known in sums.items()
        ]  # fmt: skip

    def failures(self) -> list[Row]:
        """Trainings that broke down."""
        return [
            {"host": unit.arm.host, "arm": unit.arm.name, "subject": unit.member.subject_id,
             "seed": unit.seed, "steps": about["failed_at"], "error": about["failed"]}
            for unit in self.units() if _failed(unit) and (about := unit.folder.about)
        ]  # fmt: skip


def _reachable(unit: Unit) -> list[int]:
    """The rungs before the one at which its training broke down; all, where it did not."""
    at = unit.folder.about.get("failed_at")
    return [step for step in unit.arm.rungs if at is None or step < int(at)]


def _failed(unit: Unit) -> bool:
    """Whether its training broke down, at no later step than it is read at."""
    return _reachable(unit) != list(unit.arm.rungs)


def _joined(one: Unit, two: Unit) -> Unit:
    """Two arms that are one training, to be read at the steps of both: a sweep may find the fixed
    setting with other steps.
    """
    longer = max(one, two, key=lambda unit: unit.arm.rungs[-1])
    rungs = tuple(sorted({*one.arm.rungs, *two.arm.rungs}))
    return replace(longer, arm=replace(longer.arm, rungs=rungs, factors=()))


def first_pictures(
    run: StudyRun, member: Member, arm: PlannedArm, seed: int
) -> dict[str, tuple[Job, Image.Image]]:
    """The first picture of every prompt at the last rung, where drawn, by place in the list."""
    unit = run.unit(member, arm, seed)
    rung = run.rung(unit, arm.rungs[-1])
    found = {}
    for job in unit.jobs:
        if job.index == 0 and rung.picture(job).is_file():
            found[f"{job.request.kind} {job.seed}"] = (job, rung.open([job])[0])
    return found
