"""Pictures for the report and the tracking server, drawn where the model is loaded already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig
from dreamfleet.data.names import safe_id
from dreamfleet.data.photos import to_png
from dreamfleet.training.task import SamplePlan, TrainTask

if TYPE_CHECKING:
    from PIL import Image

    from dreamfleet.bases import Base
    from dreamfleet.engine.packed_job import AnyJob

INDEX = "samples/index.json"
PIXELS_AT_ONCE = 16 * 256 * 256  # sixteen pictures of the small bases, one or two of the large ones


def draw(base: Base, plan: SamplePlan, config: RunConfig) -> list[list[Image.Image]]:
    """One row of pictures per prompt of `plan`, all rows with the same seeds."""
    from dreamfleet.engine.sampling import sample_images

    pairs = [(prompt, seed) for prompt in plan.prompts for seed in plan.seeds()]
    at_once = max(1, PIXELS_AT_ONCE // base.resolution**2)
    images: list[Image.Image] = []
    for start in range(0, len(pairs), at_once):
        chunk = pairs[start : start + at_once]
        images += sample_images(
            base,
            [prompt for prompt, _ in chunk],
            [seed for _, seed in chunk],
            num_inference_steps=config.sampling.num_inference_steps,
            guidance_scale=config.sampling.guidance_scale,
            scheduler=config.sampling.scheduler,
        )
    width = plan.images_per_prompt
    return [images[row * width : (row + 1) * width] for row in range(len(plan.prompts))]


def draw_preview(job: AnyJob, task: TrainTask) -> tuple[tuple[str, bytes], ...]:
    """The preview prompts with the weights as they are now: (prompt, PNG)."""
    plan = task.preview_samples
    with job.final_weights() as base:
        rows = draw(base, plan, task.config)
    pairs = zip(plan.prompts, rows, strict=True)
    return tuple((prompt, to_png(image)) for prompt, row in pairs for image in row)


def sample_files(
    plan: SamplePlan,
    with_adapter: Sequence[Sequence[Image.Image]],
    without: Sequence[Sequence[Image.Image]],
) -> dict[str, bytes]:
    """The pictures as files below `samples/`, with an index that says what each is."""
    files: dict[str, bytes] = {}
    index: list[dict[str, Any]] = []
    seeds = plan.seeds()
    for row, prompt in enumerate(plan.prompts):
        name = f"{row:02d}-{safe_id(prompt)}"
        for column, seed in enumerate(seeds):
            picture = f"samples/{name}_{column}.png"
            plain = f"samples/without_adapter/{name}_{column}.png"
            files[picture] = to_png(with_adapter[row][column])
            files[plain] = to_png(without[row][column])
            index.append(
                {"prompt": prompt, "seed": seed, "file": picture, "without_adapter": plain}
            )
    files[INDEX] = json.dumps(index, indent=1, ensure_ascii=False).encode()
    return files
