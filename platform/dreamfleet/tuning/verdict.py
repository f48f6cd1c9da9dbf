"""What judges answer a trial. Apart from the judges, because trials import no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dreamfleet.errors import TrainingError


class JudgeTimeoutError(TrainingError):
    """Judges that hang."""


@dataclass(frozen=True)
class Verdict:
    """What the judges say of pictures of one adapter.

    Attributes:
        alignment: mean over the state pictures.
        fidelity: mean over the scene pictures.
        alignments, fidelities: by picture (`Shot.name`).
    """

    alignment: float
    fidelity: float
    alignments: dict[str, float]
    fidelities: dict[str, float]
