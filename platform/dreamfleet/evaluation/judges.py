"""Who scores pictures where they are drawn: published metrics, and the drawn world's own judges.

Numbers are columns of one picture's row; a column's name holds the backbone. What cannot be loaded
is left out and said, except where a benchmark rests on it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.bases.files import file_hash
from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.evaluation.metrics.score import Score

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dreamfleet.evaluation.metrics.div import PairDistance
    from dreamfleet.evaluation.world_metrics import Request
    from dreamfleet.world.spec import ImageSpec
    from dreamfleet.world.splits import Subject

Pictures = Sequence["Image.Image"]
NOT_NAMED = "no checkpoint named"
WORLD_WEIGHTS = ("oracle_a", "oracle_b", "identity", "segmenter", "clip")


@dataclass(frozen=True)
class JudgeSpec:
    """Which judges; plain data that any process can build them from.

    Attributes:
        world: the drawn world's evaluators instead of public checkpoints.
        clip, dino, blip: hub ids or folders of the public checkpoints; empty: left out.
        oracle: "A", "B" or "": reads class, state and scene.
        evaluators: folder of other evaluators of the world than the shipped ones.
        required: what cannot be loaded is an error instead of being left out.
    """

    world: bool
    clip: str = ""
    dino: str = ""
    blip: str = ""
    oracle: str = ""
    evaluators: str | None = None
    required: bool = False

    def fingerprint(self) -> str:
        """Of the judges, of weights that lie in local folders, and of the world where it is what
        they judge by.
        """
        parts = [repr(self)]
        if self.world:
            from dreamfleet.evaluation.worldbench.frozen import world_hash
            from dreamfleet.world.evaluators.load import SHIPPED

            parts.append(world_hash())  # individuals are judged beside renders
            for name in WORLD_WEIGHTS:
                path = Path(self.evaluators or SHIPPED) / name / "model.safetensors"
                parts.append(file_hash(path) if path.is_file() else "")
            return hashlib.sha256("\n".join(parts).encode()).hexdigest()
        for name in (self.clip, self.dino, self.blip):
            folder = Path(name)
            if name and folder.is_dir():
                parts += [file_hash(path) for path in sorted(folder.rglob("*.safetensors"))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Question:
    """What the judges must know of the pictures of one prompt.

    Attributes:
        subject_id: whose reference photos count.
        class_word: what it is.
        token: taken out of the prompt before it is compared with pictures.
        prompt: the text.
        kind: see `protocols.Ask`; "class" pictures show no subject.
        state, scene: what the oracle should see.
        individual: of a drawn individual: who, its photo, and the request; else None.
    """

    subject_id: str
    class_word: str
    token: str
    prompt: str
    kind: str
    state: str | None = None
    scene: str | None = None
    individual: tuple[Subject, ImageSpec, Request] | None = None


class Judges:
    """Loads what a spec names; scores pictures of one prompt at a time.

    Args:
        spec: which judges.
        references: PNG or JPEG bytes of each subject's reference photos.
        device: cpu or cuda, for public checkpoints.

    Attributes:
        left_out: judge -> why it is not there.
    """

    def __init__(
        self, spec: JudgeSpec, references: Mapping[str, Sequence[bytes]], device: str = "cpu"
    ) -> None:
        self.left_out: dict[str, str] = {}
        self._spec, self._references, self._device = spec, references, device
        self._root = Path(spec.evaluators) if spec.evaluators else None
        self._clip = self._loaded("CLIP", self._load_clip)
        self._identity = self._loaded(
            "identity encoder" if spec.world else "DINO", self._load_identity
        )
        self._blip = self._loaded("BLIP", self._load_blip) if spec.blip else None
        self._distance = self._loaded("DIV", self._load_distance)
        self._oracle = self._loaded("oracle", self._load_oracle) if spec.oracle else None
        self._scorer = self._world_scorer()
        self._photos: tuple[str, list[Image.Image]] = ("", [])

    def score(self, question: Question, images: Pictures) -> list[dict[str, Any]]:
        """One mapping of figures per picture."""
        rows: list[dict[str, Any]] = [{} for _ in images]
        for score in self._scores(question, images):
            parts = score.parts if len(score.parts) == len(images) else score.parts * len(images)
            for row, part in zip(rows, parts, strict=True):
                row[score.name] = part
        if question.individual is not None and self._scorer is not None:
            self._score_individual(question.individual, images, rows)
        elif self._oracle is not None:
            self._read(question, images, rows)
        return rows

    def _scores(self, question: Question, images: Pictures) -> list[Score]:
        from dreamfleet.evaluation.metrics import blip_t, clip_i, clip_t, dino_i, div, pres

        photos = self._photos_of(question.subject_id)
        is_class = question.kind == "class"
        found: list[Score] = []
        if self._identity is not None and photos:
            compare = pres if is_class else dino_i
            found.append(compare(images, photos, self._identity))
            if question.kind == "scene":
                found.append(_renamed(found[-1], "selection_fidelity"))
        if self._distance is not None and len(images) > 1:
            score = div([images], self._distance)
            found.append(_renamed(score, "class_div") if is_class else score)
        if is_class:
            return found
        texts = ([question.prompt] * len(images), question.token)
        if self._clip is not None:
            found.append(clip_t(images, *texts, self._clip))
            if photos:
                found.append(clip_i(images, photos, self._clip))
        if self._blip is not None:
            found.append(blip_t(images, *texts, self._blip))
        return found

    def _score_individual(
        self,
        individual: tuple[Subject, ImageSpec, Request],
        images: Pictures,
        rows: list[dict[str, Any]],
    ) -> None:
        subject, photo, request = individual
        assert self._scorer is not None
        scores = self._scorer.score(subject, photo, [request] * len(images), images)
        for row, score in zip(rows, scores, strict=True):
            row |= {**vars(score), "same_individual": score.is_same_individual}

    def _read(self, question: Question, images: Pictures, rows: list[dict[str, Any]]) -> None:
        """What the oracle sees, for subjects of which no true picture can be drawn."""
        assert self._oracle is not None
        asked = question.state is not None or question.scene is not None
        for row, seen in zip(rows, self._oracle.read(images), strict=True):
            right = (
                seen["class"] == question.class_word
                and question.state in (None, seen["state"])
                and question.scene in (None, seen["scene"])
            )
            row |= {f"seen_{name}": seen[name] for name in ("class", "state", "scene")}
            row[f"alignment[oracle-{self._spec.oracle}]"] = float(right) if asked else None

    def _photos_of(self, subject_id: str) -> list[Image.Image]:
        from PIL import Image, ImageOps

        if self._photos[0] != subject_id:
            data = self._references.get(subject_id, ())
            upright = [ImageOps.exif_transpose(Image.open(io.BytesIO(photo))) for photo in data]
            photos = [image.convert("RGB") for image in upright]
            for backbone in (self._clip, self._identity):
                if backbone is not None:
                    backbone.remember(photos)
            self._photos = (subject_id, photos)
        return self._photos[1]

    def _loaded(self, name: str, load: Callable[[], Any]) -> Any:
        from dreamfleet.bases.quiet import quiet_libraries

        try:
            with quiet_libraries():
                return load()
        except DreamfleetError as error:
            if self._spec.required:
                raise
            self.left_out[name] = str(error)
            return None

    def _load_clip(self) -> Any:
        from dreamfleet.evaluation.metrics import ClipBackbone, WorldClipBackbone

        if self._spec.world:
            from dreamfleet.world.evaluators import load_clip

            return _Remembering(WorldClipBackbone(load_clip(self._root)))
        _check_named(self._spec.clip)
        return _Remembering(ClipBackbone(self._spec.clip, self._device))

    def _load_identity(self) -> Any:
        from dreamfleet.evaluation.metrics import DinoBackbone, WorldIdentityBackbone

        if self._spec.world:
            from dreamfleet.world.evaluators import load_identity_encoder

            return _Remembering(WorldIdentityBackbone(load_identity_encoder(self._root)))
        _check_named(self._spec.dino)
        return _Remembering(DinoBackbone(self._spec.dino, self._device))

    def _load_blip(self) -> Any:
        from dreamfleet.evaluation.metrics import BlipBackbone

        return BlipBackbone(self._spec.blip, self._device)

    def _load_distance(self) -> PairDistance | None:
        from dreamfleet.evaluation.metrics import EncoderDistance, LpipsDistance

        if not self._spec.world:
            return LpipsDistance()
        return None if self._identity is None else EncoderDistance(self._identity)

    def _load_oracle(self) -> Any:
        from dreamfleet.world.evaluators import load_oracle

        return load_oracle(self._spec.oracle, self._root)

    def _world_scorer(self) -> Any:
        if self._oracle is None or self._identity is None:
            return None
        from dreamfleet.evaluation.world_metrics import WorldScorer

        return WorldScorer(self._oracle, self._identity.inner.judge)


@dataclass
class _Remembering:
    """A backbone that embeds the reference photos of one subject once."""

    inner: Any
    _known: tuple[Any, Any] = field(default=(None, None))

    @property
    def name(self) -> str:
        return str(self.inner.name)

    def remember(self, photos: list[Image.Image]) -> None:
        self._known = (photos, self.inner.embed_images(photos) if photos else None)

    def embed_images(self, images: Pictures) -> np.ndarray:
        vectors: np.ndarray = (
            self._known[1] if images is self._known[0] else self.inner.embed_images(images)
        )
        return vectors

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = self.inner.embed_texts(texts)
        return vectors


def _renamed(score: Score, metric: str) -> Score:
    _, _, backbone = score.name.partition("[")
    return Score(f"{metric}[{backbone}", score.value, score.parts, score.higher_is_better)


def _check_named(checkpoint: str) -> None:
    if not checkpoint:
        raise BadInputError(NOT_NAMED)
