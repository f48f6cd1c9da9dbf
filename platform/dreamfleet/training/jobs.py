"""From a training task to the engine's job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamfleet.training.group import Group
from dreamfleet.training.parallel import reducer, share_unet
from dreamfleet.training.task import TrainTask

if TYPE_CHECKING:
    from dreamfleet.bases import Base
    from dreamfleet.engine.job import TrainJob


def build_job(task: TrainTask, base: Base, group: Group) -> TrainJob:
    """The engine's job for `task` on a freshly loaded `base`; the base is changed."""
    import torch

    from dreamfleet.engine.batch import LatentSet
    from dreamfleet.engine.job import TrainJob, TrainJobSpec

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
    spec = TrainJobSpec(
        config=task.config,
        subject=photos,
        prior=class_pictures,
        rank=group.rank,
        world_size=group.world_size,
        reduce_gradients=reducer(task.config, base, group),
        subject_id=subject.id,
    )
    job = TrainJob(spec, base)
    share_unet(task.config, base, group)
    return job
