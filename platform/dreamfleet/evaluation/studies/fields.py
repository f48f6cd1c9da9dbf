"""Where a study takes place: whose photos, which prompts, who scores. The drawn world, or
photographs with published judges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dreamfleet.config import DataConfig
from dreamfleet.data.crops import crop_square
from dreamfleet.data.photos import read_photo
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.judges import Judges, JudgeSpec, Question
from dreamfleet.evaluation.metrics.backbones import WorldIdentityBackbone
from dreamfleet.evaluation.metrics.div import EncoderDistance
from dreamfleet.evaluation.protocols import Ask, asks_for, dreambench_subjects
from dreamfleet.evaluation.protocols.protocol import is_live, protocol_file
from dreamfleet.evaluation.references import reference_photos
from dreamfleet.evaluation.studies.plan import (
    PlannedArm,
    noun_of,
    selection_states,
    study_subjects,
    world_requests,
)
from dreamfleet.evaluation.studies.recipe import Study
from dreamfleet.evaluation.world_metrics import Request, WorldScorer, is_copied
from dreamfleet.evaluation.worldbench.ladder import photo_image
from dreamfleet.evaluation.worldbench.plan import SEED_LIMIT, Job
from dreamfleet.evaluation.worldbench.publish import shipped_scorer
from dreamfleet.seeding import key_to_int
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import Subject, benchmark_photo

Row = dict[str, Any]
Pictures = Sequence[Image.Image]
RESTS_ON = ("BLIP", "DINO")  # judges of a study of photographs


@dataclass(frozen=True)
class Member:
    """One subject.

    Attributes:
        subject_id, class_name: who, and what.
        live: an animal.
        individual: of the drawn world; else None.
        photos: of photographs, in order.
    """

    subject_id: str
    class_name: str
    live: bool
    individual: Subject | None = None
    photos: tuple[Path, ...] = ()


class Field(Protocol):
    """Subjects, prompts and judges of a study."""

    study: Study
    judges_key: str  # short; of who scores

    def members(self) -> list[Member]:
        """Who is trained."""

    def photos(self, member: Member, arm: PlannedArm, side_px: int) -> list[Image.Image]:
        """What an arm is trained on."""

    def photo_parts(self, member: Member, arm: PlannedArm) -> list[str]:
        """What the photos are, as text."""

    def training_prompt(self, member: Member, arm: PlannedArm) -> str:
        """The photos' prompt, identifier filled in."""

    def class_word(self, member: Member, arm: PlannedArm) -> str:
        """The noun in an arm's prompts; it may be empty."""

    def jobs(self, member: Member, arm: PlannedArm) -> list[Job]:
        """Every picture of a rung, from the same noise in all arms."""

    def score(
        self, member: Member, arm: PlannedArm, jobs: Sequence[Job], images: Pictures
    ) -> list[Row]:
        """One row of figures per picture."""

    def variety(self, images: Pictures) -> float | None:
        """Mean distance between pictures of the class, where rows do not hold it."""


