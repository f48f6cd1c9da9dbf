"""What a WorldBench run does: subjects, hosts, prompts, seeds. All of it is fixed before training.

A benchmark photo shows a state and a scene; both are absent from the scoring prompts, and the
personalisation prompt names neither (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dreamfleet.config import RunConfig, load_config
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.protocols.protocol import protocol_file
from dreamfleet.evaluation.world_metrics import Request
from dreamfleet.seeding import key_to_int
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import Subject, subjects

BASE_HOST = "base"  # the bare base under the same prompts and noise
SEED_LIMIT = 2**31

_PRIOR = {"prior.with_prior_preservation": True, "prior.weight": 1.0}
_TEACHER_PRIOR = {
    **_PRIOR,
    "prior.form": "teacher",
    "prior.weight": 3.0,
    "train.train_batch_size": 2,
    "train.learning_rate": 5e-4,
}
_FULL = {"train.mode": "full", "train.train_text_encoder": True}
HOST_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "lora": {"train.mode": "lora"},
    "lora-prior": {"train.mode": "lora", **_PRIOR},
    # What personalising the embedded base wants (pipelines/recipes/lora_teacher_prior.yaml); the
    # protocol's hosts are the other four.
    "lora-teacher": {"train.mode": "lora", **_TEACHER_PRIOR},
    "full": _FULL,
    "full-prior": {**_FULL, **_PRIOR},
}


@dataclass(frozen=True)
class Host:
    """A way of training: a name (a folder's, too) and a configuration with gaps for the base."""

    name: str
    config: RunConfig


@dataclass(frozen=True)
class BenchSettings:
    """All that decides a run's numbers beside base, hosts and evaluators.

    Attributes:
        split: D, C, T or R.
        num_subjects, first_subject: subjects first .. first + num - 1 of the split.
        steps: training steps at which every run is read, rising.
        images_per_prompt: pictures of each prompt.
        class_images: pictures of "photo of a {class}", without identifier (0: none).
        num_inference_steps, guidance_scale, scheduler: sampling; guidance None: the base's own.
        token: identifier.
        training_seed: of the training runs; sampling noise does not depend on it.
        num_class_images: size of prior sets.
    """

    split: str = "D"
    num_subjects: int = 4
    first_subject: int = 0
    steps: tuple[int, ...] = (200, 400, 800, 1600)
    images_per_prompt: int = 4
    class_images: int = 12
    num_inference_steps: int = 25
    guidance_scale: float | None = None
    scheduler: str = "ddim"
    token: str = "sks"
    training_seed: int = 0
    num_class_images: int = 50

    def __post_init__(self) -> None:
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise BadInputError(
                f"steps {list(self.steps)}: expected rising numbers from 1, e.g. 200 400"
            )
        for name in ("num_subjects", "images_per_prompt", "num_inference_steps"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} = {getattr(self, name)}: expected 1 or more")
        if self.first_subject < 0 or self.class_images < 0 or self.class_images == 1:
            raise BadInputError(
                f"first_subject = {self.first_subject}, class_images = {self.class_images}: "
                "expected 0 or more, and not one single class image (diversity is between pictures)"
            )

    def subjects(self) -> tuple[Subject, ...]:
        """The chosen subjects of the split."""
        return subjects(self.split, self.first_subject + self.num_subjects)[self.first_subject :]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    request: Request
    seed: int
    index: int = field(default=0)  # among the pictures of its prompt


def named_hosts(names: Sequence[str]) -> list[Host]:
    """Hosts by name.

    Raises:
        BadInputError: no such host.
    """
    unknown = [name for name in names if name not in HOST_OVERRIDES]
    if unknown or not names:
        raise BadInputError(
            f"hosts {list(names)}: expected some of {', '.join(HOST_OVERRIDES)}; not {unknown}"
        )
    return [Host(name, load_config(overrides=HOST_OVERRIDES[name])) for name in names]


def requests_for(subject: Subject, photo: ImageSpec, token: str) -> list[Request]:
    """The prompts of a subject: itself, every other state, every other scene, and its class.

    The words come from the protocol's file, which is frozen, and not from today's captions.
    """
    table, name = protocol_file("worldbench"), subject.class_name

    def filled(template: str) -> str:
        return template.replace("{token}", token).replace("{class}", name)

    states = [(s, text) for s, text in table["states"][name].items() if s != photo.state]
    scenes = [(s, text) for s, text in table["scenes"].items() if s != photo.scene]
    return [
        Request(filled(table["subject_prompt"]), "subject"),
        *(Request(filled(text), "state", state=state) for state, text in states),
        *(Request(filled(text), "scene", scene=scene) for scene, text in scenes),
        Request(filled(table["class_prompt"]), "class"),
    ]


def jobs_for(subject: Subject, photo: ImageSpec, settings: BenchSettings) -> list[Job]:
    """Every picture of one rung. Seeds depend on subject, prompt and index only: all hosts, steps
    and training seeds start from the same noise.
    """
    jobs = []
    for request in requests_for(subject, photo, settings.token):
        is_class = request.kind == "class"
        count = settings.class_images if is_class else settings.images_per_prompt
        for index in range(count):
            jobs.append(Job(request, picture_seed(subject, request, index), index))
    return jobs


def picture_seed(subject: Subject, request: Request, index: int) -> int:
    """The starting noise of a picture: the same in all arms, rungs and training seeds."""
    return key_to_int("worldbench", subject.subject_id, request.prompt, index) % SEED_LIMIT
