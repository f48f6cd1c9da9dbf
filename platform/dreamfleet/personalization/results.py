"""What a command gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dreamfleet.runtime.storage import Folder

if TYPE_CHECKING:
    from dreamfleet.data.subject_set import SubjectSet

Status = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class SubjectResult:
    """What became of one subject."""

    id: str
    display_name: str
    status: Status
    output_dir: Path  # on this machine; empty again once the results were delivered to a URI
    message: str = ""  # why, when not finished
    steps: int = 0
    train_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None  # MLflow's
    model_version: str | None = None
    location: str = ""  # where the results are, when not in `output_dir`: a URI

    def file(self, name: str = "") -> str:
        """The path or URI of one of the results, or of their folder."""
        place = Folder(self.location or str(self.output_dir))
        return place.child(name).location if name else place.location


@dataclass(frozen=True)
class PersonalizeResult:
    """What became of a command's subjects, in the order in which they were given."""

    subjects: list[SubjectResult]
    seconds: float

    @property
    def failures(self) -> list[SubjectResult]:
        return [subject for subject in self.subjects if subject.status != "finished"]


@dataclass
class PreparedSubjects:
    """What `prepare_subjects` found."""

    subjects: list[SubjectSet]
    failed: dict[str, str]  # subject id -> why

    def summary(self) -> list[str]:
        lines = [line for subject in self.subjects for line in subject.summary()]
        return lines + [f"{identity}: {reason}" for identity, reason in self.failed.items()]
