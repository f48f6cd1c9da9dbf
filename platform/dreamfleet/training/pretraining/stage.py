"""The loop that trains every part of the embedded base: resumable, counted in steps."""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Progress = Callable[[str, int, int, dict[str, float]], None]  # stage, step, of, metrics
ShouldStop = Callable[[], bool]

LOG_EVERY_STEPS = 50
TELL_EVERY_S = 0.5


class Stopped(Exception):
    """The user asked for an end; everything needed to go on is on disk."""


@dataclass(frozen=True)
class StageSettings:
    """How long and how fast a stage learns."""

    num_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup_steps: int = 200
    decay_share: float = 0.3  # the last part of the steps over which the rate falls linearly to 2 %
    ema_decay: float = 0.0  # 0: no EMA
    max_grad_norm: float = 1.0
    checkpoint_every_s: float = 120.0


class Stage(ABC):
    """One part to train: its modules and its loss at a step.

    All randomness is drawn on the CPU and moved, so that every device sees the same samples.
    """

    name: str
    settings: StageSettings
    modules: dict[str, nn.Module]
    device = torch.device("cpu")
    autocast = False

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of step `step` (scalar, with gradient) and what to show beside it."""

    def to(self, device: torch.device | str) -> Self:
        """Move the modules; batches follow them."""
        self.device = torch.device(device)
        for module in self.modules.values():
            module.to(self.device)
        return self

    def mixed(self) -> torch.autocast:
        """The precision of the networks' own work: bf16 products where `autocast` is on."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def parameters(self) -> list[nn.Parameter]:
        """Everything that learns."""
        modules = self.modules.values()
        return [p for module in modules for p in module.parameters() if p.requires_grad]


def rate_at(step: int, settings: StageSettings) -> float:
    """Learning-rate factor: linear warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    decay_steps = max(1, int(settings.num_steps * settings.decay_share))
    left = (settings.num_steps - step) / decay_steps
    return warm * min(1.0, 0.02 + 0.98 * max(0.0, left))


class StageRunner:
    """Runs one stage to its end, saving its state as it goes; `run` goes on where the folder is."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> None:
        self.stage = stage
        self.folder = folder
        self.progress = progress
        self.should_stop = should_stop or (lambda: False)
        self.parameters = stage.parameters()
        settings = stage.settings
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.ema = [p.detach().clone() for p in self.parameters] if settings.ema_decay else []
        self.step = 0
        self.seconds = 0.0  # of training, over all runs
        self._told_at = 0.0

    @property
    def state_path(self) -> Path:
        return self.folder / f"{self.stage.name}.state.pt"

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Stopped: `should_stop` said so; the state is saved.
        """
        self.load()
        settings = self.stage.settings
        for module in self.stage.modules.values():
            module.train()
        trains = self.step < settings.num_steps
        begun = saved_at = time.monotonic()
        before = self.seconds
        while self.step < settings.num_steps:
            if self.should_stop():
                self.save()
                raise Stopped(f"{self.stage.name}: stopped at step {self.step}")
            metrics = self._train_step()
            self.seconds = before + time.monotonic() - begun
            self._log(metrics)
            if time.monotonic() - saved_at > settings.checkpoint_every_s:
                self.save()
                saved_at = time.monotonic()
        if trains:  # else the state would claim that it was trained with today's settings
            self.save()
        self.use_ema()

    def _train_step(self) -> dict[str, float]:
        settings = self.stage.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(self.step, settings)
        with _attention_for(self.stage.device):
            loss, metrics = self.stage.loss(self.step)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        return {"loss": float(loss.detach()), **metrics}

    def _log(self, metrics: dict[str, float]) -> None:
        """A line to the log file now and then, and more often a word to the user."""
        settings = self.stage.settings
        due = self.step % LOG_EVERY_STEPS == 0 or self.step == settings.num_steps
        if due:
            line = {"step": self.step, "seconds": round(self.seconds, 1), **metrics}
            with (self.folder / f"{self.stage.name}.log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        now = time.monotonic()
        if self.progress is not None and (due or now - self._told_at > TELL_EVERY_S):
            self._told_at = now
            self.progress(self.stage.name, self.step, settings.num_steps, metrics)

    def save(self) -> None:
        """Write everything needed to go on; replaces the former state only when whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(
            {
                "step": self.step,
                "seconds": self.seconds,
                "settings": asdict(self.stage.settings),
                "modules": {name: m.state_dict() for name, m in self.stage.modules.items()},
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
            },
            temporary,
        )
        temporary.replace(self.state_path)

    def load(self) -> bool:
        """Continue from the folder's state; False when there is none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.state_path.exists():
            return False
        state = torch.load(self.state_path, weights_only=True, map_location="cpu")
        for name, module in self.stage.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for mean, saved in zip(self.ema, state["ema"], strict=True):
            mean.copy_(saved)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        return True

    def use_ema(self) -> None:
        """Put the averaged weights into the modules and switch them to evaluation."""
        if self.ema:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in self.parameters], self.ema)
        for module in self.stage.modules.values():
            module.eval()


def _attention_for(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Plain attention on a CPU: the fused one's backward is several times slower at these sizes."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def stage_record(folder: Path, name: str) -> dict[str, Any] | None:
    """Steps done, seconds of training and settings of a stage; None before its first checkpoint."""
    path = folder / f"{name}.state.pt"
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    return {key: state[key] for key in ("step", "seconds", "settings")}
