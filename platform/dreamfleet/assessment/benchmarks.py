"""A recipe trained on a benchmark's subjects, and the adapters scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from dreamfleet.assessment.common import (
    CLASS_IMAGES,
    EMBEDDED,
    WORLD_ONLY,
    Assessment,
    AssessmentResult,
    JudgeNames,
    adapter_arm,
    checkpoints_of,
    local_output,
    mean_history,
    units_of,
)
from dreamfleet.config import RunConfig
from dreamfleet.data.names import safe_id
from dreamfleet.errors import BadInputError, TrainingError
from dreamfleet.evaluation.drawing import BARE, Arm, Unit
from dreamfleet.evaluation.judges import JudgeSpec, Question
from dreamfleet.evaluation.protocols import (
    Ask,
    asks_for,
    dreambench_subjects,
    images_per_prompt,
    prompts_hash,
)
from dreamfleet.evaluation.references import reference_photos
from dreamfleet.evaluation.scores import summarise_scores, summarise_world
from dreamfleet.evaluation.worldbench.frozen import states_text
from dreamfleet.personalization import personalize
from dreamfleet.personalization.command import sigterm_as_interrupt
from dreamfleet.personalization.planning import with_pinned_base
from dreamfleet.runtime.locks import exclusive_run
from dreamfleet.runtime.progress import Progress, SilentProgress
from dreamfleet.runtime.storage import Folder
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import SUBJECT_COUNTS, Subject

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.runtime.session import RaySession

FINAL_SPLITS = ("C", "R")  # read by oracle B, which nothing is ever tuned to
HELD_BACK = (
    "Subjects of split {split} are held back (docs/protocol.md, section 1): whoever has looked at "
    "them cannot confirm anything on them afterwards. Try things on D; a confirmation is run by "
    "pipelines/run_study.py, which checks first what has to be settled before."
)


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to run.

    Attributes:
        benchmark: worldbench or dreambench.
        config: the recipe, with gaps.
        split: of WorldBench: D, C, T or R.
        num_subjects: None: all of the split (or all that are there).
        num_seeds: training seeds: the recipe's and those after it.
        num_images: pictures per prompt; None: the protocol's.
        data_dir: DreamBench's photographs.
        one_shot: DreamBench: train on 00.jpg alone, as SuDe does, or on all photos.
        arm: the recipe's name in results.
        own_num_workers: the user's number of engines; None: one per core or GPU.
        scored_states: states that the base reaches, by class; None: all count.
    """

    benchmark: Literal["worldbench", "dreambench"]
    config: RunConfig
    split: str = "D"
    num_subjects: int | None = None
    num_seeds: int = 1
    num_images: int | None = None
    data_dir: str | None = None
    one_shot: bool = False
    arm: str = "recipe"
    own_num_workers: int | None = None
    scored_states: Mapping[str, Sequence[str]] | None = None
    judges: JudgeNames = JudgeNames()

    def with_base_report(self, path: str | None) -> BenchmarkPlan:
        """With the scored states of a measured base (docs/protocol.md, step 2), and its guidance
        where the recipe names none.

        Raises:
            BadInputError: not such a file, or measured with another base, world, oracle or sampler.
        """
        if path is None:
            return self
        if self.benchmark != "worldbench":
            raise BadInputError(_foreign("--base-report", self.benchmark))
        from dreamfleet.bases import inspect_base
        from dreamfleet.evaluation.worldbench import read_gate
        from dreamfleet.evaluation.worldbench.frozen import check_frozen, frozen_now

        gate, sampling = read_gate(Path(path)), self.config.sampling
        base_hash = inspect_base(with_pinned_base(self.config).base_model).hash
        steps, scheduler = sampling.num_inference_steps, sampling.scheduler
        now = frozen_now(base_hash, steps, scheduler, self.judges.evaluators)
        check_frozen(gate.get("frozen", {}), now, path)
        config = self.config.model_copy(deep=True)
        if sampling.guidance_scale not in (None, gate["guidance"]):
            raise BadInputError(
                f"sampling.guidance_scale = {sampling.guidance_scale:g}: {path} says which states "
                f"count at {gate['guidance']:g}; leave it out, or measure the base at this scale"
            )
        config.sampling.guidance_scale = gate["guidance"]
        return replace(self, config=config, scored_states=gate["scored_states"])


