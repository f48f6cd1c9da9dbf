"""From a training task to the engine's job."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dreamfleet.training.group import Group
from dreamfleet.training.parallel import reducer, sharder, share_unet
from dreamfleet.training.task import TrainTask

if TYPE_CHECKING:
    from dreamfleet.bases import Base
    from dreamfleet.engine.job import TrainJob
    from dreamfleet.engine.spec import ReduceGradients, TrainJobSpec


def build_job(task: TrainTask, base: Base, group: Group) -> TrainJob:
    """The engine's job for `task` on a freshly loaded `base`; the base is changed."""
    from dreamfleet.engine.job import TrainJob

    spec = job_spec(task, group, reducer(task.config, base, group))
    job = TrainJob(replace(spec, shard=sharder(task.config, group)), base)
    share_unet(task.config, base, group)
    return job


def job_spec(
    task: TrainTask, group: Group, reduce_gradients: ReduceGradients | None = None
) -> TrainJobSpec:
    """What the engine needs to know of `task`."""
    import torch

    from dreamfleet.engine.batch import LatentSet
    from dreamfleet.engine.spec import TrainJobSpec

    subject, prior = task.subject, task.prior
    photos = LatentSet(
        mean=torch.tensor(subject.latent_mean),
        std=torch.tensor(subject.latent_std),
        prompts=subject.prompts,
        weights=torch.tensor([photo.weight for photo in subject.photos]),
        flipped_mean=torch.tensor(subject.flipped_mean),
        flipped_std=torch.tensor(subject.flipped_std),
    )
    class_pictures = None
    if prior is not None:
        class_pictures = LatentSet(
            torch.tensor(prior.latent_mean), torch.tensor(prior.latent_std), prior.prompts
        )
    return TrainJobSpec(
        config=task.config,
        subject=photos,
        prior=class_pictures,
        rank=group.rank,
        world_size=group.world_size,
        reduce_gradients=reduce_gradients,
        subject_id=subject.id,
    )
