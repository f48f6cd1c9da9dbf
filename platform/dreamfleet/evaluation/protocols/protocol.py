"""Prompts of a protocol for a class word."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from dreamfleet.errors import BadInputError

PROTOCOLS = ("dreambench", "attributes", "applications", "worldbench")
ADAPTER_PROTOCOLS = ("attributes", "dreambench", "applications")  # fit any adapter


@dataclass(frozen=True)
class Ask:
    """One prompt and what it asks for.

    Attributes:
        prompt: template with {token} and {class}.
        kind: scene, state (an attribute), outfit, property, view, style, material, crossing; or
            class: no identifier in it, shows what became of the class.
        name: the attribute, scene or group in a word.
        state, scene: what an oracle of the drawn world should see, where it can.
    """

    prompt: str
    kind: str
    name: str = ""
    state: str | None = None
    scene: str | None = None


def asks_for(protocol: str, class_word: str, *, world: bool = False) -> list[Ask]:
    """The prompts for a class word.

    Args:
        protocol: dreambench, attributes or applications.
        class_word: decides between object and living thing, and the attributes.
        world: the base knows the drawn world and nothing else: attributes and applications are
            asked in its words. DreamBench's prompts stay as published.

    Raises:
        BadInputError: no such protocol, or a class word that it has no attributes for.
    """
    makers = {"dreambench": _dreambench, "attributes": _attributes, "applications": _applications}
    if protocol not in makers:
        raise BadInputError(
            f"protocol {protocol!r}: expected one of {', '.join(ADAPTER_PROTOCOLS)}"
        )
    return makers[protocol](class_word.strip().lower(), world)


def images_per_prompt(protocol: str) -> int:
    """How many pictures of each prompt the protocol asks for."""
    return int(protocol_file(protocol)["images_per_prompt"])


def prompts_hash(protocol: str) -> str:
    """SHA-256 of the protocol's file: what is frozen."""
    return hashlib.sha256(_text(protocol).encode()).hexdigest()


@functools.cache
def protocol_file(protocol: str) -> Mapping[str, Any]:
    """The data file as it is."""
    loaded: Mapping[str, Any] = yaml.safe_load(_text(protocol))
    return loaded


def _text(protocol: str) -> str:
    if protocol not in PROTOCOLS:
        raise BadInputError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    folder = resources.files("dreamfleet.evaluation.protocols") / "prompts"
    return (folder / f"{protocol}.yaml").read_text(encoding="utf-8")


def is_live(class_word: str) -> bool:
    """Whether DreamBench's prompts for animals are asked: its own classes are as it says (a stuffed
    animal is an object), others as for applications.
    """
    table = protocol_file("dreambench")
    own_classes = set(table["subjects"].values())
    named = table if class_word in own_classes else protocol_file("applications")
    return class_word in named["live_classes"]


def _dreambench(class_word: str, world: bool) -> list[Ask]:
    prompts = protocol_file("dreambench")["prompts"]
    own = ("live_outfits", "outfit") if is_live(class_word) else ("object_scenes", "scene")
    kinds = (("scenes", "scene"), own, ("properties", "property"))
    return [
        Ask(text, kind, text.replace("{token} {class}", "…"))
        for section, kind in kinds
        for text in prompts[section]
    ]


def _attributes(class_word: str, world: bool) -> list[Ask]:
    table = protocol_file("attributes")
    if not world:
        texts = table["photographs"].get(class_word, table["other"])
        return [Ask(text, "state", name) for name, text in texts.items()]
    states = protocol_file("worldbench")["states"]
    if class_word not in table["world"]:
        raise BadInputError(
            f"protocol attributes: the embedded base's world has no class {class_word!r}; it has "
            f"{', '.join(table['world'])} (dreambench asks any class)"
        )
    return [
        Ask(states[class_word][name], "state", name, state=name)
        for name in table["world"][class_word]
    ]


def _applications(class_word: str, world: bool) -> list[Ask]:
    table = protocol_file("applications")
    kinds = {
        "recontextualisation": "scene",
        "views": "view",
        "art_styles": "style",
        "materials": "material",
        "species_crossing": "crossing",
    }
    return [
        Ask(text, kinds[group], group)
        for group, texts in table["world_groups" if world else "groups"].items()
        if group != "species_crossing" or class_word in table["live_classes"]
        for text in texts
        if text.split()[-1] != class_word  # a cross of a fox and a fox is none
    ]
