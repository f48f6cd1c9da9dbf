"""Which pictures show what an adapter can do: the subject as it is, in other scenes, in other
states.
"""

from __future__ import annotations

from dreamfleet.config import RunConfig
from dreamfleet.data.subjects import fill_prompt

SUBJECT = "{token} {class}"
# For bases of photographs: DreamBench's prompts for objects (arXiv 2208.12242), three scenes and
# three changes.
GENERAL = (
    "a photo of {token} {class} in the snow",
    "a photo of {token} {class} on the beach",
    "a photo of {token} {class} in the jungle",
    "a photo of a red {token} {class}",
    "a photo of a wet {token} {class}",
    "a watercolor painting of {token} {class}",
)
SCENES = 3
STATES = 3


def sample_prompts(config: RunConfig) -> list[str]:
    """The user's own prompts, else the instance prompt followed by scenes and states that the base
    knows of the class.
    """
    own = config.sampling.validation_prompts
    if own:
        return [fill_prompt(prompt, config) for prompt in own]
    templates = (
        world_templates(config.subject.class_word) if config.base_model == "embedded" else []
    )
    templates = [config.subject.instance_prompt, *(templates or GENERAL)]
    return list(dict.fromkeys(fill_prompt(template, config) for template in templates))


def world_templates(class_word: str) -> list[str]:
    """Scenes and states of a class of the embedded base's world; none for a word that it does not
    know.
    """
    from dreamfleet import world

    known = world.CLASSES.get(class_word.strip().lower())
    if known is None:
        return []
    scenes = [name for name in world.SCENES if "plain" not in name][:SCENES]
    states = [state.name for state in known.states[1 : 1 + STATES]]
    return [
        *(world.prompt(known.name, token="{token}", scene=scene) for scene in scenes),
        *(world.prompt(known.name, token="{token}", state=state) for state in states),
    ]
