"""Words for pictures: training captions, in which anything may go unsaid, and exact prompts."""

from __future__ import annotations

import functools

import numpy as np

from dreamfleet.world.classes import CLASSES
from dreamfleet.world.palette import COLOUR_NAMES
from dreamfleet.world.render import identity_traits, lookup
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec, Traits, WorldClass
from dreamfleet.world.styles import STYLES

# Words that mean nothing, seen in training so that their embedding rows are not untouched noise.
RARE_TOKENS = (
    "sks", "zwx", "vqk", "pxj", "bnq", "xjy", "qvz", "krv", "tgq",
    "wzf", "jkd", "hvx", "mqp", "lzt", "fyb", "ncj", "rgw", "dxu",
)  # fmt: skip

VIEW_PHRASES = {
    "side": "seen from the side",
    "front": "seen from the front",
    "back": "seen from the back",
}

TEMPLATES = ("a photo of {}", "photo of {}", "a picture of {}", "an image of {}", "{}")
TEMPLATE_SHARES = (0.5, 0.14, 0.12, 0.08, 0.16)

EMPTY_SHARE = 0.10
TOKEN_SHARE = 0.05
STATE_SHARE = 0.55
SCENE_SHARE = 0.55
COLOUR_SHARE = 0.30
PATTERN_SHARE = 0.30
VIEW_SHARE = 0.60  # of pictures not from the side
SIDE_VIEW_SHARE = 0.15

_PATTERN_SAMPLES = 64  # identities looked at to collect a class's pattern words


def article(words: str) -> str:
    """`words` with the right one of "a" and "an" before it."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def caption(
    spec: ImageSpec,
    traits: Traits,
    rng: np.random.Generator,
    *,
    state_share: float = STATE_SHARE,
) -> str:
    """A training caption of `spec`: true, but mostly not the whole truth; empty in one of ten.

    `state_share` of the captions that are not empty name the state.
    """
    world_class = lookup("class", spec.class_name, CLASSES)
    empty, tokened, stated, placed, coloured, patterned, viewed = rng.random(7)
    token = str(rng.choice(RARE_TOKENS))
    template = str(rng.choice(TEMPLATES, p=TEMPLATE_SHARES))
    if empty < EMPTY_SHARE:
        return ""
    adjectives = []
    if patterned < PATTERN_SHARE and traits["pattern"] != "plain":
        adjectives.append(str(traits["pattern"]))
    if coloured < COLOUR_SHARE:
        adjectives.append(str(traits["colour_name"]))
    phrase = noun_phrase(
        world_class,
        token=token if tokened < TOKEN_SHARE else None,
        state=spec.state if stated < state_share else None,
        adjectives=adjectives,
        view=spec.view if viewed < _view_share(world_class, spec.view) else None,
        scene=spec.scene if placed < SCENE_SHARE else None,
    )
    return _styled(phrase, spec.style, template)


def full_caption(spec: ImageSpec, traits: Traits) -> str:
    """Everything that can be said of `spec`: for contrastive models and retrieval."""
    world_class = lookup("class", spec.class_name, CLASSES)
    pattern = [] if traits["pattern"] == "plain" else [str(traits["pattern"])]
    phrase = noun_phrase(
        world_class,
        state=spec.state,
        adjectives=[*pattern, str(traits["colour_name"])],
        view=spec.view if spec.view != "side" else None,
        scene=spec.scene,
    )
    return _styled(phrase, spec.style, TEMPLATES[0])


def prompt(
    class_name: str,
    *,
    token: str | None = None,
    state: str | None = None,
    scene: str | None = None,
    view: str | None = None,
    style: str = "photo",
    template: str = "a photo of {}",
) -> str:
    """An exact prompt, e.g. "a photo of sks dog in the snow"; a style replaces the template."""
    world_class = lookup("class", class_name, CLASSES)
    phrase = noun_phrase(world_class, token=token, state=state, view=view, scene=scene)
    return _styled(phrase, style, template)


def noun_phrase(
    world_class: WorldClass,
    *,
    token: str | None = None,
    state: str | None = None,
    adjectives: list[str] | None = None,
    view: str | None = None,
    scene: str | None = None,
) -> str:
    """The subject in words; the token, where given, stands in the article's place."""
    noun = " ".join([*(adjectives or []), world_class.name])
    if state is not None:
        states = {entry.name: entry for entry in world_class.states}
        noun = lookup(f"state of {world_class.name}", state, states).phrase(noun)
    words = [article(noun) if token is None else f"{token} {noun}"]
    if view is not None:
        words.append(lookup("view", view, VIEW_PHRASES))
    if scene is not None:
        words.append(lookup("scene", scene, SCENES).phrase)
    return " ".join(words)


@functools.cache
def pattern_words(class_name: str) -> tuple[str, ...]:
    """The pattern words of a class, sorted, "plain" among them where the class has it."""
    seeds = range(_PATTERN_SAMPLES)
    return tuple(sorted({str(identity_traits(class_name, seed)["pattern"]) for seed in seeds}))


@functools.cache
def vocabulary_words() -> tuple[str, ...]:
    """Every word (lower case, split at blanks) that a caption or a prompt can hold, sorted."""
    texts = [*RARE_TOKENS, *VIEW_PHRASES.values(), *COLOUR_NAMES, "a an"]
    texts += [template.replace("{}", "") for template in TEMPLATES]
    texts += [scene.phrase for scene in SCENES.values()]
    texts += [style.before for style in STYLES.values()]
    for world_class in CLASSES.values():
        texts += [state.phrase(world_class.name) for state in world_class.states]
        texts += pattern_words(world_class.name)
    return tuple(sorted({word for text in texts for word in text.lower().split()}))


def _view_share(world_class: WorldClass, view: str) -> float:
    if len(world_class.views) == 1:
        return 0.0  # nothing to tell apart
    return SIDE_VIEW_SHARE if view == "side" else VIEW_SHARE


def _styled(phrase: str, style: str, template: str) -> str:
    before = lookup("style", style, STYLES).before
    return f"{before} {phrase}" if before else template.format(phrase)