@dataclass(frozen=True)
class _Member:
    """One subject of a benchmark."""

    subject_id: str
    class_word: str
    photos: tuple[str, ...]  # to train on
    references: tuple[str, ...]  # to compare with
    individual: tuple[Subject, ImageSpec] | None = None


def benchmark(plan: BenchmarkPlan, progress: Progress | None = None) -> AssessmentResult:
    """Train the recipe on every subject and seed, and score adapters and bare base. Resumable: the
    same command goes on where it stopped.

    Raises:
        BadInputError: something given cannot be used; evaluators that a benchmark rests on are
            missing.
        TrainingError: no subject could be trained.
    """
    return _Benchmark(plan, progress or SilentProgress()).run()


class _Benchmark:
    def __init__(self, plan: BenchmarkPlan, progress: Progress) -> None:
        from dreamfleet.bases import inspect_base

        _check_flags(plan)
        # A recipe in a file base.yaml must not be taken for the bare base.
        arm = plan.arm if plan.arm != BARE else f"{BARE} recipe"
        plan = replace(plan, config=with_pinned_base(plan.config), arm=arm)
        self.plan, self.progress = plan, progress
        self.is_world = plan.benchmark == "worldbench"
        self.output = local_output(_with_output(plan))
        self.files: BaseFiles = inspect_base(plan.config.base_model)
        self.judges = self._judge_spec()
        self.missing: list[str] = []
        self.failed: dict[str, str] = {}
        if self.is_world:
            _check_world(plan, self.judges)

    def run(self) -> AssessmentResult:
        from dreamfleet.runtime.session import ray_session

        self.output.mkdir(parents=True, exist_ok=True)
        with sigterm_as_interrupt(), exclusive_run(self.output):
            for line in self._warnings():
                self.progress.warn(line)
            members = self._members()
            with ray_session(self.plan.config.cluster) as session:
                trained = [self._train(members, k, session) for k in range(self.plan.num_seeds)]
                return self._score(members, trained, session)

    def _warnings(self) -> tuple[str, ...]:
        """What to know before training, and before reading the figures."""
        plan = self.plan
        if self.is_world:
            return () if plan.split == "D" else (HELD_BACK.format(split=plan.split),)
        return (WORLD_ONLY,) if plan.config.base_model == EMBEDDED else ()

    def _judge_spec(self) -> JudgeSpec:
        names = self.plan.judges
        if not self.is_world:
            return names.spec(self.plan.config.base_model)
        names.check(world=True)
        oracle = "B" if self.plan.split in FINAL_SPLITS else "A"
        return JudgeSpec(world=True, oracle=oracle, evaluators=names.evaluators, required=True)

    def _members(self) -> list[_Member]:
        if self.is_world:
            return _world_members(self.plan, self.files.resolution, self.output)
        if not self.plan.data_dir:
            raise BadInputError(
                "benchmark dreambench: where are the photographs? give --data-dir, the folder "
                "`dataset` of a copy of github.com/google/dreambooth"
            )
        found, self.missing = dreambench_subjects(self.plan.data_dir, self.plan.num_subjects)
        members = []
        for entry in found:
            photos = tuple(str(path.absolute()) for path in entry.photos)
            used = photos[:1] if self.plan.one_shot else photos
            members.append(_Member(entry.subject_id, entry.class_word, used, photos))
        return members

    def _train(
        self, members: Sequence[_Member], index: int, session: RaySession
    ) -> dict[str, tuple[Arm, RunConfig]]:
        """Adapters by subject; a subject that fails is noted, and the others go on."""
        from dreamfleet.bases import resolved_config

        config = self._training_config(members, index, session)
        begun = Path(str(config.output_dir)).is_dir()
        result = personalize(config, resume=begun, progress=self.progress)
        arms: dict[str, tuple[Arm, RunConfig]] = {}
        for member, subject in zip(members, result.subjects, strict=True):
            if subject.status != "finished":
                self.failed[member.subject_id] = subject.message or subject.status
                continue
            own = config.model_copy(deep=True)
            own.subject.class_word = member.class_word
            complete = resolved_config(own, self.files)
            arm = adapter_arm(subject.output_dir, self.plan.arm, subject.steps, config.train.seed)
            arms[member.subject_id] = arm, complete
        if not arms:
            raise TrainingError(f"no subject was trained: {next(iter(self.failed.values()))}")
        return arms

    def _training_config(
        self, members: Sequence[_Member], index: int, session: RaySession
    ) -> RunConfig:
        listed = self.output / "subjects.yaml"
        rows = [
            {"images": list(m.photos), "class_word": m.class_word, "id": m.subject_id}
            for m in members
        ]
        listed.write_text(yaml.safe_dump(rows, sort_keys=False), encoding="utf-8")
        config = self.plan.config.model_copy(deep=True)
        config.subject.images, config.subject.id = [str(listed)], None
        config.train.seed += index
        seed = f"seed-{config.train.seed}"
        place = self.output / "adapters" / seed
        if len(members) == 1:  # it lies where it would lie among several
            place /= safe_id(members[0].subject_id)
        config.output_dir = str(place)
        if config.cluster.storage_path:  # subjects have the same names in every benchmark and seed
            storage = Folder(config.cluster.storage_path)
            config.cluster.storage_path = storage.child(self.output.name).child(seed).location
        config.sampling.num_validation_images = 0  # pictures are drawn once, by the benchmark
        config.tracking.register_adapter = False
        config.cluster.parallel = "subjects"  # one subject alone must not be spread over workers
        places = max(1, int(session.num_gpus or session.num_cpus))
        config.cluster.num_workers = self.plan.own_num_workers or min(places, len(members))
        return config

    def _score(
        self,
        members: Sequence[_Member],
        trained: Sequence[Mapping[str, tuple[Arm, RunConfig]]],
        session: RaySession,
    ) -> AssessmentResult:
        config = next(own for arms in trained for _, own in arms.values())
        usable = [m for m in members if all(m.subject_id in arms for arms in trained)]
        if not usable:
            raise TrainingError("no subject was trained with every seed")
        assessment = self._assessment(usable, trained, config)
        units = [unit for member in usable for unit in self._units(member, trained)]
        drawn = assessment.draw(units, session, self.progress)
        summary = (
            summarise_world(drawn.rows, self.plan.scored_states)
            if self.is_world
            else summarise_scores(drawn.rows)
        )
        return assessment.publish(drawn, summary, self.progress)

    def _units(
        self, member: _Member, trained: Sequence[Mapping[str, tuple[Arm, RunConfig]]]
    ) -> list[Unit]:
        units: list[Unit] = []
        own = [arms[member.subject_id] for arms in trained]
        for arm, config in [(Arm(), own[0][1]), *own]:
            units += (
                _world_units(arm, config, member, self._count())
                if self.is_world
                else self._dreambench_units(arm, config, member)
            )
        return units

    def _dreambench_units(self, arm: Arm, config: RunConfig, member: _Member) -> list[Unit]:
        asks = [*asks_for("dreambench", member.class_word), Ask("a photo of a {class}", "class")]
        who = member.subject_id
        return units_of(arm, asks, config, who, self._count(), ["dreambench", who])

    def _count(self) -> int:
        return self.plan.num_images or images_per_prompt(self.plan.benchmark)

    def _assessment(
        self,
        members: Sequence[_Member],
        trained: Sequence[Mapping[str, tuple[Arm, RunConfig]]],
        config: RunConfig,
    ) -> Assessment:
        plan = self.plan
        checkpoints = [
            checkpoints_of(Path(arm.adapter), own, subject_id)
            for arms in trained
            for subject_id, (arm, own) in arms.items()
        ]
        notes = [f"{who}: not trained ({why})" for who, why in self.failed.items()]
        if self.missing:
            notes.append(f"Not in the data folder: {', '.join(self.missing)}.")
        if not self.is_world:
            trained_on = "00.jpg alone" if plan.one_shot else "all photos"
            notes.append(f"Trained on {trained_on}; references are all photos of the subject.")
        elif plan.scored_states is None:
            notes.append("All states count: scored states were not given (--base-report).")
        title = f"WorldBench, split {plan.split}" if self.is_world else "DreamBench"
        several = "s" if len(members) > 1 else ""
        return Assessment(
            config=config,
            files=self.files,
            output_dir=self.output,
            judges=self.judges,
            references={m.subject_id: reference_photos(m.references, config.data) for m in members},
            name=f"benchmark {plan.benchmark} {plan.arm}",
            kind="benchmark",
            heading=title,
            kicker=f"benchmark · {plan.arm}",
            lead=f"The recipe {plan.arm}, trained on {len(members)} subject{several} with "
            f"{plan.num_seeds} training seed{'s' if plan.num_seeds > 1 else ''} each.",
            warnings=self._warnings(),
            notes=tuple(notes),
            facts={
                "prompts": prompts_hash(plan.benchmark)[:16],
                "pictures per prompt": str(self._count()),
                "training": f"{config.train.mode}, {config.train.max_train_steps} steps, "
                f"learning rate {config.train.learning_rate:g}",
                "SuDe": f"weight {config.sude.weight:g}",
                "oracle": self.judges.oracle or "none",
                **({"scored states": states_text(plan.scored_states)} if self.is_world else {}),
            },
            history=mean_history(checkpoints),
        )


