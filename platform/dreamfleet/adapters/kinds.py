"""What an engine knows of an adapter, of whichever kind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dreamfleet.adapters.bank import Site, SlotState
from dreamfleet.adapters.cross_attention_slots import (
    DELTA,
    FILE_NAME,
    TOKEN_ROWS,
    cross_attention_shape,
    read_cross_attention,
)
from dreamfleet.adapters.lora_slots import read_lora_slot, shape_of
from dreamfleet.bases import Base


class AdapterShape(Protocol):
    """All that decides which tensors an adapter of a kind has: `LoraShape`, `CrossAttentionShape`.

    Shapes of one kind are of one class; equal shapes are equal.
    """

    def sites(self, base: Base) -> Sequence[Site]:
        """Where adapters of this shape, or a smaller one, act."""
        ...

    def fresh(self, base: Base, seed: int) -> SlotState:
        """What training begins with."""
        ...

    def joined(self, other: Any) -> AdapterShape:
        """The smallest shape with room for this one and another of its kind."""
        ...

    def save(self, folder: str | Path, base: Base, state: SlotState) -> list[Path]:
        """Write an adapter of this shape; returns the files."""
        ...


Shapes = Mapping[type[AdapterShape], AdapterShape]  # at most one of each kind


def with_room_for(shapes: Shapes, *more: AdapterShape) -> Shapes:
    """The smallest shapes with room for all that fits `shapes`, and for `more`."""
    wanted = dict(shapes)
    for shape in more:
        kind = type(shape)
        wanted[kind] = wanted.get(kind, shape).joined(shape)
    return wanted


def sites_of(base: Base, shapes: Shapes) -> list[Site]:
    """The sites of all kinds: a slot of the bank holds an adapter of any of them."""
    return [site for shape in shapes.values() for site in shape.sites(base)]


def shapes_of(state: SlotState) -> list[AdapterShape]:
    """Shapes that have room for a slot's state: one of each kind that it has tensors of."""
    changed = {name for name in state.tensors if name.endswith(DELTA) or name == TOKEN_ROWS}
    shapes: list[AdapterShape] = [cross_attention_shape(state)] if changed else []
    return shapes if changed == set(state.tensors) else [*shapes, shape_of(state)]


def read_slot(base: Base, source: str | Path) -> SlotState:
    """The adapter in a folder or file.

    Raises:
        AdapterFileError: it is damaged or not for this base.
    """
    if (Path(source) / FILE_NAME).is_file():
        return read_cross_attention(source)
    return read_lora_slot(base, source)
