"""A recipe and settled settings as a list of arms: configurations, rungs, photos, prompts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dreamfleet.config import RunConfig, load_config
from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.evaluation.protocols import asks_for
from dreamfleet.evaluation.protocols.protocol import protocol_file
from dreamfleet.evaluation.studies.recipe import BASE, ArmSpec, Pictures, Study
from dreamfleet.evaluation.studies.settings import Settings
from dreamfleet.evaluation.world_metrics import Request
from dreamfleet.evaluation.worldbench.plan import HOST_OVERRIDES
from dreamfleet.seeding import numpy_generator
from dreamfleet.world.captions import VIEW_PHRASES
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import (
    SUBJECT_CLASSES,
    SUBJECT_COUNTS,
    Subject,
    benchmark_photo,
    subjects,
)
from dreamfleet.world.styles import STYLES

POOL = 96  # development identities that studies of some classes are filled from
OFF = ("sude.preset", "sude.weight", "sude.teacher", "sude.weighting", "sude.truncation_point")


@dataclass(frozen=True)
class PlannedArm:
    """One arm on one host.

    Attributes:
        name, host: as in tables.
        config: with gaps for the base and the subject; None: the bare base.
        rungs: steps at which it is read, rising; (0,) for the bare base.
        factors: the same as multiples of the host's N.
        photos, prop, noun: as in `ArmSpec`.
    """

    name: str
    host: str
    config: RunConfig | None
    rungs: tuple[int, ...]
    factors: tuple[float, ...]
    photos: int = 1
    prop: bool = False
    noun: str = "right"

    @property
    def packs(self) -> bool:
        """Whether it can share an engine with others."""
        return self.config is not None and self.config.train.mode == "lora"


BARE = PlannedArm(BASE, BASE, None, (0,), (0.0,))


def planned_arms(
    study: Study, settings: Settings, overrides: Mapping[str, Any] | None = None
) -> list[PlannedArm]:
    """Every arm on every host, without the bare base; arms whose host has no chosen setting are
    left out.

    Args:
        overrides: laid over all arms, e.g. {"train.mixed_precision": "bf16"}.

    Raises:
        BadInputError: the settings file does not say yet what the study needs.
        ConfigError: an arm's configuration is wrong.
    """
    hosts = settings.diseased() if study.hosts == "diseased" else list(study.hosts)
    arms = []
    for host in hosts:
        rungs = rungs_of(study, settings, host)
        if len(set(rungs)) < len(rungs):
            raise ConfigError(
                f"study {study.study}: rungs {study.rungs} of N = {settings.steps(host)} are "
                f"{list(rungs)} steps; expected different ones"
            )
        for spec in study.arms:
            config = arm_config(spec, host, settings, overrides or {})
            if config is not None:
                arms.append(
                    PlannedArm(spec.name, host, config, rungs, tuple(study.rungs), spec.photos,
                               spec.prop, spec.noun)
                )  # fmt: skip
    return arms


def rungs_of(study: Study, settings: Settings, host: str) -> tuple[int, ...]:
    """Steps at which runs of a host are read."""
    return tuple(max(1, round(settings.steps(host) * factor)) for factor in study.rungs)


def arm_config(
    spec: ArmSpec, host: str, settings: Settings, common: Mapping[str, Any]
) -> RunConfig | None:
    """An arm's configuration on a host, with gaps for base and subject; None: it asks for the
    chosen setting, and none kept the likeness.
    """
    sude: Mapping[str, Any] | None = {}
    if spec.sude == "chosen":
        sude = settings.chosen(host)
    elif spec.sude != "none":
        sude = {"sude.preset": spec.sude}
    if sude is None:
        return None
    unknown = [key for key in sude if key not in OFF]
    if unknown:
        raise BadInputError(f"{settings.path}: sude.{host}: unknown key {unknown[0]!r}")
    config = load_config(overrides={**HOST_OVERRIDES[host], **sude, **spec.set, **common})
    config.sude.weight = config.sude.weight * spec.weight_factor
    if config.train.lr_scheduler != "constant":
        raise ConfigError("train.lr_scheduler: a run is read at several steps; expected constant")
    return config


def training_key(parts: Mapping[str, Any], config: RunConfig | None) -> str:
    """Names a training: equal keys make equal weights at every step.

    Args:
        parts: base, photos, prompts, prior set: all beside the configuration.
        config: resolved; its number of steps plays no part, since the rate is constant.
    """
    tree: dict[str, Any] = {}
    if config is not None:
        tree = config.model_dump(
            mode="json",
            include={"base_model", "method", "subject", "sude", "prior", "train", "data"},
        )
        del tree["train"]["max_train_steps"], tree["subject"]["images"]
        if config.sude.weight == 0:
            tree["sude"] = {}
        if not config.prior.with_prior_preservation:
            tree["prior"] = {}
    text = json.dumps([dict(parts), tree], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def study_subjects(study: Study) -> list[Subject]:
    """The study's subjects of the drawn world.

    Raises:
        BadInputError: more than the split has.
    """
    most = POOL if study.split == "D" and study.classes else SUBJECT_COUNTS[study.split]
    pool = subjects(study.split, most)
    chosen = [s for s in pool if not study.classes or s.class_name in study.classes]
    if len(chosen) < study.subjects:
        raise BadInputError(
            f"study {study.study}: {study.subjects} subjects, and split {study.split} has "
            f"{len(chosen)}{' of these classes' if study.classes else ''}; give fewer"
        )
    return chosen[: study.subjects]


def selection_states(
    subject: Subject, count: int, scored: Mapping[str, Sequence[str]] | None
) -> list[str]:
    """States that a subject's sweeps are judged by: drawn by lot from the scored ones that its
    photo does not show, at most half of them, so that as many are left to score.
    """
    photo, name = benchmark_photo(subject), subject.class_name
    states = [s.name for s in CLASSES[name].states if s.name != photo.state]
    known = [s for s in states if scored is None or s in scored.get(name, ())]
    lots = numpy_generator("selection states", name, subject.identity_seed)
    order = [known[i] for i in lots.permutation(len(known))]
    return order[: min(count, -(-len(order) // 2))]


# Prompts


def noun_of(class_name: str, noun: str) -> str:
    """The class noun that an arm's prompts use: the right one, that of the next class in the
    benchmark's order, or none.
    """
    if noun == "wrong":
        place = SUBJECT_CLASSES.index(class_name)
        return SUBJECT_CLASSES[(place + 1) % len(SUBJECT_CLASSES)]
    return class_name if noun == "right" else ""


def world_requests(
    subject: Subject, photos: Sequence[ImageSpec], pictures: Pictures, token: str, noun: str
) -> list[tuple[Request, int]]:
    """What is asked of a subject, and how many pictures of each; what a photo shows is not asked.

    Words are the protocol's frozen ones, with the arm's noun in the class's place.
    """
    name, table = subject.class_name, protocol_file("worldbench")
    word = noun_of(name, noun)

    def filled(template: str) -> str:
        text = template.replace("{token}", token).replace("{class}", name)
        return _with_noun(text, name, word)

    shown_states = {photo.state for photo in photos}
    shown_scenes = {photo.scene for photo in photos}
    states = {s: t for s, t in table["states"][name].items() if s not in shown_states}
    scenes = {s: t for s, t in table["scenes"].items() if s not in shown_scenes}
    found = [(Request(filled(table["subject_prompt"]), "subject"), pictures.subject)]
    found += [
        (Request(filled(text), "state", state=state, name=state), pictures.state)
        for state, text in states.items()
    ]
    found += [
        (Request(filled(text), "scene", scene=scene, name=scene), pictures.scene)
        for scene, text in scenes.items()
    ]
    plain = table["subject_prompt"]
    for (state, text), (scene, placed) in zip(states.items(), scenes.items(), strict=False):
        both = Request(filled(text + placed.removeprefix(plain)), "combined", state, scene,
                       name=f"{state}, {scene}")  # fmt: skip
        found.append((both, pictures.combined))
    if pictures.applications:
        applied = _applications(subject, shown_states, shown_scenes, filled)
        found += [(own, pictures.applications) for own in applied]
    if word:
        found.append((Request(filled(table["class_prompt"]), "class"), pictures.class_))
    return [(request, count) for request, count in found if count]


def _applications(
    subject: Subject, shown_states: set[str], shown_scenes: set[str], filled: Any
) -> list[Request]:
    """DreamBooth's applications in the world's words, with what an oracle can read of them."""
    name, table = subject.class_name, protocol_file("worldbench")
    found = []
    for ask in asks_for("applications", name, world=True):
        text = ask.prompt
        states = [s for s, t in table["states"][name].items()
                  if t == text.replace("{class}", name)]  # fmt: skip
        scenes = [s for s, t in table["scenes"].items() if t == text]
        views = [v for v, phrase in VIEW_PHRASES.items() if text.endswith(phrase)]
        styles = [s for s, own in STYLES.items() if own.before and text.startswith(own.before)]
        if shown_states & set(states) or shown_scenes & set(scenes):
            continue
        if views and views[0] not in CLASSES[name].views:
            continue
        state, scene, view, style = (
            next(iter(own), None) for own in (states, scenes, views, styles)
        )
        found.append(Request(filled(text), "application", state, scene, view, style, name=ask.name))
    return found


def _with_noun(text: str, class_name: str, noun: str) -> str:
    if noun == class_name:
        return text
    return " ".join(re.sub(rf"\b{re.escape(class_name)}\b", noun, text).split())
