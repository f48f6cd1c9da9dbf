"""Which samples a step trains on. Every draw is keyed by (seed, stream, n), n the job's global
sample index.

So a sample is the same whatever the batch size, the accumulation, the number of workers or where a
run was resumed, and no setting but the seed changes any draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dreamfleet.methods.base import Batch, NoisedLatents
from dreamfleet.seeding import torch_generator


@dataclass(frozen=True)
class LatentSet:
    """Pictures as moments of the VAE's posterior, scaled as the UNet expects.

    Attributes:
        mean, std: [N, C, h, w] fp32.
        prompts: N prompts.
        weights: [N] how often a picture is drawn, relative to the others (copies of one photo share
            1).
        flipped_mean, flipped_std: moments of the mirrored pictures, for `random_flip`; None: never
            mirrored.
    """

    mean: Tensor
    std: Tensor
    prompts: Sequence[str]
    weights: Tensor | None = None
    flipped_mean: Tensor | None = None
    flipped_std: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.prompts)
        if (
            self.mean.shape != self.std.shape
            or self.mean.dim() != 4
            or len(self.mean) != count
            or not count
        ):
            raise ValueError(
                f"latents {tuple(self.mean.shape)} and {tuple(self.std.shape)} with {count} "
                "prompts: expected two "
                "equal shapes [N, C, h, w] and N >= 1 prompts"
            )
        if (self.flipped_mean is None) != (self.flipped_std is None):
            raise ValueError("flipped_mean and flipped_std go together")

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def key(self) -> str:
        """Names the numbers: sets of equal key draw equal samples."""
        digest = hashlib.sha256()
        for tensor in (self.mean, self.std, self.weights, self.flipped_mean, self.flipped_std):
            shape = () if tensor is None else tuple(tensor.shape)
            digest.update(repr(shape).encode())
            if tensor is not None:
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def sample_positions(
    step: int, micro_step: int, *, batch_size: int, accumulation: int, rank: int, world_size: int
) -> list[int]:
    """Global sample indices n of one worker's micro-step: step x effective batch + position."""
    effective = batch_size * accumulation * world_size
    first = step * effective + micro_step * batch_size * world_size + rank * batch_size
    return list(range(first, first + batch_size))


def make_batch(
    seed: int,
    indices: Sequence[int],
    subject: LatentSet,
    class_prompts: Sequence[str],
    prior: LatentSet | None = None,
    *,
    num_train_timesteps: int = 1000,
    device: torch.device | str = "cpu",
) -> Batch:
    """The samples `indices` (global), drawn on the CPU and moved to `device`.

    Args:
        seed: the job's seed.
        indices: global sample indices n.
        subject: the subject's photos.
        class_prompts: one per photo of `subject`.
        prior: pictures of the class; as many prior as subject samples are drawn, from streams
            `prior.*`.
        num_train_timesteps: t is uniform in [0, num_train_timesteps).
    """
    chosen, rows = _draw(seed, "", indices, subject, num_train_timesteps, device)
    class_rows = tuple(class_prompts[i] for i in chosen)
    if prior is None:
        return Batch(rows, class_rows)
    return Batch(
        rows, class_rows, _draw(seed, "prior.", indices, prior, num_train_timesteps, device)[1]
    )


def sample_timestep(seed: int, n: int, num_train_timesteps: int, stream: str = "") -> int:
    """t of global sample n, uniform in [0, num_train_timesteps)."""
    generator = torch_generator(seed, f"{stream}t", n)
    return int(torch.randint(0, num_train_timesteps, (), generator=generator))


def _draw(
    seed: int,
    stream: str,
    indices: Sequence[int],
    pictures: LatentSet,
    num_train_timesteps: int,
    device: torch.device | str,
) -> tuple[list[int], NoisedLatents]:
    chosen, latents, noise, timesteps = [], [], [], []
    for n in indices:
        picture = _choose(seed, stream, n, pictures)
        chosen.append(picture)
        latents.append(_latent(seed, stream, n, picture, pictures))
        shape = pictures.mean.shape[1:]
        noise.append(torch.randn(shape, generator=torch_generator(seed, f"{stream}noise", n)))
        timesteps.append(sample_timestep(seed, n, num_train_timesteps, stream))
    return chosen, NoisedLatents(
        torch.stack(latents).to(device),
        torch.stack(noise).to(device),
        torch.tensor(timesteps, device=device),
        tuple(pictures.prompts[i] for i in chosen),
        tuple(f"{pictures.key}:{seed}:{stream}:{n}:{num_train_timesteps}" for n in indices),
    )


def _choose(seed: int, stream: str, n: int, pictures: LatentSet) -> int:
    """A picture with probability proportional to its weight."""
    u = torch.rand((), dtype=torch.float64, generator=torch_generator(seed, f"{stream}photo", n))
    weights = torch.ones(len(pictures)) if pictures.weights is None else pictures.weights
    edges = weights.double().cumsum(0)
    return min(int(torch.searchsorted(edges, u * edges[-1], right=True)), len(pictures) - 1)


def _latent(seed: int, stream: str, n: int, picture: int, pictures: LatentSet) -> Tensor:
    """A draw from the posterior of the picture or, half of the time where allowed, of its mirror
    image.
    """
    mean, std = pictures.mean[picture], pictures.std[picture]
    if pictures.flipped_mean is not None and pictures.flipped_std is not None:
        coin = torch.rand((), generator=torch_generator(seed, f"{stream}augmentation", n))
        if coin < 0.5:
            mean, std = pictures.flipped_mean[picture], pictures.flipped_std[picture]
    draw = torch.randn(mean.shape, generator=torch_generator(seed, f"{stream}vae", n))
    return mean.float() + std.float() * draw
