"""Quick scores of one adapter's pictures: alignment on attributes, fidelity on scenes.

On the embedded base the world's judges read: alignment of a picture is the oracle's probability
that it shows the class in the state that was asked, fidelity the identity encoder's similarity of
the segmented subject to the photos. On real bases BLIP-T and DINO-I, as in `dreamfleet evaluate`.
True renders are never looked at: a user of a real base has none.

Importing this loads no torch: Ray loads an actor's class wherever its handle comes, in trials too.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamfleet.config import RunConfig
from dreamfleet.errors import TrainingError
from dreamfleet.tuning.pictures import EMBEDDED, Shot

if TYPE_CHECKING:
    from PIL import Image

    from dreamfleet.evaluation.judges import JudgeSpec

SHEET_SIDE_PX = 128


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


class Judge(Protocol):
    """Scores pictures."""

    def alignment(self, subject: str, shots: Sequence[Shot], images: Sequence[Any]) -> list[float]:
        """One number per picture of a state prompt, higher fits better."""

    def fidelity(self, subject: str, images: Sequence[Any]) -> list[float]:
        """One number per picture of a scene prompt, higher is more like the photos."""


@dataclass(frozen=True)
class Reference:
    """What judges must know of a subject: photos as PNGs, class word, identifier."""

    photos: tuple[bytes, ...]
    class_word: str
    token: str


class WorldJudge:
    """The drawn world's judges."""

    def __init__(self, spec: JudgeSpec, references: Mapping[str, Reference]) -> None:
        from dreamfleet.world.evaluators import load_identity_encoder, load_oracle

        root = Path(spec.evaluators) if spec.evaluators else None
        self._references = references
        self._oracle, self._identity = load_oracle(spec.oracle, root), load_identity_encoder(root)
        self._photos: dict[str, Any] = {}

    def alignment(self, subject: str, shots: Sequence[Shot], images: Sequence[Any]) -> list[float]:
        from dreamfleet.world import CLASSES

        name = self._references[subject].class_word.strip().lower()
        number = list(CLASSES).index(name)
        own = [state.name for state in CLASSES[name].states]
        chances = self._oracle.probabilities(images)
        found = []
        for row, shot in enumerate(shots):
            states = chances["state"][row, len(own) * number : len(own) * (number + 1)]
            share = float(states[own.index(str(shot.state))] / states.sum().clamp_min(1e-9))
            found.append(float(chances["class"][row, number]) * share)
        return found

    def fidelity(self, subject: str, images: Sequence[Any]) -> list[float]:
        if subject not in self._photos:
            photos = _opened(self._references[subject].photos)
            self._photos[subject] = self._identity.embed(photos)
        cosines = self._identity.embed(images) @ self._photos[subject].T
        return [float(value) for value in cosines.mean(axis=1)]


class PublishedJudge:
    """BLIP-T and DINO-I (arXiv 2403.06775, section 5.1; arXiv 2208.12242)."""

    def __init__(
        self, spec: JudgeSpec, references: Mapping[str, Reference], device: str = "cpu"
    ) -> None:
        from dreamfleet.evaluation.metrics import BlipBackbone, DinoBackbone

        self._references = references
        self._blip = BlipBackbone(spec.blip, device)
        self._dino = DinoBackbone(spec.dino, device)

    def alignment(self, subject: str, shots: Sequence[Shot], images: Sequence[Any]) -> list[float]:
        from dreamfleet.evaluation.metrics import blip_t

        token = self._references[subject].token
        return list(blip_t(images, [shot.prompt for shot in shots], token, self._blip).parts)

    def fidelity(self, subject: str, images: Sequence[Any]) -> list[float]:
        from dreamfleet.evaluation.metrics import dino_i

        return list(dino_i(images, _opened(self._references[subject].photos), self._dino).parts)


