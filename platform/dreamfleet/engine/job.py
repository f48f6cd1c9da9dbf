"""One training job with a base to itself: `step`, `state_dict`, `export`.

It serves Ray Train (also over several workers) and full fine-tuning; LoRA jobs that share a base
are in `engine/packed_job.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamfleet.adapters.files import save_adapter, save_full
from dreamfleet.adapters.lora import adapter_disabled
from dreamfleet.bases import Base, load_base
from dreamfleet.engine.attention import use_fast_attention
from dreamfleet.engine.batch import LatentSet
from dreamfleet.engine.learner import MAX_SCALE_RETRIES, Learner
from dreamfleet.engine.metrics import MetricSum, StepMetrics
from dreamfleet.engine.sharding import like, whole_values
from dreamfleet.engine.spec import TrainJobSpec
from dreamfleet.errors import ConfigError
from dreamfleet.methods import Batch, make_method

__all__ = ["LatentSet", "StepMetrics", "TrainJob", "TrainJobSpec"]


class TrainJob(Learner):
    """Trains one subject on `base`, which it changes: an adapter is put in, or its weights become
    trainable.

    Args:
        spec: data and settings.
        base: freshly loaded for this job.

    Raises:
        ConfigError: settings that cannot be trained as they are, naming the key.
    """

    def __init__(self, spec: TrainJobSpec, base: Base) -> None:
        self.spec, self.base = spec, base
        self.config = spec.checked()
        if spec.adapter is not None:
            raise ConfigError(
                f"an adapter of kind {type(spec.adapter).__name__} trains in an engine's slot "
                "only; use PackedJob"
            )
        use_fast_attention(base)
        self.method = make_method(base, self.config)
        if spec.shard is not None:
            spec.shard(base)
        self._gathered: dict[str, Tensor] = {}
        self._named = self.method.parameters()
        parameters: list[nn.Parameter] = [parameter for _, parameter in self._named]
        several = spec.world_size > 1
        super().__init__(self.config.train, parameters, spec.subject_id, base.dtype, several)
        prompts = list(spec.subject.prompts)
        self.class_prompts = list(spec.class_prompts or self.method.class_prompts(prompts))
        self.method.train_mode(True)

    def batch(self, step: int, micro_step: int = 0) -> Batch:
        """This worker's samples of a (micro-)step."""
        timesteps = self.base.schedule.num_train_timesteps
        return self.spec.batch(step, micro_step, self.class_prompts, timesteps, self.base.device)

    def step(self) -> StepMetrics:
        """One optimiser step. Losses are this worker's own; the gradient norm (before clipping) is
        common.

        Raises:
            TrainingError: loss or gradient is not finite; nothing was changed by the step.
        """
        try:
            sums, grad_norm = self._finite_gradients()
            return self.learn(sums, grad_norm)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on bit for bit; tensors and plain values only
        (`torch.load(weights_only=True)`).
        """
        return {**self.learner_state(), "parameters": dict(whole_values(self._named))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a job with the same spec.

        Raises:
            ResumeError: the state is of another version or of other parameters.
        """
        self.check_state(state, {name: parameter.shape for name, parameter in self._named})
        with torch.no_grad():
            for name, parameter in self._named:
                parameter.copy_(like(parameter, state["parameters"][name]))
        self.load_learner_state(state)

    def export(self, folder: str | Path) -> list[Path]:
        """Write what training made: `pytorch_lora_weights.safetensors`, or for full fine-tuning a
        diffusers folder.

        With `use_ema` these are the averaged weights. Returns the files written.
        """
        with self.final_weights() as base:
            if self.config.train.mode == "full":
                return save_full(folder, base)
            return [save_adapter(folder, base)]

    def gather(self) -> None:
        """Put the final weights of a sharded model together on the first worker, for `export` and
        `final_weights` there. Every worker takes part.
        """
        with self._averaged():
            for name, value in whole_values(self._named):
                if self.spec.rank == 0:
                    self._gathered[name] = value

    @contextlib.contextmanager
    def final_weights(self) -> Iterator[Base]:
        """The base as it would be exported (EMA weights if kept), for sampling; training goes on
        untouched afterwards. Of a sharded model: as they were at the last `gather`.
        """
        if self.spec.shard is not None:
            yield self._gathered_base()
            return
        self.method.train_mode(False)
        try:
            with self._averaged():
                yield self.base
        finally:
            self.method.train_mode(True)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the current ones, where they are kept."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def _gathered_base(self) -> Base:
        """A base of its own with the gathered weights, which one worker can draw with alone."""
        base = self._fresh_base()
        with torch.no_grad():
            for module in {name.partition(".")[0] for name in self._gathered}:
                for name, parameter in getattr(base, module).float().named_parameters():
                    parameter.copy_(self._gathered[f"{module}.{name}"])
        use_fast_attention(base)
        return base

    def _fresh_base(self) -> Base:
        base = load_base(self.base.name, device=self.base.device, dtype=self.base.dtype)
        base.safety_checker = self.base.safety_checker
        return base

    @contextlib.contextmanager
    def bare_base(self) -> Iterator[Base]:
        """The base without what was trained, to compare with (full fine-tuning: loaded once
        more).
        """
        if self.config.train.mode == "full":
            yield self._fresh_base()
            return
        self.method.train_mode(False)
        try:
            with adapter_disabled(self.base):
                yield self.base
        finally:
            self.method.train_mode(True)

    def _finite_gradients(self) -> tuple[MetricSum, float]:
        """Losses and clipped gradients of a step; in fp16 the same samples again at half the scale
        until they fit.
        """
        for _ in range(MAX_SCALE_RETRIES):
            sums = self._accumulate()
            grad_norm = self.clipped(sums)
            if grad_norm is not None:
                return sums, grad_norm
        raise self.broken_down(sums, float("inf"))

    def _accumulate(self) -> MetricSum:
        """Gradients of the mean loss over all micro-steps (and workers)."""
        train = self.config.train
        self.optimizer.zero_grad(set_to_none=True)
        sums = MetricSum()
        for micro_step in range(train.gradient_accumulation_steps):
            terms = self.method.losses(self.batch(self.step_index, micro_step))
            self.scaler.scale(terms.total / train.gradient_accumulation_steps).backward()
            sums.add(terms)
        if self.spec.reduce_gradients is not None:
            self.spec.reduce_gradients(self.parameters)
        return sums
