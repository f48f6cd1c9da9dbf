"""From a finished training to the output folder: adapter, samples, figures, report, card,
registry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dreamfleet.config import dump_config
from dreamfleet.data.photos import from_png
from dreamfleet.errors import TrainingError
from dreamfleet.runtime.progress import Progress
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import Checkpoint, CheckpointFolder
from dreamfleet.training.export import ADAPTER
from dreamfleet.training.output import CONFIG, OutputFolder
from dreamfleet.training.samples import INDEX
from dreamfleet.training.worker import HISTORY

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.data.subject_set import SubjectSet
    from dreamfleet.data.subjects import SubjectRequest
    from dreamfleet.evaluation.report import Grid, ReportData
    from dreamfleet.tracking import Contest, Run
    from dreamfleet.training.task import TrainOutcome


@dataclass(frozen=True)
class Published:
    """What is known of an adapter once it is out."""

    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    model_version: str | None = None


@dataclass(frozen=True)
class Publication:
    """One subject's results on their way into the output folder."""

    outcome: TrainOutcome
    request: SubjectRequest
    subject: SubjectSet
    folder: OutputFolder
    base: BaseFiles
    hardware: str
    timings: Mapping[str, float]
    tracking_uri: str | None
    contest: Contest | None = None  # of a sweep's champion
    command: str = ""  # that makes it again; default: personalize with its own settings

    def publish(self, run: Run, progress: Progress) -> Published:
        """Write all that OUT holds and record it; repeated by `--resume` when it was cut short.

        Raises:
            TrainingError: the trained adapter is not where the worker should have put it.
        """
        from dreamfleet.evaluation import cards, report

        adapter = self._adapter()
        target = Folder(str(self.folder.path))
        for name, content in adapter.files.items():
            if name != HISTORY:
                target.write(name, content)
        settings = self.folder.complete(self.request.config)
        target.write(CONFIG, dump_config(settings).encode())
        run_id = run.wait_for_id()
        data = self._data(adapter, run_id)
        cards.write_model_card(self.folder.path, data, _gallery(adapter))
        self._write_json(data)
        version = self._record(run, data)
        data = replace(data, model_version=version or "")
        report.write_report(self.folder.path, data)
        self._write_json(data)  # now it knows its version
        run.log_artifact(self.folder.path / report.REPORT)
        self.folder.deliver()
        self._forget_copy()
        self._announce(data, progress)
        return Published(report.as_figures(data.metrics), run_id, version)

    def _adapter(self) -> Checkpoint:
        adapter = CheckpointFolder(self.folder.checkpoints).read(ADAPTER)
        if adapter is None:
            raise TrainingError(
                f"{self.request.id}: the finished adapter is not in "
                f"{self.folder.checkpoints.location}; go on with --resume (workers on other nodes "
                "need shared storage: cluster.storage_path)"
            )
        return adapter

    def _data(self, adapter: Checkpoint, run_id: str | None) -> ReportData:
        from dreamfleet.evaluation.cards import package_versions
        from dreamfleet.evaluation.first_metrics import first_metrics
        from dreamfleet.evaluation.report import ReportData

        config, subject = self.request.config, self.subject
        photos = [from_png(photo.png) for photo in subject.photos]
        grids = _grids(adapter, self.request.prompt)
        base_name = config.base_model
        config_file = CONFIG if self.folder.remote else self.folder.path / CONFIG
        return ReportData(
            subject=subject.display_name,
            subject_id=subject.id,
            class_word=subject.class_word,
            token=subject.token,
            config=config,
            photos=photos,
            photo_notes=[line.strip() for line in subject.summary()[1:]] + list(subject.warnings),
            grids=grids,
            history=self.outcome.history,
            metrics=first_metrics(base_name, subject.token, photos, grids),
            timings={**self.timings, "training": self.outcome.train_seconds},
            versions=package_versions(),
            hardware=self.hardware,
            base_name=base_name,
            base_hash=self.base.hash,
            base_location="" if base_name == "embedded" else str(self.base.path),
            output_dir=self.folder.place.location,
            steps=self.outcome.step,
            seed=config.train.seed,
            tracking_ui=self._tracking_ui(),
            run_id=run_id or "",
            command=self.command or f"dreamfleet personalize --config {config_file} --overwrite",
        )

    def _tracking_ui(self) -> str:
        if self.tracking_uri is None:
            return ""
        from dreamfleet.tracking.base import ui_command

        return ui_command(self.tracking_uri)

    def _write_json(self, data: ReportData) -> None:
        from dreamfleet.evaluation.cards import adapter_info, write_adapter_json

        info = adapter_info(data, family=self.base.family.name, resolution=self.base.resolution)
        write_adapter_json(self.folder.path, info)

    def _record(self, run: Run, data: ReportData) -> str | None:
        """Figures, pictures and the adapter as a registered version."""
        from dreamfleet.evaluation.report import as_figures

        pairs = [(grid.prompt, image) for grid in data.grids for image in grid.with_adapter]
        run.log_metrics(as_figures(data.metrics), self.outcome.step)
        if pairs:
            run.log_grid(pairs, "samples", self.outcome.step)
        for name in (CONFIG, "adapter.json"):
            run.log_artifact(self.folder.path / name)
        if not data.config.tracking.register_adapter:
            return None
        tags = {"class_word": data.class_word, "token": data.token, "method": data.config.method}
        return run.register_adapter(
            self.folder.path,
            data.subject_id,
            base_model=str(self.base.path),
            tags=tags,
            contest=self.contest,
        )

    def _forget_copy(self) -> None:
        """A whole model is gigabytes: its copy below the checkpoints goes (`--resume` can make it
        again).
        """
        if self.request.config.train.mode == "full":
            self.folder.checkpoints.delete_folder(ADAPTER)

    def _announce(self, data: ReportData, progress: Progress) -> None:
        progress.info(f"{data.subject}: written to {self.folder.place.location}")
        for metric in data.metrics:
            bare = "" if metric.baseline is None else f" (bare base {metric.baseline:.3f})"
            progress.info(f"  {metric.title}: {metric.value:.3f}{bare}")


def _index(adapter: Checkpoint) -> list[dict[str, Any]]:
    return list(json.loads(adapter.files[INDEX])) if INDEX in adapter.files else []


def _grids(adapter: Checkpoint, instance_prompt: str) -> list[Grid]:
    from dreamfleet.evaluation.report import Grid, prompt_group

    entries = _index(adapter)
    prompts = list(dict.fromkeys(str(entry["prompt"]) for entry in entries))
    return [
        Grid(
            prompt=prompt,
            with_adapter=[
                from_png(adapter.files[name]) for name in _files(entries, prompt, "file")
            ],
            without_adapter=[
                from_png(adapter.files[name]) for name in _files(entries, prompt, "without_adapter")
            ],
            group=prompt_group(prompt, instance_prompt),
        )
        for prompt in prompts
    ]


def _files(entries: Sequence[Mapping[str, Any]], prompt: str, column: str) -> list[str]:
    return [str(entry[column]) for entry in entries if entry["prompt"] == prompt]


def _gallery(adapter: Checkpoint) -> list[tuple[str, str]]:
    """The first picture of every prompt, for the model card."""
    first: dict[str, str] = {}
    for entry in _index(adapter):
        first.setdefault(str(entry["prompt"]), str(entry["file"]))
    return list(first.items())