def _with_output(plan: BenchmarkPlan) -> RunConfig:
    config = plan.config.model_copy()
    config.output_dir = config.output_dir or f"runs/{plan.benchmark}-{plan.arm}"
    return config


def _check_flags(plan: BenchmarkPlan) -> None:
    """Refuse what only the other benchmark reads: it would be ignored in silence."""
    foreign = (
        {"--data-dir": plan.data_dir, "--one-shot": plan.one_shot}
        if plan.benchmark == "worldbench"
        else {"--split": plan.split != BenchmarkPlan.split}
    )
    for flag, given in foreign.items():
        if given:
            raise BadInputError(_foreign(flag, plan.benchmark))


def _foreign(flag: str, benchmark: str) -> str:
    other = "dreambench" if benchmark == "worldbench" else "worldbench"
    return f"{flag}: belongs to `benchmark {other}`, not to {benchmark}; leave it out"


def _check_world(plan: BenchmarkPlan, judges: JudgeSpec) -> None:
    """Refuse before training what could not be scored after it.

    Raises:
        BadInputError: no such split, more subjects than it has, or a missing evaluator.
    """
    from dreamfleet.evaluation.judges import Judges

    if plan.split not in SUBJECT_COUNTS:
        raise BadInputError(
            f"--split {plan.split}: expected one of {', '.join(SUBJECT_COUNTS)} "
            "(development, confirmation, tuning, reserve)"
        )
    most = SUBJECT_COUNTS[plan.split]
    if (plan.num_subjects or 1) > most:
        raise BadInputError(
            f"--subjects {plan.num_subjects}: split {plan.split} has {most} subjects; give fewer"
        )
    Judges(judges, {})


