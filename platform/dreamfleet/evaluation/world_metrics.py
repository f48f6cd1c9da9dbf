"""Metrics that need a drawn world: its oracle reads pictures, and any true picture can be drawn.

For a request ("a photo of sks running dog": a state; "a photo of sks dog in the snow": a scene) and
one picture made from it:

- *alignment*: right class, and right state or scene as asked. Unreadable pictures fail.
- *copied*: the state or scene of the subject's photo, where another was asked.
- *identity fidelity*: the identity encoder's similarity of the segmented subject to true renders
  of this individual in the state and scene that the oracle *sees* (a wrong state is alignment's
  affair), scaled: 0 is another identity of the class rendered alike, 1 are held-out true renders.
- *joint success*: aligned, and nearer to this individual than to another (scaled fidelity above
  1/2).
- *selection fidelity*: subject crops on scene prompts against the photos: all that a user of a real
  base has. True renders never enter a choice made for one subject.

A state hides traits (a golden teapot has no hue). Floor and ceiling are rendered in the same state,
so only what stays visible counts; and fidelity over several pictures is the ratio of summed gains
to summed ranges, so that a state which hides nearly everything weighs nearly nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.seeding import key_to_int
from dreamfleet.world.render import render
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import Subject, identity_seed

Kind = Literal["subject", "state", "scene", "combined", "application", "class"]
ASKING = ("state", "scene", "combined", "application")  # kinds that something may be asked in

NUM_REFERENCES = 6  # true renders that a picture is compared with
NUM_HELD_OUT = 6  # other true renders: what 1 means
NUM_OTHERS = 8  # other identities of the class: what 0 means
# Development identities that are no benchmark subject; all splits' subjects are compared with them.
OTHERS_FIRST = 600_000
SAME_INDIVIDUAL = 0.5


class ReadsPictures(Protocol):
    """An oracle."""

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """Per picture: class (or "unreadable"), state, scene, ... by name."""
        ...


class TellsIndividuals(Protocol):
    """An identity encoder with its segmenter."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [N, D] of the segmented subjects."""
        ...


