"""The loop that every part of the embedded base is trained by: resumable, counted in steps, with an EMA."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Progress = Callable[[str, int, int, dict[str, float]], None]  # stage, step, of, metrics


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
    """One part to train: its modules and its loss at a step."""

    name: str
    settings: StageSettings
    modules: dict[str, nn.Module]

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of step `step` (scalar, with gradient) and what to show beside it."""

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]


def rate_at(step: int, settings: StageSettings) -> float:
    """Learning-rate factor: linear warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    decay_steps = max(1, int(settings.num_steps * settings.decay_share))
    left = (settings.num_steps - step) / decay_steps
    return warm * min(1.0, 0.02 + 0.98 * max(0.0, left))


class StageRunner:
    """Runs one stage to its end, saving its state as it goes; `run` continues where the folder stands."""

    def __init__(self, stage: Stage, folder: Path, progress: Progress | None = None) -> None:
        self.stage = stage
        self.folder = folder
        self.progress = progress
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
        self.seconds = 0.0

    @property
    def state_path(self) -> Path:
        return self.folder / f"{self.stage.name}.state.pt"

    def run(self) -> None:
        """Train to the last step."""
        self.load()
        settings = self.stage.settings
        for module in self.stage.modules.values():
            module.train()
        saved_at = begun = time.monotonic()
        while self.step < settings.num_steps:
            metrics = self._train_step()
            now = time.monotonic()
            if self.step % 50 == 0 or self.step == settings.num_steps:
                self._log(metrics, self.seconds + now - begun)
            if now - saved_at > settings.checkpoint_every_s:
                self.save(self.seconds + now - begun)
                saved_at = time.monotonic()
        self.save(self.seconds + time.monotonic() - begun)
        self.use_ema()

    def _train_step(self) -> dict[str, float]:
        settings = self.stage.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(self.step, settings)
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

    def _log(self, metrics: dict[str, float], seconds: float) -> None:
        settings = self.stage.settings
        line = {"step": self.step, "seconds": round(seconds, 1), **metrics}
        with (self.folder / f"{self.stage.name}.log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.progress is not None:
            self.progress(self.stage.name, self.step, settings.num_steps, metrics)

    def save(self, seconds: float) -> None:
        """Write everything needed to go on; replaces the former state only when whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(
            {
                "step": self.step,
                "seconds": seconds,
                "settings": asdict(self.stage.settings),
                "modules": {name: m.state_dict() for name, m in self.stage.modules.items()},
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
            },
            temporary,
        )
        temporary.replace(self.state_path)

    def load(self) -> None:
        """Continue from the folder's state, if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, weights_only=True, map_location="cpu")
        for name, module in self.stage.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            torch._foreach_copy_(self.ema, state["ema"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])

    def use_ema(self) -> None:
        """Put the averaged weights into the modules and switch them to evaluation."""
        if self.ema:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in self.parameters], self.ema)
        for module in self.stage.modules.values():
            module.eval()
