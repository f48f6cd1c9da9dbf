"""Run WorldBench: draw each subject with the bare base, then train each host, drawing at each rung.

Resumable per (subject, host): a finished pair is one JSON file below `rows/`, written last; its
pictures lie below `pictures/`. The same output folder refuses other settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreamfleet.bases import Base, load_base
from dreamfleet.errors import ResumeError
from dreamfleet.evaluation.metrics.backbones import WorldIdentityBackbone
from dreamfleet.evaluation.metrics.div import EncoderDistance, div
from dreamfleet.evaluation.metrics.pres import pres
from dreamfleet.evaluation.metrics.score import Score
from dreamfleet.evaluation.results import write_json
from dreamfleet.evaluation.world_metrics import WorldScorer, selection_fidelity
from dreamfleet.evaluation.worldbench.ladder import (
    draw_jobs,
    host_config,
    photo_image,
    prior_latents,
    train_ladder,
)
from dreamfleet.evaluation.worldbench.plan import BASE_HOST, BenchSettings, Host, Job, jobs_for
from dreamfleet.evaluation.worldbench.summary import DIVERSITY, SELECTION, VARIETY
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import Subject, benchmark_photo

Report = Callable[[str], None]
ROWS, PICTURES, PRIORS = "rows", "pictures", "priors"


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

    def run(self) -> None:
        """Do what is not done yet.

        Raises:
            ResumeError: the folder holds results of other settings.
        """
        bare = load_base(self.base_name, device=self.device)
        for subject in self.settings.subjects():
            photo = benchmark_photo(subject)
            self._run_pair(subject, photo, None, bare)
            for host in self.hosts:
                self._run_pair(subject, photo, host, bare)

    def rows_path(self, subject: Subject, host_name: str) -> Path:
        """Where a finished pair's results are."""
        return self.output_dir / ROWS / subject.subject_id / f"{host_name}.json"

    def _run_pair(self, subject: Subject, photo: ImageSpec, host: Host | None, bare: Base) -> None:
        name = BASE_HOST if host is None else host.name
        path = self.rows_path(subject, name)
        fingerprint = self._fingerprint(subject, host, bare)
        if path.is_file():
            _check_fingerprint(path, fingerprint)
            self.report(f"{subject.subject_id} {name}: done before")
            return
        jobs = jobs_for(subject, photo, self.settings)
        rows: list[dict[str, Any]] = []
        rungs: list[dict[str, Any]] = []
        for steps, base in self._ladder(subject, photo, host, bare):
            images = draw_jobs(base, jobs, self.settings)
            self._save_pictures(subject, name, steps, images)
            rows += self._rows(subject, photo, name, steps, jobs, images)
            rungs.append({"steps": steps, **self._class_figures(subject, photo, jobs, images)})
            self.report(f"{subject.subject_id} {name}: {steps} steps scored")
        write_json(path, {"fingerprint": fingerprint, "rows": rows, "rungs": rungs})

    def _ladder(self, subject: Subject, photo: ImageSpec, host: Host | None, bare: Base) -> Any:
        if host is None:
            return iter([(0, bare)])
        config = host_config(host, bare, subject, self.settings)
        priors = self.output_dir / PRIORS
        prior = prior_latents(bare, subject.class_name, config, self.settings, priors)
        fresh = load_base(self.base_name, device=self.device)
        return train_ladder(fresh, config, subject, photo, prior, self.settings.steps)

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
        parts = [bare.hash, self.evaluators, subject.subject_id, settings, config]
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
