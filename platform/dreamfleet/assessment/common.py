"""What evaluating one adapter and running a benchmark have in common."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.adapters.files import adapter_kind, adapter_path
from dreamfleet.config import RunConfig, dreamfleet_home
from dreamfleet.data.photos import from_png
from dreamfleet.data.subjects import fill_prompt
from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.evaluation.cards import ADAPTER_JSON
from dreamfleet.evaluation.drawing import Arm, DrawingPlan, Drawn, Unit, draw_and_judge
from dreamfleet.evaluation.evaluation_report import (
    EvaluationPage,
    base_entry,
    main_arm,
    write_evaluation_report,
)
from dreamfleet.evaluation.judges import JudgeSpec, Question
from dreamfleet.evaluation.metrics import BLIP_NAME, CLIP_NAME, DINO_NAME
from dreamfleet.evaluation.preference.pairs import write_references
from dreamfleet.evaluation.protocols import Ask
from dreamfleet.evaluation.report import REPORT
from dreamfleet.evaluation.results import RESULTS, SUMMARY, write_rows, write_summary
from dreamfleet.evaluation.scores import headline, title
from dreamfleet.evaluation.worldbench.frozen import sampler_text, world_hash
from dreamfleet.personalization.planning import output_root
from dreamfleet.runtime.devices import check_local_device
from dreamfleet.runtime.jobs import check_job_places
from dreamfleet.runtime.storage import Folder
from dreamfleet.seeding import key_to_int
from dreamfleet.training.checkpoints import CheckpointFolder, read_json_lines, step_name
from dreamfleet.training.export import ADAPTER
from dreamfleet.training.output import OutputFolder
from dreamfleet.training.worker import HISTORY

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.runtime.progress import Progress
    from dreamfleet.runtime.session import RaySession

SEED_LIMIT = 2**31
CLASS_IMAGES = 8  # "photo of a {class}", for drift and variety of the class
EMBEDDED = "embedded"
WORLD_ONLY = (
    "The embedded base knows a small drawn world and nothing of photographs: these figures show "
    "that the pipeline runs, and say nothing about the method. Name a real base (--base-model) "
    "for scores that mean something."
)


def local_output(config: RunConfig) -> Path:
    """The folder that results are written into.

    Raises:
        BadInputError: it is named by a URI, or holds an adapter; or a GPU is asked for that this
            machine has not.
        ConfigError: it is relative inside a Ray job.
    """
    check_job_places(config)
    check_local_device(config)
    place = output_root(config, [])
    if place.local is None:
        raise BadInputError(
            f"output_dir = {place.location!r}: evaluations and benchmarks grow in a folder, "
            "so that they can go on after a stop; give a local or shared one, and copy it when done"
        )
    if (place.local / ADAPTER_JSON).is_file():
        raise BadInputError(
            f"output_dir = {str(place.local)!r}: an adapter lies there, whose report.html would be "
            "overwritten; give another --output-dir"
        )
    return place.local


@dataclass(frozen=True)
class JudgeNames:
    """Checkpoints that judge pictures of real bases (hub ids or folders; empty: left out), and a
    folder of other evaluators of the world than the shipped ones.
    """

    clip: str = CLIP_NAME
    dino: str = DINO_NAME
    blip: str = BLIP_NAME
    evaluators: str | None = None

    def spec(self, base_model: str) -> JudgeSpec:
        """The judges that fit a base: the world's own for the embedded one.

        Raises:
            BadInputError: judges of the other kind are named.
        """
        self.check(base_model == EMBEDDED)
        if base_model == EMBEDDED:
            return JudgeSpec(world=True, oracle="A", evaluators=self.evaluators)
        return JudgeSpec(world=False, clip=self.clip, dino=self.dino, blip=self.blip)

    def check(self, world: bool) -> None:
        """Refuse what would be ignored in silence.

        Args:
            world: the drawn world's evaluators judge.

        Raises:
            BadInputError: judges of the other kind are named.
        """
        usual = JudgeNames()
        names = ("clip", "dino", "blip") if world else ("evaluators",)
        given = [f"--{name}" for name in names if getattr(self, name) != getattr(usual, name)]
        if given:
            here = "the drawn world, whose own evaluators judge (--evaluators)"
            there = "a real base, which public checkpoints judge (--clip, --dino, --blip)"
            raise BadInputError(
                f"{', '.join(given)}: not used for {here if world else there}; leave it out"
            )


@dataclass(frozen=True)
class AssessmentResult:
    """What an evaluation left."""

    output_dir: Path
    summary: Mapping[str, Any]
    run_id: str | None = None

    @property
    def report(self) -> Path:
        return self.output_dir / REPORT

    def lines(self) -> Iterator[str]:
        """Figures and places, for the command line."""
        arm, base = main_arm(self.summary), base_entry(self.summary)
        for name in headline(list(arm["means"])):
            value = arm["means"][name]
            bare = base["means"].get(name) if base else None
            beside = "" if bare is None or bare != bare else f"  (bare base {bare:.3f})"
            if value == value:
                yield f"  {title(name):<44} {value:>7.3f}{beside}"
        yield f"  report   {self.report}"
        yield f"  figures  {self.output_dir / SUMMARY}, {self.output_dir / RESULTS}"
        if self.run_id:
            yield f"  MLflow   run {self.run_id}"


@dataclass(frozen=True)
class Assessment:
    """One evaluation on its way to files and records.

    Attributes:
        config: complete; its sampling, device and tracking hold.
        name: of the MLflow run; kind: its tag `dreamfleet.kind`.
        heading, kicker, lead, warnings, notes: of the report.
        facts: further lines of settings for report and record.
    """

    config: RunConfig
    files: BaseFiles
    output_dir: Path
    judges: JudgeSpec
    references: Mapping[str, tuple[bytes, ...]]
    name: str
    kind: str
    heading: str
    kicker: str
    lead: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()

    def draw(self, units: Sequence[Unit], session: RaySession | None, progress: Progress) -> Drawn:
        """All pictures with their scores."""
        from dreamfleet.runtime.devices import choose_device

        sampling = self.config.sampling
        plan = DrawingPlan(
            base_model=self.config.base_model,
            base_hash=self.files.hash,
            judges=self.judges,
            references=self.references,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            scheduler=sampling.scheduler,
            device=choose_device(self.config, session),
        )
        return draw_and_judge(units, plan, self.output_dir, session, progress)

    def publish(
        self, drawn: Drawn, summary: dict[str, Any], progress: Progress
    ) -> AssessmentResult:
        """Write all files and record the run."""
        notes = [*self.notes, *(f"{n} is left out: {why}" for n, why in drawn.left_out.items())]
        notes += [f"{where or 'bare base'}: {why}" for where, why in drawn.failures.items()]
        notes += [
            f"{who}: left out of all figures, for not every arm has its pictures."
            for who in drawn.dropped
        ]
        settings = {**self.facts, **self._settings(drawn)}
        complete = {"protocol": self.kicker, **summary, "settings": settings,
                    "individuals": self._individuals(drawn), "warnings": list(self.warnings),
                    "notes": notes}  # fmt: skip
        write_rows(self.output_dir / RESULTS, drawn.rows)
        write_summary(self.output_dir / SUMMARY, complete)
        write_references(self.output_dir, self.references)
        write_evaluation_report(
            EvaluationPage(
                heading=self.heading,
                kicker=self.kicker,
                lead=self.lead,
                summary=summary,
                rows=drawn.rows,
                folder=self.output_dir,
                photos=self.references,
                warnings=self.warnings,
                notes=notes,
                settings=settings,
                history=self.history,
            )
        )
        for line in self.warnings:
            progress.warn(line)
        for line in notes:
            progress.info(line)
        return AssessmentResult(
            self.output_dir, complete, self._record(complete, settings, progress)
        )

    def _settings(self, drawn: Drawn) -> dict[str, str]:
        own = self.config.sampling
        return {
            "base model": self.config.base_model,
            "base hash": self.files.hash[:16],
            "sampler": sampler_text(own.scheduler, own.num_inference_steps, own.guidance_scale),
            "pictures": str(len(drawn.rows)),
            "judges": self.judges.fingerprint()[:16],
            **({"world": world_hash()[:16]} if self.judges.world else {}),
        }

    def _individuals(self, drawn: Drawn) -> dict[str, str]:
        """By subject a hash of its references, class word and token: names alone, such as `00` of
        every `00.png`, may be of different ones.
        """
        token = self.config.subject.token
        return {
            subject: _individual(self.references.get(subject, ()), class_word, token)
            for subject, class_word in {r["subject"]: r["class"] for r in drawn.rows}.items()
        }

    def _record(
        self, summary: Mapping[str, Any], settings: Mapping[str, str], progress: Progress
    ) -> str | None:
        """An MLflow run with the means of every arm and the files."""
        from dreamfleet.tracking import open_tracker

        spool = dreamfleet_home() / "spool"
        tracker = open_tracker(self.config.tracking, spool, progress.warn)
        tags = {"dreamfleet.kind": self.kind, "dreamfleet.output_dir": str(self.output_dir)}
        run = tracker.start_run(self.name, dict(settings), tags)
        for entry in summary["table"]:
            prefix = "" if entry is main_arm(summary) else f"{entry['host']}."
            means = {f"{prefix}{n}": v for n, v in entry["means"].items() if v == v}
            run.log_metrics(means, int(entry["steps"]))
        for name in (SUMMARY, REPORT, RESULTS):
            run.log_artifact(self.output_dir / name)
        run_id = run.wait_for_id()
        run.finish()
        tracker.close()
        return run_id


def _individual(photos: Sequence[bytes], class_word: str, token: str) -> str:
    # Of pixels, whatever their order: another machine may pack PNGs otherwise, and names change.
    pixels = sorted(hashlib.sha256(from_png(photo).tobytes()).hexdigest() for photo in photos)
    return hashlib.sha256(repr((pixels, class_word, token)).encode()).hexdigest()[:16]


def adapter_arm(folder: Path, host: str, steps: int, seed: int) -> Arm:
    """An adapter's folder as an arm; its hash is that of its weights.

    Raises:
        AdapterFileError: no adapter in it.
    """
    if folder.is_dir() and adapter_kind(folder) == "full":
        from dreamfleet.bases import inspect_base

        digest = inspect_base(str(folder)).hash
    else:
        digest = hashlib.sha256(adapter_path(folder).read_bytes()).hexdigest()
    return Arm(host, str(folder.absolute()), digest, steps, seed)


def units_of(
    arm: Arm,
    asks: Sequence[Ask],
    config: RunConfig,
    subject_id: str,
    count: int,
    noise: Sequence[str],
) -> list[Unit]:
    """Every ask of a subject for one arm. Noise depends on `noise`, prompt and number only: it is
    the same for all arms, adapters and training seeds.

    Args:
        noise: the protocol; of a benchmark the subject, too: it is the unit of every interval, and
            subjects of a class that share noise are not independent (docs/protocol.md, section 2).
    """
    subject = config.subject
    units = []
    for ask in asks:
        prompt = fill_prompt(ask.prompt, config)
        pictures = CLASS_IMAGES if ask.kind == "class" else count
        seeds = tuple(
            key_to_int("evaluation", *noise, prompt, i) % SEED_LIMIT for i in range(pictures)
        )
        question = Question(
            subject_id=subject_id,
            class_word=subject.class_word.strip().lower(),
            token=subject.token,
            prompt=prompt,
            kind=ask.kind,
            state=ask.state,
            scene=ask.scene,
        )
        units.append(Unit(arm, question, seeds, {"asks": ask.name}))
    return units


def checkpoints_of(adapter: Path, config: RunConfig, subject_id: str) -> Folder:
    """Where the training of the adapter in folder `adapter` kept its checkpoints."""
    return OutputFolder.of(
        Folder(str(adapter)), config.cluster.storage_path, subject_id
    ).checkpoints


def mean_history(checkpoints: Sequence[Folder]) -> list[dict[str, float]]:
    """Training figures by step, averaged over runs; empty where none are at hand.

    Args:
        checkpoints: each run's folder of checkpoints.
    """
    sums: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in checkpoints:
        for row in _history(folder):
            for name, value in row.items():
                if isinstance(value, int | float):
                    sums[int(row.get("step", 0))][name].append(float(value))
    return [
        {name: sum(values) / len(values) for name, values in figures.items()}
        for _, figures in sorted(sums.items())
    ]


def _history(checkpoints: Folder) -> list[dict[str, Any]]:
    """Of the finished adapter; else of the newest checkpoint, for a whole model's copy is gone."""
    try:
        if checkpoints.child(ADAPTER).exists(HISTORY):
            return read_json_lines(checkpoints.child(ADAPTER).read(HISTORY))
        newest = CheckpointFolder(checkpoints).newest_step()
        if newest is None:
            return []
        return read_json_lines(checkpoints.child(step_name(newest)).read(HISTORY))
    except (OSError, ValueError, DreamfleetError):
        return []  # curves are an extra: storage out of reach must not cost the figures
