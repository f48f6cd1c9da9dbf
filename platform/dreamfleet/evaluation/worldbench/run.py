"""Run WorldBench: draw each subject with the bare base, then train each host, drawing at each rung.
LoRA hosts train together on one engine, with the weights that each would have alone.

Resumable per (subject, host): a finished pair is one JSON file below `rows/`, written last; its
pictures lie below `pictures/`. The same output folder refuses other settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dreamfleet.bases import Base, load_base
from dreamfleet.errors import ResumeError, TrainingError, first_line
from dreamfleet.evaluation.metrics.backbones import WorldIdentityBackbone
from dreamfleet.evaluation.metrics.div import EncoderDistance, div
from dreamfleet.evaluation.metrics.pres import pres
from dreamfleet.evaluation.metrics.score import Score
from dreamfleet.evaluation.protocols import prompts_hash
from dreamfleet.evaluation.results import write_json
from dreamfleet.evaluation.world_metrics import WorldScorer, selection_fidelity
from dreamfleet.evaluation.worldbench.frozen import world_hash
from dreamfleet.evaluation.worldbench.ladder import (
    Ladder,
    draw_jobs,
    host_config,
    ladder_of,
    photo_image,
    prior_latents,
    train_alone,
    train_together,
)
from dreamfleet.evaluation.worldbench.plan import BASE_HOST, BenchSettings, Host, Job, jobs_for
from dreamfleet.evaluation.worldbench.summary import DIVERSITY, SELECTION, VARIETY
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import Subject, benchmark_photo

Report = Callable[[str], None]
ROWS, PICTURES, PRIORS = "rows", "pictures", "priors"
PAIRS_AT_ONCE = 8  # LoRA hosts that share each step's passes


@dataclass(eq=False)
class _Pair:
    """A subject and a host, and what its rungs have shown so far."""

    subject: Subject
    photo: ImageSpec
    host: Host | None  # None: the bare base
    rows: list[dict[str, Any]] = field(default_factory=list)
    rungs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The host's."""
        return BASE_HOST if self.host is None else self.host.name

    @property
    def label(self) -> str:
        """Both names."""
        return f"{self.subject.subject_id} {self.name}"


