"""Events while subjects train, and what is written once one of them is done."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreamfleet.config import plain_tree
from dreamfleet.data.subjects import SubjectRequest
from dreamfleet.errors import TrainingError
from dreamfleet.personalization.publishing import Publication
from dreamfleet.personalization.results import Status, SubjectResult
from dreamfleet.runtime.progress import Stage
from dreamfleet.training.checkpoints import CheckpointFolder
from dreamfleet.training.task import PreviewEvent, StageEvent, StepEvent

if TYPE_CHECKING:
    from dreamfleet.data.preparation import Preparation
    from dreamfleet.personalization.command import Command
    from dreamfleet.tracking import Run, Tracker
    from dreamfleet.training.task import TrainEvent, TrainOutcome


class Finisher:
    """Takes the workers' events and outcomes; called in one thread."""

    def __init__(self, command: Command, preparation: Preparation, tracker: Tracker) -> None:
        self._command, self._preparation, self._tracker = command, preparation, tracker
        self._runs: dict[str, Run] = {}
        self._logged: dict[str, int] = {}  # subject -> last step that was recorded
        self._parent = self._start_parent()
        self._broke_off = False
        self.results: dict[str, SubjectResult] = {}

    @contextlib.contextmanager
    def watching(
        self, requests: Sequence[SubjectRequest]
    ) -> Iterator[Callable[[TrainEvent], None]]:
        """A bar over the steps of all `requests`, and what to do with each event."""
        total = sum(int(request.config.train.max_train_steps or 0) for request in requests)
        title = "training" if len(requests) == 1 else f"training {len(requests)} subjects"
        steps: dict[str, int] = {}
        with self._command.progress.stage(title, total) as stage:
            yield lambda event: self._on_event(event, steps, stage)

    def _on_event(self, event: TrainEvent, steps: dict[str, int], stage: Stage) -> None:
        run = self._run(event.subject_id)
        if isinstance(event, StepEvent):
            if event.step > self._logged.get(
                event.subject_id, 0
            ):  # not again after a worker's loss
                self._logged[event.subject_id] = event.step
                run.log_metrics(event.metrics, event.step)
            steps[event.subject_id] = event.step
            stage.update(sum(steps.values()), _step_note(event, len(self._command.requests) > 1))
        elif isinstance(event, PreviewEvent):
            run.log_grid(event.images, "samples", event.step)
        elif isinstance(event, StageEvent):
            steps[event.subject_id] = max(steps.get(event.subject_id, 0), event.step)
            if event.stage in ("resumed", "alone"):
                self._command.progress.info(f"{event.subject_id}: {event.text}")
            stage.update(sum(steps.values()), event.text)

    def finish(self, outcome: TrainOutcome) -> None:
        """Write and record what one subject's training gave; never raises for a subject among
        several.
        """
        run: Run | None = None
        try:
            run = self._run(outcome.subject_id)
            finished = outcome.status == "finished"
            result = (
                self._publish(outcome, run) if finished else self._failure(outcome, outcome.message)
            )
        except Exception as error:
            explained = _explained(error, outcome)
            if len(self._command.requests) == 1:
                if run is not None:
                    run.finish("FAILED")
                if explained is error:
                    raise
                raise explained from error
            from dreamfleet.training.fleet import failed

            result = self._failure(outcome, failed(outcome.subject_id, explained).message)
        self.results[outcome.subject_id] = result
        if run is not None:
            run.finish("FINISHED" if result.status == "finished" else "FAILED")
        if result.status != "finished" and len(self._command.requests) == 1:
            raise TrainingError(result.message)

    def _publish(self, outcome: TrainOutcome, run: Run) -> SubjectResult:
        identity = outcome.subject_id
        request = self._command.request(identity)
        folder = self._command.folders[identity]
        publication = Publication(
            outcome=outcome,
            request=request,
            subject=self._preparation.subject_set(request),
            folder=folder,
            base=self._command.files,
            hardware=self._hardware(),
            timings=self._preparation.timings,
            tracking_uri=self._tracker.uri,
        )
        published = publication.publish(run, self._command.progress)
        folder.update_info({"status": "finished", "step": outcome.step})
        return self._command.result(
            identity,
            "finished",
            steps=outcome.step,
            train_seconds=outcome.train_seconds,
            metrics=published.metrics,
            run_id=published.run_id,
            model_version=published.model_version,
        )

    def _hardware(self) -> str:
        session = self._preparation.session
        assert session is not None
        cpus = f"{session.num_cpus:g} CPU core{'s' if session.num_cpus != 1 else ''}"
        return cpus if self._preparation.device == "cpu" else f"{session.num_gpus:g} GPU, {cpus}"

    def _failure(self, outcome: TrainOutcome, message: str) -> SubjectResult:
        self._command.progress.warn(f"{outcome.subject_id}: {message}")
        status: Status = "stopped" if outcome.status == "stopped" else "failed"
        return self._command.result(outcome.subject_id, status, message=message, steps=outcome.step)

    def abandon(self) -> None:
        """End the open runs of a command that was interrupted or broke off."""
        self._broke_off = True
        for identity, run in self._runs.items():
            if identity in self.results:
                continue
            run.finish("KILLED", timeout_s=3.0)
            step = CheckpointFolder(self._command.folders[identity].checkpoints).newest_step()
            kept = "nothing was kept yet" if step is None else f"step {step} is kept"
            self._command.progress.info(f"{identity}: stopped; {kept}")

    def close(self) -> None:
        """Send what is left to the tracking server."""
        if self._parent is not None:
            done = any(result.status == "finished" for result in self.results.values())
            self._parent.finish("KILLED" if self._broke_off else "FINISHED" if done else "FAILED")
        self._tracker.close()

    def _start_parent(self) -> Run | None:
        if len(self._command.requests) == 1:
            return None
        params = plain_tree(self._command.config)
        return self._tracker.start_run(
            self._command.output.name, params, {"dreamfleet.kind": "fleet"}
        )

    def _run(self, identity: str) -> Run:
        if identity not in self._runs:
            self._runs[identity] = self._start_run(self._command.request(identity))
        return self._runs[identity]

    def _start_run(self, request: SubjectRequest) -> Run:
        """The subject's MLflow run; a resumed command goes on with the one it began."""
        folder = self._command.folders[request.id]
        key = str(folder.info().get("run_key") or f"{request.id}-{uuid.uuid4().hex}")
        folder.update_info({"run_key": key})
        tags: dict[str, Any] = {
            "dreamfleet.kind": "personalize",
            "dreamfleet.subject": request.id,
            "dreamfleet.class_word": request.config.subject.class_word,
            "dreamfleet.method": request.config.method,
            "dreamfleet.output_dir": folder.place.location,
        }
        params = plain_tree(request.config)
        return self._tracker.start_run(request.id, params, tags, parent=self._parent, key=key)


def _explained(error: Exception, outcome: TrainOutcome) -> Exception:
    """A storage that fails after the training takes nothing of it."""
    if not isinstance(error, OSError):
        return error
    return TrainingError(
        f"{outcome.subject_id}: what was trained could not be written out ({error}); its "
        "checkpoints are kept: --resume goes on from them"
    )


def _step_note(event: StepEvent, several: bool) -> str:
    shown = {"loss": "loss", "loss_sude": "SuDe", "rho": "rho", "loss_prior": "prior"}
    figures = [
        f"{text} {event.metrics[name]:.4f}" for name, text in shown.items() if name in event.metrics
    ]
    return ("" if not several else f"{event.subject_id} ") + " ".join(figures)