@dataclass(frozen=True)
class JudgeSource:
    """Plain data that any process can make the judges from."""

    spec: JudgeSpec
    references: Mapping[str, Reference]
    device: str = "cpu"

    @staticmethod
    def of(config: RunConfig, references: Mapping[str, Reference], device: str) -> JudgeSource:
        """The judges that fit a base."""
        from dreamfleet.evaluation.judges import JudgeSpec

        tune = config.tune
        if config.base_model == EMBEDDED:
            return JudgeSource(
                JudgeSpec(world=True, oracle="A", evaluators=tune.evaluators), references
            )
        spec = JudgeSpec(world=False, blip=tune.blip, dino=tune.dino)
        return JudgeSource(spec, references, device)

    def check(self) -> None:
        """Refuse judges that are not there, before anything is made for them to look at.

        Raises:
            BadInputError: naming one.
        """
        if not self.spec.world:
            from dreamfleet.evaluation.metrics.backbones import check_backbone

            check_backbone(self.spec.blip)
            check_backbone(self.spec.dino)
        elif self.spec.evaluators:
            from dreamfleet.world.evaluators import weights_path

            for name in ("oracle_a", "identity", "segmenter"):
                weights_path(name, Path(self.spec.evaluators))

    def load(self) -> Judge:
        """The judges.

        Raises:
            BadInputError: a checkpoint cannot be loaded.
        """
        if self.spec.world:
            return WorldJudge(self.spec, self.references)
        return PublishedJudge(self.spec, self.references, self.device)


def score(judge: Judge, subject: str, shots: Sequence[Shot], pngs: Sequence[bytes]) -> Verdict:
    """Judge one adapter's pictures.

    Raises:
        TrainingError: a score is no number.
    """
    images = _opened(pngs)
    chosen = {
        kind: [(s, i) for s, i in zip(shots, images, strict=True) if s.kind == kind]
        for kind in ("state", "scene")
    }
    states, scenes = [s for s, _ in chosen["state"]], [s for s, _ in chosen["scene"]]
    aligned = judge.alignment(subject, states, [image for _, image in chosen["state"]])
    faithful = judge.fidelity(subject, [image for _, image in chosen["scene"]])
    verdict = Verdict(
        sum(aligned) / len(aligned),
        sum(faithful) / len(faithful),
        {shot.name: value for shot, value in zip(states, aligned, strict=True)},
        {shot.name: value for shot, value in zip(scenes, faithful, strict=True)},
    )
    if not (math.isfinite(verdict.alignment) and math.isfinite(verdict.fidelity)):
        raise TrainingError(f"{subject}: the score of its pictures is not a number")
    return verdict


class JudgeActor:
    """The judges as a Ray actor, one per node; they are loaded when first needed.

    Args:
        source: how to make them; anything with `load`.
        timeout_s: for the pictures of one rung, loading included.
    """

    def __init__(self, source: Any, timeout_s: float) -> None:
        self._source, self._timeout_s = source, timeout_s
        self._judge: Judge | None = None
        self._lock = asyncio.Lock()

    async def score(
        self, subject: str, shots: Sequence[Shot], pngs: Sequence[bytes]
    ) -> tuple[Verdict, bytes]:
        """The verdict, and the pictures on one sheet (PNG), states above scenes.

        Raises:
            JudgeTimeoutError: they hang; this process is of no further use.
        """
        async with self._lock:  # one at a time: they share the cores
            work = asyncio.to_thread(self._score, subject, shots, pngs)
            try:
                return await asyncio.wait_for(work, self._timeout_s)
            except TimeoutError as error:
                raise JudgeTimeoutError(
                    f"{subject}: its judges did not answer within {self._timeout_s:g} s; see what "
                    "they wait for, or raise tune.judge_timeout_s"
                ) from error

    def _score(
        self, subject: str, shots: Sequence[Shot], pngs: Sequence[bytes]
    ) -> tuple[Verdict, bytes]:
        if self._judge is None:
            self._judge = self._source.load()
        return score(self._judge, subject, shots, pngs), sheet(shots, pngs)


def sheet(shots: Sequence[Shot], pngs: Sequence[bytes]) -> bytes:
    """The pictures in two rows, states and scenes, as a PNG."""
    from PIL import Image

    from dreamfleet.data.photos import to_png

    images = _opened(pngs)
    rows = [
        [image for shot, image in zip(shots, images, strict=True) if shot.kind == kind]
        for kind in ("state", "scene", "subject")
    ]
    rows = [row for row in rows if row]
    side = min(SHEET_SIDE_PX, max(image.width for image in images))
    page = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            page.paste(image.resize((side, side)), (x * side, y * side))
    return to_png(page)


def _opened(pngs: Sequence[bytes]) -> list[Image.Image]:
    from PIL import Image

    return [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
