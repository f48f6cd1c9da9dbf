"""What a training worker is given and what it gives back; plain data that any process can
unpickle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dreamfleet.config import RunConfig
from dreamfleet.data.prior_set import PriorSet
from dreamfleet.data.subject_set import SubjectSet
from dreamfleet.seeding import key_to_int


@dataclass(frozen=True)
class SamplePlan:
    """Pictures to draw: every prompt with the same seeds, so that rows and columns compare."""

    prompts: tuple[str, ...]
    images_per_prompt: int
    seed: int = 0

    def seeds(self) -> list[int]:
        return [key_to_int(self.seed, "sample", index) for index in range(self.images_per_prompt)]


@dataclass(frozen=True)
class TrainTask:
    """One subject's training."""

    config: RunConfig  # the base's defaults filled in
    subject: SubjectSet
    prior: PriorSet | None
    base_hash: str
    checkpoints: str  # folder or URI
    device: str  # cpu or cuda
    final_samples: SamplePlan
    preview_samples: SamplePlan  # drawn every `sampling.validation_steps` steps


@dataclass(frozen=True)
class StepEvent:
    """Figures of one optimiser step."""

    subject_id: str
    step: int  # 1-based: steps done
    metrics: dict[str, float]


@dataclass(frozen=True)
class PreviewEvent:
    """Pictures drawn while training: (prompt, PNG)."""

    subject_id: str
    step: int
    images: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class StageEvent:
    """The worker's state in words, e.g. that it continues from a checkpoint."""

    subject_id: str
    text: str
    stage: Literal["started", "resumed", "sampling", "alone", "note"] = "note"
    step: int = 0


TrainEvent = StepEvent | PreviewEvent | StageEvent


class Reporter(Protocol):
    """Where a worker's events go, and where the wish to stop comes from."""

    def send(self, event: TrainEvent) -> None: ...

    def should_stop(self) -> bool: ...

    def flush(self) -> None: ...


@dataclass
class DirectReporter:
    """For training in the driver's own process."""

    on_event: Callable[[TrainEvent], None] = lambda event: None
    stop: Callable[[], bool] = lambda: False

    def send(self, event: TrainEvent) -> None:
        self.on_event(event)

    def should_stop(self) -> bool:
        return self.stop()

    def flush(self) -> None:
        pass


@dataclass(frozen=True)
class TrainOutcome:
    """How a subject's training ended."""

    subject_id: str
    status: Literal["finished", "stopped", "failed"]
    step: int
    train_seconds: float = 0.0  # of the steps, over all parts of the run
    message: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    resumed_from: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
