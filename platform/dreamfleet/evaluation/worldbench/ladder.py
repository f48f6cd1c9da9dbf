"""Training one subject, read at several steps of one run: alone, or several arms on one engine. The
plain engine, no Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dreamfleet.bases import Base, resolved_config
from dreamfleet.config import RunConfig
from dreamfleet.engine.batch import LatentSet
from dreamfleet.engine.engine import Engine
from dreamfleet.engine.job import StepMetrics, TrainJob, TrainJobSpec
from dreamfleet.engine.packed_job import AnyJob
from dreamfleet.engine.sampling import sample_images
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import TrainingError
from dreamfleet.evaluation.worldbench.plan import SEED_LIMIT, BenchSettings, Host, Job
from dreamfleet.seeding import key_to_int
from dreamfleet.world.captions import prompt
from dreamfleet.world.render import SIZES_PX, render
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import Subject

PICTURES_AT_ONCE = 16


@dataclass(frozen=True)
class Ladder:
    """A run that is read at several steps.

    Attributes:
        name: tells it from others that train together.
        spec: data and settings.
        steps: where it is read, rising.
        on_step: gets the figures of each step, and the run.
        state: `state_dict()` to go on from.
    """

    name: str
    spec: TrainJobSpec
    steps: Sequence[int]
    on_step: Callable[[StepMetrics, AnyJob], None] = lambda metrics, job: None
    state: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RungReached:
    """A run at one of its steps: the base to draw with, for as long as the iterator stands still.

    `error` instead, where training broke down; nothing further comes of that run.
    """

    name: str
    step: int
    base: Base | None = None
    job: AnyJob | None = None
    error: Exception | None = None


def train_together(base: Base, ladders: Sequence[Ladder]) -> Iterator[RungReached]:
    """Train LoRA runs in the slots of one engine, so that they share each step's passes and the
    frozen teacher; `base` is bare again afterwards.

    A run's weights are those that it would have alone, and one that breaks down ends alone. Steps
    that a run had passed when its state was saved are left out.
    """
    engine = Engine(base, EngineSettings(max_slots=len(ladders)))
    try:
        for ladder in ladders:
            _join(engine, ladder)
        alive = list(ladders)
        for target in sorted({step for ladder in ladders for step in ladder.steps}):
            going = [ladder for ladder in alive if ladder.steps[-1] >= target]
            ends = {own.name: engine.run_until(own.name, target) for own in going}
            while engine.step():
                pass
            for ladder in going:
                error = ends[ladder.name].exception()
                if isinstance(error, Exception):
                    alive.remove(ladder)
                    yield RungReached(ladder.name, target, error=error)
                elif target in ladder.steps and engine.job(ladder.name).step_index == target:
                    job = engine.job(ladder.name)
                    with job.final_weights() as ready:
                        yield RungReached(ladder.name, target, ready, job)
                if ladder in alive and target == ladder.steps[-1]:
                    engine.release(ladder.name)
    finally:
        engine.close()


def _join(engine: Engine, ladder: Ladder) -> None:
    def on_step(metrics: StepMetrics) -> None:
        ladder.on_step(metrics, engine.job(ladder.name))

    engine.add_job(ladder.name, ladder.spec, state=ladder.state, on_step=on_step)


def train_alone(base: Base, ladder: Ladder) -> Iterator[RungReached]:
    """Train a run of either kind on a base of its own, which it changes; steps as above."""
    job = TrainJob(ladder.spec, base)
    if ladder.state is not None:
        job.load_state_dict(ladder.state)
    for target in ladder.steps:
        if job.step_index > target:
            continue
        try:
            while job.step_index < target:
                ladder.on_step(job.step(), job)
        except TrainingError as error:
            yield RungReached(ladder.name, target, error=error)
            return
        with job.final_weights() as ready:
            yield RungReached(ladder.name, target, ready, job)


def host_config(host: Host, base: Base, subject: Subject, settings: BenchSettings) -> RunConfig:
    """The host's configuration for one subject, without gaps."""
    config = host.config.model_copy(deep=True)
    config.base_model = base.name
    config.subject.class_word = subject.class_name
    config.subject.token = settings.token
    config.train.seed = settings.training_seed
    config.train.max_train_steps = settings.steps[-1]
    config.prior.num_class_images = settings.num_class_images
    return resolved_config(config, base)


def ladder_of(
    name: str, base: Base, config: RunConfig, subject: Subject, photo: ImageSpec,
    prior: LatentSet | None, steps: Sequence[int],
) -> Ladder:  # fmt: skip
    """The run `name`: one photo of a subject, read at each of `steps`; `base` encodes the photo."""
    text = prompt(subject.class_name, token=config.subject.token)
    spec = TrainJobSpec(
        config=config,
        subject=encode_pictures(base, [photo_image(photo, base.resolution)], [text]),
        prior=prior,
        subject_id=subject.subject_id,
    )
    return Ladder(name, spec, steps)


def draw_jobs(base: Base, jobs: Sequence[Job], settings: BenchSettings) -> list[Image.Image]:
    """One picture per job."""
    images: list[Image.Image] = []
    for start in range(0, len(jobs), PICTURES_AT_ONCE):
        chunk = jobs[start : start + PICTURES_AT_ONCE]
        images += sample_images(
            base,
            [job.request.prompt for job in chunk],
            [job.seed for job in chunk],
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            scheduler=settings.scheduler,
        )
    return images


def prior_latents(
    base: Base, class_name: str, config: RunConfig, settings: BenchSettings, folder: Path
) -> LatentSet | None:
    """The class's prior set drawn by the bare base, kept in `folder`; None without prior images."""
    if not config.prior.with_prior_preservation or config.prior.form != "images":
        return None
    count = settings.num_class_images
    text = config.subject.class_prompt.replace("{class}", class_name)
    key = (text, count, base.hash, settings.num_inference_steps, str(config.prior.guidance_scale))
    path = folder / f"{class_name.replace(' ', '_')}-{key_to_int(*key):016x}.safetensors"
    if not path.is_file():
        seeds = [key_to_int("worldbench prior", class_name, i) % SEED_LIMIT for i in range(count)]
        images: list[Image.Image] = []
        for start in range(0, count, PICTURES_AT_ONCE):
            chunk = seeds[start : start + PICTURES_AT_ONCE]
            images += sample_images(
                base,
                [text] * len(chunk),
                chunk,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=config.prior.guidance_scale,
            )
        drawn = encode_pictures(base, images, [text] * count)
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({"mean": drawn.mean.contiguous(), "std": drawn.std.contiguous()}, part)
        os.replace(part, path)
    moments = load_file(path)
    return LatentSet(moments["mean"], moments["std"], [text] * count)


def photo_image(spec: ImageSpec, side_px: int) -> Image.Image:
    """The photo at a base's resolution."""
    size = next((size for size in SIZES_PX if size >= side_px), SIZES_PX[-1])
    image = render(spec, size).image
    same = image.size == (side_px, side_px)
    return image if same else image.resize((side_px, side_px), Image.Resampling.BICUBIC)


def encode_pictures(base: Base, images: Sequence[Image.Image], prompts: Sequence[str]) -> LatentSet:
    """Latent moments of RGB pictures at the base's resolution."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    scaled = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
    moments = [base.encode_images(part) for part in scaled.split(PICTURES_AT_ONCE)]
    return LatentSet(
        torch.cat([mean.cpu() for mean, _ in moments]),
        torch.cat([std.cpu() for _, std in moments]),
        list(prompts),
    )
