"""What a finished training leaves: the adapter's files and samples, before they are copied to the
output folder.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from dreamfleet.training.samples import draw, sample_files
from dreamfleet.training.task import TrainTask

if TYPE_CHECKING:
    from dreamfleet.engine.packed_job import AnyJob

# The checked folder below the checkpoints that holds the finished adapter.
ADAPTER = "adapter"


def exported_files(job: AnyJob, task: TrainTask) -> dict[str, bytes]:
    """Adapter (or the whole diffusers folder after full fine-tuning) and samples, by relative
    name.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = job.export(folder)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in written}
    plan = task.final_samples
    if not plan.prompts or not plan.images_per_prompt:
        return files
    with job.final_weights() as base:
        with_adapter = draw(base, plan, task.config)
    with job.bare_base() as base:
        without = draw(base, plan, task.config)
    return {**files, **sample_files(plan, with_adapter, without)}