class WorldField:
    """Individuals of the drawn world, read by an oracle and the identity encoder.

    Args:
        scorer: oracle and identity encoder; None: the shipped ones that the study asks for.
        judges: what they are; needed with a scorer.
        scored: states that count, by class; of these `study.selection_states` are not asked.
    """

    def __init__(
        self,
        study: Study,
        *,
        token: str = "sks",
        scorer: WorldScorer | None = None,
        judges: str = "",
        scored: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.study, self.token, self._scored = study, token, scored
        if scorer is None:
            scorer, judges = shipped_scorer(study.oracle)
        digest = hashlib.sha256(judges.encode()).hexdigest()[:8]
        self.judges_key = f"{study.oracle}-{digest}"
        self._identity = _Pinned(scorer.identity)
        self._scorer = WorldScorer(scorer.oracle, self._identity)
        self._references: tuple[str, np.ndarray] = ("", np.zeros(0))

    def members(self) -> list[Member]:
        return [
            Member(s.subject_id, s.class_name, CLASSES[s.class_name].live, s)
            for s in study_subjects(self.study)
        ]

    def photos(self, member: Member, arm: PlannedArm, side_px: int) -> list[Image.Image]:
        return [photo_image(spec, side_px) for spec in self._specs(member, arm.photos, arm.prop)]

    def photo_parts(self, member: Member, arm: PlannedArm) -> list[str]:
        return [repr(spec) for spec in self._specs(member, arm.photos, arm.prop)]

    def training_prompt(self, member: Member, arm: PlannedArm) -> str:
        template = str(protocol_file("worldbench")["subject_prompt"])
        return _filled(template, self.token, self.class_word(member, arm))

    def class_word(self, member: Member, arm: PlannedArm) -> str:
        return noun_of(member.class_name, arm.noun)

    def jobs(self, member: Member, arm: PlannedArm) -> list[Job]:
        asked = self._requests(member, arm.noun)
        right = self._requests(member, "right")  # whose noise all nouns share
        jobs = []
        for (request, count), (known, _) in zip(asked, right, strict=False):
            for index in range(count):
                seed = _seed("worldbench", member.subject_id, known.prompt, index)
                jobs.append(Job(request, seed, index))
        return jobs

    def score(
        self, member: Member, arm: PlannedArm, jobs: Sequence[Job], images: Pictures
    ) -> list[Row]:
        assert member.individual is not None
        specs = self._specs(member, arm.photos, arm.prop)
        requests = [job.request for job in jobs]
        embedded = self._identity.pin(images)
        scores = self._scorer.score(member.individual, specs[0], requests, images)
        likeness = embedded @ self._photos_embedded(member, specs).T
        rows = []
        for request, score, near in zip(requests, scores, likeness, strict=True):
            seen = {name: getattr(score, f"seen_{name}") for name in ("class", "state", "scene")}
            copies = [is_copied(request, spec, seen) for spec in specs]
            row = {**vars(score), "same_individual": score.is_same_individual}
            row["copied"] = None if copies[0] is None else any(copies)
            rows.append(row | {"photo_similarity": float(near.mean())})
        return rows

    def variety(self, images: Pictures) -> float | None:
        judge: Any = self._identity
        return EncoderDistance(WorldIdentityBackbone(judge)).mean_pairwise(images)

    def _requests(self, member: Member, noun: str) -> list[tuple[Request, int]]:
        assert member.individual is not None
        shown = self._specs(member, self.study.most_photos, False)
        asked = world_requests(member.individual, shown, self.study.pictures, self.token, noun)
        kept = self.selection(member)
        return [own for own in asked if own[0].state is None or own[0].state not in kept]

    def selection(self, member: Member) -> list[str]:
        """States that the member's sweeps are judged by."""
        assert member.individual is not None
        return selection_states(member.individual, self.study.selection_states, self._scored)

    def _specs(self, member: Member, count: int, prop: bool) -> list[ImageSpec]:
        assert member.individual is not None
        specs = [benchmark_photo(member.individual, index) for index in range(count)]
        return [replace(spec, prop=prop) for spec in specs]

    def _photos_embedded(self, member: Member, specs: Sequence[ImageSpec]) -> np.ndarray:
        key = f"{member.subject_id} {specs!r}"
        if self._references[0] != key:
            photos = [photo_image(spec, 64) for spec in specs]
            self._references = (key, self._identity.inner.embed(photos))
        return self._references[1]


class PhotographField:
    """DreamBench's photographs (arXiv 2208.12242), with the attributes of protocol `attributes` as
    states; read by published judges.

    Alignment is BLIP-T on attribute prompts, identity DINO-I on attribute and scene prompts.

    Args:
        data_dir: the folder `dataset` of a copy of google/dreambooth.
        judges: names of the public checkpoints.
    """

    def __init__(
        self,
        study: Study,
        data_dir: str | Path,
        judges: JudgeSpec,
        *,
        token: str = "sks",
        device: str = "cpu",
    ) -> None:
        self.study, self.token = study, token
        self.judges_key = judges.fingerprint()[:10]
        found, self.missing = dreambench_subjects(data_dir, study.subjects)
        self._members = [
            Member(own.subject_id, own.class_word, is_live(own.class_word), photos=own.photos)
            for own in found
        ]
        limits = DataConfig()
        references = {
            own.subject_id: reference_photos([str(path) for path in own.photos], limits)
            for own in self._members
        }
        self._judges = Judges(judges, references, device)
        absent = {name: why for name, why in self._judges.left_out.items() if name in RESTS_ON}
        if absent:
            whys = "; ".join(f"{name}: {why}" for name, why in absent.items())
            raise BadInputError(
                f"{whys}. A study's alignment is BLIP-T and its identity DINO-I: name checkpoints "
                "that can be loaded (--blip, --dino)"
            )

    def members(self) -> list[Member]:
        return self._members

    def photos(self, member: Member, arm: PlannedArm, side_px: int) -> list[Image.Image]:
        return [crop_square(_read(path), side_px) for path in member.photos[: arm.photos]]

    def photo_parts(self, member: Member, arm: PlannedArm) -> list[str]:
        return [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in member.photos[: arm.photos]
        ]

    def training_prompt(self, member: Member, arm: PlannedArm) -> str:
        return " ".join(f"a photo of {self.token} {self.class_word(member, arm)}".split())

    def class_word(self, member: Member, arm: PlannedArm) -> str:
        if arm.noun == "wrong":
            return "can" if member.class_name != "can" else "dog"
        return member.class_name if arm.noun == "right" else ""

    def jobs(self, member: Member, arm: PlannedArm) -> list[Job]:
        word, jobs = self.class_word(member, arm), []
        for ask, count in self._asks(member):
            if not word and ask.kind == "class":
                continue
            kind: Any = {"state": "state", "scene": "scene", "class": "class"}.get(ask.kind)
            kind = kind or ("subject" if ask.kind == "subject" else "application")
            request = Request(_filled(ask.prompt, self.token, word), kind, name=ask.name)
            known = ask.prompt.replace("{class}", member.class_name)
            for index in range(count):
                jobs.append(Job(request, _seed("dreambench", member.subject_id, known, index),
                                index))  # fmt: skip
        return jobs

    def score(
        self, member: Member, arm: PlannedArm, jobs: Sequence[Job], images: Pictures
    ) -> list[Row]:
        # Pictures of all nouns are compared with the right one's prompts.
        word, name = self.class_word(member, arm), member.class_name
        texts = {
            _filled(ask.prompt, self.token, word): _filled(ask.prompt, self.token, name)
            for ask, _ in self._asks(member)
        }
        rows: list[Row] = [{} for _ in jobs]
        by_prompt: dict[str, list[int]] = {}
        for place, job in enumerate(jobs):
            by_prompt.setdefault(job.request.prompt, []).append(place)
        for prompt, places in by_prompt.items():
            question = Question(
                subject_id=member.subject_id,
                class_word=member.class_name,
                token=self.token,
                prompt=texts[prompt],
                kind=jobs[places[0]].request.kind,
            )
            found = self._judges.score(question, [images[place] for place in places])
            for place, row in zip(places, found, strict=True):
                rows[place] = row
        return rows

    def variety(self, images: Pictures) -> float | None:
        return None

    def _asks(self, member: Member) -> list[tuple[Ask, int]]:
        wanted, name = self.study.pictures, member.class_name
        scenes = [ask for ask in asks_for("dreambench", name) if ask.kind == "scene"]
        asks = [(Ask("a photo of {token} {class}", "subject"), wanted.subject)]
        asks += [(ask, wanted.state) for ask in asks_for("attributes", name)]
        asks += [(ask, wanted.scene) for ask in scenes]
        asks += [(ask, wanted.applications) for ask in asks_for("applications", name)
                 if ask.kind != "scene"]  # fmt: skip
        asks += [(Ask("a photo of a {class}", "class"), wanted.class_)]
        return [(ask, count) for ask, count in asks if count]


class _Pinned:
    """An identity encoder that embeds one list of pictures once, however often it is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._pinned: tuple[Any, np.ndarray] = (None, np.zeros(0))

    def pin(self, images: Pictures) -> np.ndarray:
        """Embed these, and remember them until the next call."""
        self._pinned = (images, self.inner.embed(images))
        return self._pinned[1]

    def embed(self, images: Pictures) -> np.ndarray:
        found: np.ndarray = self._pinned[1]
        return found if images is self._pinned[0] else self.inner.embed(images)


def _seed(*key: str | int) -> int:
    return key_to_int(*key) % SEED_LIMIT


def _filled(template: str, token: str, word: str) -> str:
    text = template.replace("{token}", token).replace("{class}", word)
    return " ".join(text.split())


def _read(path: Path) -> Image.Image:
    limits = DataConfig()
    return read_photo(path.read_bytes(), max_pixels=limits.max_pixels, resolution=32).image