def _world_members(plan: BenchmarkPlan, side_px: int, output: Path) -> list[_Member]:
    """The split's subjects, and their photos as files below `output/photos`."""
    from dreamfleet.evaluation.worldbench.ladder import photo_image
    from dreamfleet.world.splits import benchmark_photo, subjects

    members = []
    count = plan.num_subjects or SUBJECT_COUNTS[plan.split]
    for subject in subjects(plan.split)[:count]:
        photo = benchmark_photo(subject)
        path = output / "photos" / subject.subject_id / "00.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo_image(photo, side_px).save(path)
        place = (str(path.absolute()),)
        individual = (subject, photo)
        members.append(_Member(subject.subject_id, subject.class_name, place, place, individual))
    return members


def _world_units(arm: Arm, config: RunConfig, member: _Member, count: int) -> list[Unit]:
    """Every prompt of WorldBench for one subject; noise as in the ladder of the hosts."""
    from dreamfleet.evaluation.worldbench.plan import picture_seed, requests_for

    assert member.individual is not None
    subject, photo = member.individual
    units = []
    for request in requests_for(subject, photo, config.subject.token):
        pictures = CLASS_IMAGES if request.kind == "class" else count
        question = Question(
            subject_id=subject.subject_id,
            class_word=subject.class_name,
            token=config.subject.token,
            prompt=request.prompt,
            kind=request.kind,
            state=request.state,
            scene=request.scene,
            individual=(subject, photo, request),
        )
        seeds = tuple(picture_seed(subject, request, i) for i in range(pictures))
        columns = {"photo_state": photo.state, "photo_scene": photo.scene}
        units.append(Unit(arm, question, seeds, columns))
    return units