@dataclass(frozen=True)
class Request:
    """What a prompt asks for.

    Attributes:
        prompt: the text.
        kind: "state" or "scene" (scored for alignment), "combined" (both), "application" (a view or
            style, too), "subject" (none named), or "class" (without identifier: what happened to
            the class).
        state, scene, view, style: what is asked, or None.
        name: a word for the prompt.
    """

    prompt: str
    kind: Kind
    state: str | None = None
    scene: str | None = None
    view: str | None = None
    style: str | None = None
    name: str = ""

    @property
    def asked(self) -> dict[str, str]:
        """What the oracle should see beside the class."""
        if self.kind not in ASKING:
            return {}
        named = ("state", "scene", "view", "style")
        return {name: value for name in named if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class PictureScore:
    """One picture's results; `aligned`, `copied` and `joint` are None where nothing was asked.

    Attributes:
        seen_class, seen_state, seen_scene, seen_view, seen_style, seen_prop: what the oracle reads.
        similarity, floor, ceiling: mean cosines to the true renders: of the picture, of another
            identity rendered alike, of held-out true renders.
    """

    seen_class: str
    seen_state: str
    seen_scene: str
    aligned: bool | None
    copied: bool | None
    similarity: float
    floor: float
    ceiling: float
    joint: bool | None
    seen_view: str = ""
    seen_style: str = ""
    seen_prop: str = ""

    @property
    def is_same_individual(self) -> bool:
        """Scaled fidelity above 1/2."""
        return self.similarity - self.floor > SAME_INDIVIDUAL * (self.ceiling - self.floor)


@dataclass(frozen=True)
class _Yardstick:
    """True renders of one individual in one state and scene."""

    references: np.ndarray  # [NUM_REFERENCES, D]
    floor: float
    ceiling: float

    def similarity(self, embedding: np.ndarray) -> float:
        return float((self.references @ embedding).mean())


class WorldScorer:
    """Scores pictures of the world's subjects.

    Args:
        oracle: A for tuning and gates, B for final scores only.
        identity: the identity encoder.
    """

    def __init__(self, oracle: ReadsPictures, identity: TellsIndividuals) -> None:
        self.oracle, self.identity = oracle, identity
        self._yardsticks: dict[tuple[Subject, str, str], _Yardstick] = {}
        self._others: dict[tuple[str, str, str], np.ndarray] = {}

    def score(
        self,
        subject: Subject,
        photo: ImageSpec,
        requests: Sequence[Request],
        images: Sequence[Image.Image],
    ) -> list[PictureScore]:
        """One score per picture.

        Args:
            subject: whom the pictures should show.
            photo: what the training photo shows.
            requests: what each picture was asked to show.
            images: N pictures.

        Raises:
            BadInputError: not one request per picture.
        """
        if len(requests) != len(images):
            raise BadInputError(
                f"{subject.subject_id}: {len(requests)} requests for {len(images)} pictures; "
                "expected one each"
            )
        if not images:
            return []
        seen = self.oracle.read(images)
        embeddings = self.identity.embed(images)
        return [
            self._score_one(subject, photo, request, row, embedding)
            for request, row, embedding in zip(requests, seen, embeddings, strict=True)
        ]

    def _score_one(
        self,
        subject: Subject,
        photo: ImageSpec,
        request: Request,
        seen: Mapping[str, str],
        embedding: np.ndarray,
    ) -> PictureScore:
        is_class = seen["class"] == subject.class_name
        # Of a picture of something else there is no true render in "its" state: it counts as
        # another identity would, in the photo's state if none was asked.
        state = seen["state"] if is_class else request.state or photo.state
        yardstick = self._yardstick(subject, state, seen["scene"])
        similarity = yardstick.similarity(embedding) if is_class else yardstick.floor
        aligned = is_aligned(request, subject.class_name, seen)
        score = PictureScore(
            seen_class=seen["class"],
            seen_state=seen["state"],
            seen_scene=seen["scene"],
            aligned=aligned,
            copied=is_copied(request, photo, seen),
            similarity=similarity,
            floor=yardstick.floor,
            ceiling=yardstick.ceiling,
            joint=None,
            **{f"seen_{name}": seen.get(name, "") for name in ("view", "style", "prop")},
        )
        if aligned is None:
            return score
        joint = aligned and score.is_same_individual
        return PictureScore(**{**score.__dict__, "joint": joint})

    def _yardstick(self, subject: Subject, state: str, scene: str) -> _Yardstick:
        key = (subject, state, scene)
        if key not in self._yardsticks:
            references = self._true_renders(subject, state, scene, "reference", NUM_REFERENCES)
            held_out = self._true_renders(subject, state, scene, "held out", NUM_HELD_OUT)
            others = self._other_identities(subject.class_name, state, scene)
            self._yardsticks[key] = _Yardstick(
                references=references,
                floor=float((others @ references.T).mean()),
                ceiling=float((held_out @ references.T).mean()),
            )
        return self._yardsticks[key]

    def _true_renders(
        self, subject: Subject, state: str, scene: str, purpose: str, count: int
    ) -> np.ndarray:
        layouts = [_layout(purpose, subject.class_name, state, scene, i) for i in range(count)]
        specs = [subject.spec(state, scene, layout_seed=layout) for layout in layouts]
        return self.identity.embed([render(spec).image for spec in specs])

    def _other_identities(self, class_name: str, state: str, scene: str) -> np.ndarray:
        key = (class_name, state, scene)
        if key not in self._others:
            specs = [
                ImageSpec(
                    class_name,
                    identity_seed("D", OTHERS_FIRST + i),
                    state,
                    scene,
                    layout_seed=_layout("other", class_name, state, scene, i),
                )
                for i in range(NUM_OTHERS)
            ]
            self._others[key] = self.identity.embed([render(spec).image for spec in specs])
        return self._others[key]


def is_aligned(request: Request, class_name: str, seen: Mapping[str, str]) -> bool | None:
    """Right class, and what was asked (state, scene, view, style); None where nothing was."""
    if not request.asked:
        return None
    right = all(seen.get(name) == value for name, value in request.asked.items())
    return seen["class"] == class_name and right


def is_copied(request: Request, photo: ImageSpec, seen: Mapping[str, str]) -> bool | None:
    """The photo's state or scene, where another was asked; None where neither was."""
    if not {"state", "scene"} & set(request.asked):
        return None
    state = (
        request.state not in (None, photo.state)
        and seen["class"] == photo.class_name
        and seen["state"] == photo.state
    )
    scene = request.scene not in (None, photo.scene) and seen["scene"] == photo.scene
    return state or scene


def identity_fidelity(rows: Iterable[Mapping[str, Any]]) -> float:
    """Scaled identity of several pictures: summed gains over summed ranges.

    Args:
        rows: `similarity`, `floor` and `ceiling` of each picture (see `PictureScore`).

    Returns:
        0: as near as another identity of the class; 1: as near as a true picture; NaN for no rows
        or where nothing of the identity is visible in any of them.
    """
    gain = span = 0.0
    for row in rows:
        gain += row["similarity"] - row["floor"]
        span += row["ceiling"] - row["floor"]
    return gain / span if span > 0 else float("nan")


def selection_fidelity(
    scene_pictures: Sequence[Image.Image],
    photos: Sequence[Image.Image],
    identity: TellsIndividuals,
) -> float:
    """Mean cosine of segmented subject crops: pictures of scene prompts against the photos.

    Unscaled, and by nothing but the photos: it may choose among adapters of one subject.

    Raises:
        BadInputError: no pictures or no photos.
    """
    if not scene_pictures or not photos:
        raise BadInputError(
            f"selection fidelity: {len(scene_pictures)} pictures and {len(photos)} photos; "
            "expected at least one of each"
        )
    return float((identity.embed(scene_pictures) @ identity.embed(photos).T).mean())


def _layout(*key: int | str) -> int:
    """Placement and scene details of a render, from a range that no benchmark photo uses."""
    return 2**31 + key_to_int("world metrics", *key) % 2**31