@dataclass
class WorldBench:
    """One benchmark over subjects and hosts.

    Attributes:
        base_name: as for `load_base`.
        hosts: what is trained; the bare base always comes first.
        settings: subjects, steps, sampling.
        scorer: oracle and identity encoder.
        evaluators: what they are (name and weights), part of the fingerprint.
        output_dir: where everything is written.
        device: cpu or cuda.
        report: called with one line per finished rung.
    """

    base_name: str
    hosts: Sequence[Host]
    settings: BenchSettings
    scorer: WorldScorer
    evaluators: str
    output_dir: Path
    device: str = "cpu"
    report: Report = print

    def run(self) -> list[str]:
        """Do what is not done yet; a training that breaks down costs no other one.

        Returns:
            The trainings that broke down, and why; they have no rows.

        Raises:
            ResumeError: the folder holds results of other settings.
        """
        bare = load_base(self.base_name, device=self.device)
        pairs = [
            _Pair(subject, benchmark_photo(subject), host)
            for subject in self.settings.subjects()
            for host in (None, *self.hosts)
        ]
        self._check_others()
        todo = [pair for pair in pairs if not self._is_done(pair, bare)]
        together = [pair for pair in todo if pair.host and pair.host.config.train.mode == "lora"]
        for pair in todo:
            if pair.host is None:
                self._read(pair, 0, bare)
                self._finish(pair, bare)
        broken = []
        for start in range(0, len(together), PAIRS_AT_ONCE):
            broken += self._run_pairs(together[start : start + PAIRS_AT_ONCE], bare)
        for pair in todo:
            if pair.host is not None and pair not in together:
                broken += self._run_pairs([pair], bare)
        return broken

    @property
    def _training(self) -> dict[str, int]:
        """What all hosts of a folder have in common; the summary says it once."""
        names = ("training_seed", "num_class_images")
        return {name: getattr(self.settings, name) for name in names}

    def _check_others(self) -> None:
        """Hosts that an earlier command has trained stand in the same table."""
        for subject in self.settings.subjects():
            for path in sorted((self.output_dir / ROWS / subject.subject_id).glob("*.json")):
                was = json.loads(path.read_text(encoding="utf-8")).get("training", self._training)
                if was != self._training:
                    raise ResumeError(
                        f"{path}: trained with {was}, and now {self._training} is asked; go on "
                        "with those, or give another output folder"
                    )

    def rows_path(self, subject: Subject, host_name: str) -> Path:
        """Where a finished pair's results are."""
        return self.output_dir / ROWS / subject.subject_id / f"{host_name}.json"

    def _is_done(self, pair: _Pair, bare: Base) -> bool:
        path = self.rows_path(pair.subject, pair.name)
        if not path.is_file():
            return False
        _check_fingerprint(path, self._fingerprint(pair.subject, pair.host, bare))
        self.report(f"{pair.label}: done before")
        return True

    def _run_pairs(self, pairs: Sequence[_Pair], bare: Base) -> list[str]:
        """Train and read these: LoRA hosts of any subjects in one batch on the bare base, or a
        single fully fine-tuned one on a base of its own. Returns those that broke down.
        """
        broken = []
        ladders = {pair.label: self._ladder(pair, bare) for pair in pairs}
        by_label = {pair.label: pair for pair in pairs}
        if ladders[pairs[0].label].spec.config.train.mode == "lora":
            reached_rungs = train_together(bare, list(ladders.values()))
        else:
            fresh = load_base(self.base_name, device=self.device)
            reached_rungs = train_alone(fresh, ladders[pairs[0].label])
        for reached in reached_rungs:
            if reached.error is not None:
                if not isinstance(reached.error, TrainingError):
                    raise reached.error  # a full disk is no outcome of the host
                reason = first_line(reached.error)
                broken.append(f"{reached.name}: broke down before {reached.step} steps ({reason})")
                self.report(broken[-1])
                continue
            assert reached.base is not None
            pair = by_label[reached.name]
            self._read(pair, reached.step, reached.base)
            if reached.step == self.settings.steps[-1]:
                self._finish(pair, bare)
        return broken

    def _read(self, pair: _Pair, steps: int, base: Base) -> None:
        """Draw and score one rung."""
        subject, photo = pair.subject, pair.photo
        jobs = jobs_for(subject, photo, self.settings)
        images = draw_jobs(base, jobs, self.settings)
        self._save_pictures(subject, pair.name, steps, images)
        pair.rows += self._rows(subject, photo, pair.name, steps, jobs, images)
        pair.rungs.append({"steps": steps, **self._class_figures(subject, photo, jobs, images)})
        self.report(f"{pair.label}: {steps} steps scored")

    def _finish(self, pair: _Pair, bare: Base) -> None:
        """The pair's file, which says that it is done."""
        fingerprint = self._fingerprint(pair.subject, pair.host, bare)
        content: dict[str, Any] = {
            "fingerprint": fingerprint,
            "rows": pair.rows,
            "rungs": pair.rungs,
        }
        if pair.host is not None:
            content["training"] = self._training
        write_json(self.rows_path(pair.subject, pair.name), content)

    def _ladder(self, pair: _Pair, bare: Base) -> Ladder:
        assert pair.host is not None
        config = host_config(pair.host, bare, pair.subject, self.settings)
        priors = self.output_dir / PRIORS
        prior = prior_latents(bare, pair.subject.class_name, config, self.settings, priors)
        steps = self.settings.steps
        return ladder_of(pair.label, bare, config, pair.subject, pair.photo, prior, steps)

    def _rows(
        self,
        subject: Subject,
        photo: ImageSpec,
        host_name: str,
        steps: int,
        jobs: Sequence[Job],
        images: Sequence[Image.Image],
    ) -> list[dict[str, Any]]:
        """One flat mapping per picture: a row of results.parquet."""
        scores = self.scorer.score(subject, photo, [job.request for job in jobs], images)
        folder = _pictures_folder(subject, host_name, steps)
        return [
            {
                "subject": subject.subject_id,
                "class": subject.class_name,
                "host": host_name,
                "steps": steps,
                "seed": self.settings.training_seed,
                "photo_state": photo.state,
                "photo_scene": photo.scene,
                "kind": job.request.kind,
                "prompt": job.request.prompt,
                "asked_state": job.request.state,
                "asked_scene": job.request.scene,
                "index": job.index,
                "noise_seed": job.seed,
                "picture": f"{folder}/{number:03d}.png",
                **vars(score),
                "same_individual": score.is_same_individual,
            }
            for number, (job, score) in enumerate(zip(jobs, scores, strict=True))
        ]

    def _class_figures(
        self,
        subject: Subject,
        photo: ImageSpec,
        jobs: Sequence[Job],
        images: Sequence[Image.Image],
    ) -> dict[str, float]:
        """Numbers of a rung that are not of single pictures: variety and drift of the class, and
        selection fidelity.
        """
        by_kind: dict[str, list[Image.Image]] = {}
        for job, image in zip(jobs, images, strict=True):
            by_kind.setdefault(job.request.kind, []).append(image)
        judge: Any = self.scorer.identity
        backbone = WorldIdentityBackbone(judge)
        photos = [photo_image(photo, images[0].width)]
        figures = {SELECTION: selection_fidelity(by_kind["scene"], photos, judge)}
        if "class" in by_kind:
            scores: list[Score] = [
                div([by_kind["class"]], EncoderDistance(backbone)),
                pres(by_kind["class"], photos, backbone),
            ]
            figures |= _class_names({score.name: score.value for score in scores})
        return figures

    def _save_pictures(
        self, subject: Subject, host_name: str, steps: int, images: Sequence[Image.Image]
    ) -> None:
        folder = self.output_dir / _pictures_folder(subject, host_name, steps)
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            image.save(folder / f"{number:03d}.png")

    def _fingerprint(self, subject: Subject, host: Host | None, bare: Base) -> str:
        """Of all that decides a pair's rows."""
        settings = self.settings.as_dict()
        for name in ("num_subjects", "first_subject"):  # who else is scored changes nothing
            del settings[name]
        if host is None:  # the bare base is not trained
            for name in ("steps", "training_seed", "num_class_images"):
                del settings[name]
        config = host and host_config(host, bare, subject, self.settings).model_dump(mode="json")
        world = [world_hash(), prompts_hash("worldbench")]
        parts = [bare.hash, self.evaluators, *world, subject.subject_id, settings, config]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_results(output_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all finished pairs, and their rungs' figures (with subject and host)."""
    rows: list[dict[str, Any]] = []
    rungs: list[dict[str, Any]] = []
    for path in sorted((output_dir / ROWS).glob("*/*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        rows += stored["rows"]
        names = {"subject": path.parent.name, "host": path.stem}
        rungs += [{**names, **_class_names(rung)} for rung in stored["rungs"]]
    return rows, rungs


def _class_names(figures: Mapping[str, Any]) -> dict[str, Any]:
    """A rung's figures with its variety named for what it is, the class's; older files say `div`,
    which elsewhere is the variety of the subject's pictures.
    """
    return {DIVERSITY if name == VARIETY else name: value for name, value in figures.items()}


def _pictures_folder(subject: Subject, host_name: str, steps: int) -> str:
    return f"{PICTURES}/{subject.subject_id}/{host_name}/{steps:05d}"


def _check_fingerprint(path: Path, fingerprint: str) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    if stored != fingerprint:
        raise ResumeError(
            f"{path}: made with other settings, weights or evaluators; go on with those, or give "
            "another output folder"
        )
