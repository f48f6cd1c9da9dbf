"""From a finished training to the output folder: adapter, samples, figures, report, card, registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dreamfleet.errors import TrainingError
from dreamfleet.runtime.progress import Progress
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import CheckpointFolder
from dreamfleet.training.export import ADAPTER
from dreamfleet.training.output import OutputFolder
from dreamfleet.training.worker import HISTORY

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.data.subject_set import SubjectSet
    from dreamfleet.data.subjects import SubjectRequest
    from dreamfleet.tracking import Run
    from dreamfleet.training.task import TrainOutcome


@dataclass(frozen=True)
class Published:
    """What is known of an adapter once it is out."""

    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    model_version: str | None = None


def publish(
    *,
    outcome: TrainOutcome,
    request: SubjectRequest,
    subject: SubjectSet,
    folder: OutputFolder,
    base: BaseFiles,
    run: Run,
    progress: Progress,
) -> Published:
    """Write everything that OUT holds, and record it. May be repeated: a cut-short call is made good by `--resume`.

    Raises:
        TrainingError: the trained adapter is not where the worker should have put it.
    """
    adapter = CheckpointFolder(folder.checkpoints).read(ADAPTER)
    if adapter is None:
        raise TrainingError(
            f"{request.id}: the finished adapter is not in {folder.checkpoints.location}; go on with --resume "
            "(workers on other nodes need shared storage: cluster.storage_path)"
        )
    target = Folder(str(folder.path))
    for name, content in adapter.files.items():
        if name != HISTORY:
            target.write(name, content)
    return Published()
