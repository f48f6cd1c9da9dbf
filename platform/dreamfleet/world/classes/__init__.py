"""The twelve kinds of subject, by class word."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dreamfleet.world.classes import (
    backpack,
    bird,
    bowl,
    candle,
    car,
    cat,
    dog,
    dog_house,
    fox,
    robot,
    teapot,
    vase,
)
from dreamfleet.world.spec import WorldClass

_MODULES = (
    dog, cat, fox, bird, teapot, vase, candle, bowl, backpack, robot, car, dog_house,
)  # fmt: skip

CLASSES: Mapping[str, WorldClass] = MappingProxyType(
    {module.CLASS.name: module.CLASS for module in _MODULES}
)
