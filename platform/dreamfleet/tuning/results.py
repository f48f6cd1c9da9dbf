"""What `dreamfleet tune` gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class SubjectTuned:
    """What became of one subject's study.

    Attributes:
        setting: the champion's parameters; steps among them as `train.max_train_steps`.
        alignment, fidelity: of the champion in the finals; `host_…` without SuDe.
        alias: what the registered version is called; empty: not registered.
    """

    id: str
    display_name: str
    status: Literal["finished", "failed"]
    output_dir: Path
    message: str = ""
    trials: Mapping[str, int] = field(default_factory=dict)  # by state
    setting: Mapping[str, Any] = field(default_factory=dict)
    alignment: float = float("nan")
    fidelity: float = float("nan")
    host_alignment: float = float("nan")
    host_fidelity: float = float("nan")
    run_id: str | None = None
    model_version: str | None = None
    alias: str = ""

    def lines(self) -> Iterator[str]:
        """For the terminal."""
        if self.status != "finished":
            yield f"{self.display_name}: failed: {self.message}"
            return
        counts = ", ".join(f"{count} {state.lower()}" for state, count in self.trials.items())
        yield f"{self.display_name}: {counts}"
        shown = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.setting.items()
            if name != "method"
        )
        yield f"  champion  {shown}"
        yield (
            f"  alignment {self.alignment:.3f} (host {self.host_alignment:.3f}), "
            f"fidelity {self.fidelity:.3f} (host {self.host_fidelity:.3f})"
        )
        yield f"  report    {self.output_dir / 'report.html'}"
        yield f"  adapter   {self.output_dir / 'champion'}"
        if self.model_version:
            yield f"  MLflow    model {self.id} version {self.model_version}, alias {self.alias}"


@dataclass(frozen=True)
class TuneResult:
    """What became of a command's subjects.

    Attributes:
        seconds: the whole command.
        engine_s: seconds of the engines, summed over them: `training` and `drawing` of `search`,
            `finals` and `champion`, as `search.training`; and `search.span`, from the first to the
            last step of the trials, the longest of the engines. Empty without engines.
    """

    subjects: list[SubjectTuned]
    seconds: float
    engine_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> list[SubjectTuned]:
        return [subject for subject in self.subjects if subject.status != "finished"]
