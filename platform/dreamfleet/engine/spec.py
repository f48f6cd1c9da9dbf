"""What a training job is given, and which samples follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from dreamfleet.adapters.kinds import AdapterShape
from dreamfleet.bases import Base
from dreamfleet.config import RunConfig
from dreamfleet.engine.batch import LatentSet, make_batch, sample_positions
from dreamfleet.errors import ConfigError
from dreamfleet.methods import Batch

ReduceGradients = Callable[[Sequence[nn.Parameter]], None]
Shard = Callable[[Base], None]


@dataclass(frozen=True)
class TrainJobSpec:
    """All that a job needs beside the base; plain data, no Ray.

    Attributes:
        config: resolved (`bases.resolved_config`).
        subject: the photos' latents and prompts (identifier filled in).
        prior: the prior set's latents and prompts; needed for `prior.form: images`, ignored without
            prior preservation.
        class_prompts: one per photo, its prompt without identifier; None: made from the prompts.
        rank, world_size: this worker's place; a step's samples are shared out over the workers.
        reduce_gradients: averages gradients over the workers in place, called once before each
            optimiser step.
        shard: spreads the trainable modules of the base over the workers, before the optimiser is
            made.
        subject_id: for messages.
        adapter: what is trained, if not the LoRA that `config` asks for; in an engine only.
    """

    config: RunConfig
    subject: LatentSet
    prior: LatentSet | None = None
    class_prompts: Sequence[str] | None = None
    rank: int = 0
    world_size: int = 1
    reduce_gradients: ReduceGradients | None = None
    shard: Shard | None = None
    subject_id: str = "subject"
    adapter: AdapterShape | None = None

    def checked(self) -> RunConfig:
        """The configuration, if the job can be trained as it is.

        Raises:
            ConfigError: naming the key that it cannot be trained with.
        """
        config, train = self.config, self.config.train
        missing = [
            name for name in ("max_train_steps", "learning_rate") if getattr(train, name) is None
        ]
        if missing:
            raise ConfigError(
                f"train.{missing[0]} is not set; fill the gaps with bases.resolved_config first"
            )
        if (
            config.prior.with_prior_preservation
            and config.prior.form == "images"
            and self.prior is None
        ):
            raise ConfigError(
                "prior.with_prior_preservation is on with form images, but there is no prior set"
            )
        if self.class_prompts is not None and len(self.class_prompts) != len(self.subject):
            raise ConfigError(
                f"{len(self.class_prompts)} class prompts for {len(self.subject)} photos; expected "
                "one each"
            )
        return config

    def batch(
        self,
        step: int,
        micro_step: int,
        class_prompts: Sequence[str],
        num_train_timesteps: int,
        device: torch.device,
    ) -> Batch:
        """This worker's samples of a (micro-)step."""
        train = self.config.train
        indices = sample_positions(
            step,
            micro_step,
            batch_size=train.train_batch_size,
            accumulation=train.gradient_accumulation_steps,
            rank=self.rank,
            world_size=self.world_size,
        )
        return make_batch(
            train.seed,
            indices,
            self._subject_set,
            class_prompts,
            self._prior_set(),
            num_train_timesteps=num_train_timesteps,
            device=device,
        )

    @cached_property  # a set remembers its key, which takes a while to make
    def _subject_set(self) -> LatentSet:
        subject = self.subject
        if self.config.data.random_flip or subject.flipped_mean is None:
            return subject
        return LatentSet(subject.mean, subject.std, subject.prompts, subject.weights)

    def _prior_set(self) -> LatentSet | None:
        prior = self.config.prior
        return self.prior if prior.with_prior_preservation and prior.form == "images" else None
