"""Which pictures a trial is judged by: states and scenes in turn, the same for all trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dreamfleet.config import RunConfig
from dreamfleet.data.subjects import fill_prompt
from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.evaluation.protocols import Ask, asks_for
from dreamfleet.evaluation.protocols.protocol import protocol_file
from dreamfleet.seeding import key_to_int

SEED_LIMIT = 2**31
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Shot:
    """One picture to draw.

    Attributes:
        prompt: filled in.
        kind: "state" counts for alignment, "scene" for fidelity, "subject" for neither.
        seed: of the first noise; the same for all trials.
        state, scene: what an oracle should see.
    """

    prompt: str
    kind: str
    seed: int
    state: str | None = None
    scene: str | None = None

    @property
    def name(self) -> str:
        """Tells it from all others."""
        return f"{self.prompt} / {self.seed}"


def shots(config: RunConfig, count: int) -> list[Shot]:
    """`count` pictures, states and scenes in turn; fewer are a beginning of more.

    Raises:
        BadInputError: nothing is known to ask of the class.
        ConfigError: a state of `tune.states` that the class does not have.
    """
    states, scenes = _states(config), _scenes(config)
    found = []
    for index in range(count):
        asks, number = (scenes, index // 2) if index % 2 else (states, index // 2)
        found.append(_shot(asks[number % len(asks)], config, number // len(asks)))
    return found


def subject_shots(config: RunConfig, count: int) -> list[Shot]:
    """Pictures of the training prompt, to look at."""
    ask = Ask(config.subject.instance_prompt, "subject")
    return [_shot(ask, config, number) for number in range(count)]


def _shot(ask: Ask, config: RunConfig, number: int) -> Shot:
    prompt = fill_prompt(ask.prompt, config)
    seed = key_to_int("tune", prompt, number) % SEED_LIMIT
    return Shot(prompt, ask.kind, seed, ask.state, ask.scene)


def _states(config: RunConfig) -> list[Ask]:
    world = config.base_model == EMBEDDED
    known = asks_for("attributes", config.subject.class_word, world=world)
    wanted = config.tune.states
    if not wanted:
        return known
    table: dict[str, Ask] = {ask.name: ask for ask in known}
    if world:
        class_word = config.subject.class_word.strip().lower()
        texts: dict[str, str] = protocol_file("worldbench")["states"][class_word]
        table = {name: Ask(text, "state", name, state=name) for name, text in texts.items()}
    missing = [name for name in wanted if name not in table]
    if missing:
        raise ConfigError(
            f"tune.states: {missing[0]!r} is not asked of {config.subject.class_word}; expected "
            f"some of {', '.join(table)}"
        )
    return [table[name] for name in wanted]


def _scenes(config: RunConfig) -> list[Ask]:
    if config.base_model == EMBEDDED:
        texts = protocol_file("worldbench")["scenes"]
        return [Ask(text, "scene", name, scene=name) for name, text in texts.items()]
    asks = asks_for("dreambench", config.subject.class_word)
    scenes = [ask for ask in asks if ask.kind == "scene"]
    if not scenes:
        raise BadInputError(f"no scene prompts for class word {config.subject.class_word!r}")
    return scenes


def plain(found: Sequence[Shot]) -> list[dict[str, Any]]:
    """As plain values, for a fingerprint."""
    return [vars(shot) for shot in found]
