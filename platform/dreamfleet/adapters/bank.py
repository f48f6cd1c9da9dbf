"""Many adapters on one frozen base: slots, and which rows of a batch use which.

Shapes: S slots, P numbers of one slot, B rows of a batch, G groups of equal size that the rows
fall into, K adapters at one group, U different slots in use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dreamfleet.errors import CapacityError, ConfigError

Adapters = Sequence[tuple[int, float]]  # (slot, strength); empty: the bare base
MAX_CACHED_ROUTINGS = 8


@dataclass(frozen=True)
class Part:
    """One tensor that an adapter has at a site; `shape` is the largest that a slot can hold."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


class Site(Protocol):
    """A layer of the base, and what an adapter does to its output there."""

    @property
    def name(self) -> str:
        """Unlike that of any other site of a bank."""
        ...

    @property
    def module(self) -> nn.Module: ...

    @property
    def parts(self) -> tuple[Part, ...]: ...

    def change(self, x: Tensor, output: Tensor, routing: Routing) -> Tensor:
        """The layer's output for input `x` with the routed adapters' change in it."""
        ...


@dataclass(frozen=True)
class SlotState:
    """An adapter as it is outside the bank.

    Attributes:
        tensors: by part name, unpadded; sites that the adapter leaves alone are missing.
        scales: by site name what multiplies the change there (LoRA: alpha / rank); missing: 1.
        notes: what a kind needs beside numbers, e.g. token ids by part name.
    """

    tensors: Mapping[str, Tensor]
    scales: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Slot:
    shapes: dict[str, tuple[int, ...]]
    scales: Mapping[str, float]
    notes: Mapping[str, Any]


class AdapterBank:
    """`max_slots` adapters on one base, whose modules are not changed (forward hooks).

    Outside `routed` the base is bare. The numbers of all slots lie in one tensor [S + 1, P] fp32,
    padded with zeros to the largest shapes; the last row stays zero and stands for the bare base.

    Args:
        sites: where adapters act, of one kind or several, e.g. `lora_sites(base, ...)`. An adapter
            that has no tensors at a site has no effect there and gets no gradient.
        max_slots: adapters held at once; a GPU's memory is taken for all of them here, a CPU's as
            slots are used.
        device: where the base is.
    """

    def __init__(self, sites: Sequence[Site], max_slots: int, device: torch.device | str) -> None:
        self.sites, self.max_slots = list(sites), max_slots
        self._spans: dict[str, tuple[int, Part]] = {}
        offset = 0
        for part in (part for site in self.sites for part in site.parts):
            self._spans[part.name] = (offset, part)
            offset += part.size
        self.slot_size = offset
        self._values = torch.zeros(max_slots + 1, offset, device=device)  # [S + 1, P]
        self._gradients: Tensor | None = None  # [S, P], once something trains
        self._slots: dict[int, _Slot] = {}
        self._claimed: set[int] = set()
        self._routing: Routing | None = None
        self._routings: dict[Any, Routing] = {}
        self._hooks = [site.module.register_forward_hook(self._hook(site)) for site in self.sites]

    @property
    def device(self) -> torch.device:
        return self._values.device

    @property
    def used(self) -> int:
        """Slots that are taken."""
        return len(self._claimed)

    def has_part(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor `name` of this shape finds room."""
        if name not in self._spans:
            return False
        largest = self._spans[name][1].shape
        return len(shape) == len(largest) and all(
            a <= b for a, b in zip(shape, largest, strict=True)
        )

    def claim(self, slot: int | None = None) -> int:
        """Take a free slot: the one asked for, else the lowest (neighbours in memory need no
        gathering).

        Raises:
            CapacityError: it is taken, or all `max_slots` are.
        """
        wanted = range(self.max_slots) if slot is None else (slot,)
        free = next((own for own in wanted if own not in self._claimed), None)
        if free is None:
            raise CapacityError(
                f"all {self.max_slots} adapter slots are taken; release one, wait for one, or "
                "raise max_slots"
            )
        self._claimed.add(free)
        return free

    def assign(self, slot: int, state: SlotState) -> None:
        """Put an adapter into a claimed slot, in place of what is there.

        Raises:
            ConfigError: a tensor belongs to no site, or is larger than its place.
        """
        self._check(state)
        row = self._row(slot).zero_()
        with torch.no_grad():
            for name, tensor in state.tensors.items():
                self._corner(row, name, tensor.shape).copy_(tensor)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
        self._slots[slot] = _Slot(shapes, dict(state.scales), dict(state.notes))
        self._routings.clear()

    def export(self, slot: int) -> SlotState:
        """The adapter in a slot, bit for bit as it was assigned or trained; tensors are copies."""
        held = self._slots[slot]
        row = self._row(slot)
        tensors = {name: value.clone() for name, value in self.unpacked(slot, row).items()}
        return SlotState(tensors, dict(held.scales), dict(held.notes))

    def release(self, slot: int) -> None:
        """Give a slot back; its numbers are gone. A slot that is free already stays free."""
        if slot in self._claimed:
            self._row(slot).zero_()
            self._claimed.discard(slot)
            self._slots.pop(slot, None)
            self._routings.clear()

    def parameter(self, slot: int) -> nn.Parameter:
        """All numbers of a slot as one trainable tensor [P] in the bank's own memory.

        Padding gets no gradient, so AdamW leaves it at zero.
        """
        return nn.Parameter(self._row(slot))

    def gradient(self, slot: int) -> Tensor:
        """[P], where backward passes add up for a slot."""
        if self._gradients is None:
            self._gradients = torch.zeros_like(self._values[:-1])
        return self._gradients[slot]

    def unpacked(self, slot: int, flat: Tensor) -> dict[str, Tensor]:
        """Views of a [P] tensor (parameter, gradient or AdamW moment) by part name, unpadded."""
        shapes = self._slots[slot].shapes
        return {name: self._corner(flat, name, shape) for name, shape in shapes.items()}

    def packed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The [P] tensor of which `tensors` are the unpadded views."""
        flat = torch.zeros(self.slot_size, device=self.device)
        for name, tensor in tensors.items():
            self._corner(flat, name, tensor.shape).copy_(tensor)
        return flat

    @contextlib.contextmanager
    def routed(self, rows: Sequence[Adapters], *, trainable: bool = False) -> Iterator[None]:
        """Give the rows of the batches inside the block their adapters.

        Args:
            rows: per row the adapters that add up there; a single entry holds for batches of any
                size.
            trainable: backward passes add to `gradient(slot)`; each row then has one adapter.
        """
        routing = self._routing_of(rows, trainable)
        before, self._routing = self._routing, routing
        try:
            yield
            routing.collect()
        except BaseException:
            self._routings.clear()  # with half of a pass's gradients in them
            raise
        finally:
            self._routing = before

    def close(self) -> None:
        """Take the hooks off the base, and let the memory go once nobody holds the bank."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._routings.clear()  # they hold the bank, which holds them

    def changes(self, slot: int, prefix: str) -> bool:
        """Whether a slot's adapter has tensors in a component, by the begin of its name: `unet.`,
        or `text_encoder` for all text encoders.
        """
        return any(name.startswith(prefix) for name in self._slots[slot].shapes)

    def span(self, name: str) -> tuple[int, Part]:
        """Where a part lies in a slot's [P] numbers."""
        return self._spans[name]

    def stack(self, slots: Sequence[int]) -> Tensor:
        """[U, P] the numbers of several slots: a view where they are neighbours, else a copy."""
        if _are_neighbours(slots):
            return self._values[slots[0] : slots[-1] + 1]
        return self._values.index_select(0, torch.tensor(slots, device=self.device))

    def gradient_stack(self, slots: Sequence[int]) -> Tensor:
        """[U, P] a view of the gradients of neighbouring slots."""
        self.gradient(slots[0])
        assert self._gradients is not None
        return self._gradients[slots[0] : slots[-1] + 1]

    def _routing_of(self, rows: Sequence[Adapters], trainable: bool) -> Routing:
        key = (trainable, tuple(tuple(adapters) for adapters in rows))
        if key not in self._routings:
            while len(self._routings) >= MAX_CACHED_ROUTINGS:
                self._routings.pop(next(iter(self._routings)))
            self._routings[key] = Routing(self, rows, trainable=trainable)
        return self._routings[key]

    def _hook(self, site: Site) -> Any:
        def changed(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            routing = self._routing
            if routing is None or not routing.touches(site):
                return None
            routing.check(output.shape[0])
            return site.change(args[0], output, routing)

        return changed

    def _check(self, state: SlotState) -> None:
        for name, tensor in state.tensors.items():
            if not self.has_part(name, tensor.shape):
                room = self._spans[name][1].shape if name in self._spans else "no place"
                raise ConfigError(
                    f"adapter tensor {name} of shape {tuple(tensor.shape)}: the bank has {room} "
                    "for it; make the bank with more layers or a larger rank"
                )

    def _row(self, slot: int) -> Tensor:
        if slot not in self._claimed:
            raise ValueError(f"slot {slot} is not claimed")
        return self._values[slot]

    def _corner(self, flat: Tensor, name: str, shape: Sequence[int]) -> Tensor:
        offset, part = self._spans[name]
        block = flat[offset : offset + part.size].view(part.shape)
        return block[tuple(slice(0, length) for length in shape)]

    def touched(self) -> None:
        """Numbers were changed in place (a training step): copies of them are out of date."""
        self._routings = {key: kept for key, kept in self._routings.items() if kept.is_view}


class Routing:
    """Which adapters the groups of a batch use; tensors are gathered once and kept.

    Attributes:
        rows: B, or 1 for batches of any size.
        groups: G; the B rows are G equal runs.
        identity: the groups are the slots in use, in their order: nothing need be gathered.
    """

    def __init__(
        self, bank: AdapterBank, rows: Sequence[Adapters], *, trainable: bool = False
    ) -> None:
        self.bank, self.trainable = bank, trainable
        runs = _equal_runs([_active(adapters) for adapters in rows])
        self.rows, self.groups = len(rows), len(runs)
        width = max((len(adapters) for adapters in runs), default=0)
        bare = (bank.max_slots, 0.0)
        padded = [[*adapters, *[bare] * (width - len(adapters))] for adapters in runs]  # [G][K]
        self.slots = sorted({slot for adapters in padded for slot, _ in adapters})
        position = {slot: index for index, slot in enumerate(self.slots)}
        self._index = [[position[slot] for slot, _ in adapters] for adapters in padded]
        self._strengths = [[strength for _, strength in adapters] for adapters in padded]
        self.identity = self._index == [[u] for u in range(len(self.slots))]
        self._held = [bank._slots.get(slot) for slot in self.slots]
        self._stack = bank.stack(self.slots) if self.slots else None  # [U, P]
        self._gradients = self._gradient_stack() if trainable else None  # [U, P]
        self._leaves: dict[str, Tensor] = {}
        self._ready: dict[str, Any] = {}
        self._touched: dict[str, bool] = {}
        self._factors: dict[str, Tensor | None] = {}
        self._gather: Tensor | None = None  # [G, K]
        if trainable and width != 1:
            raise ValueError("rows that train have exactly one adapter each")

    @property
    def is_view(self) -> bool:
        """Whether everything here looks into the bank's own memory, so that it stays true."""
        return self.trainable and _are_neighbours(self.slots)

    def touches(self, site: Site) -> bool:
        """Whether any of the adapters acts at this site."""
        if site.name not in self._touched:
            self._touched[site.name] = any(_acts(held, site) for held in self._held)
        return self._touched[site.name]

    def check(self, rows: int) -> None:
        """Refuse a batch that the rows were not given for: their adapters would be mixed up."""
        if self.rows not in (1, rows):
            raise ValueError(f"a batch of {rows} rows under a routing for {self.rows}")

    def length(self, name: str, axis: int) -> int:
        """The largest extent of a part along an axis among the adapters (LoRA: the rank)."""
        return max(
            held.shapes[name][axis]
            for held in self._held
            if held is not None and name in held.shapes
        )

    def leaf(self, name: str, length: int, axis: int) -> Tensor:
        """[U, ...] a part of every slot in use, cut to `length` along `axis`."""
        if name not in self._leaves:
            leaf = self._view(self._stack, name, length, axis).detach()
            if self.trainable:
                leaf.requires_grad_()
                leaf.grad = self._view(self._gradients, name, length, axis)
            self._leaves[name] = leaf
        return self._leaves[name]

    def per_group(self, leaf: Tensor) -> Tensor:
        """[G, K, ...] from [U, ...]."""
        if self.identity:
            return leaf.unsqueeze(1)
        if self._gather is None:
            self._gather = torch.tensor(self._index, device=leaf.device)
        return leaf[self._gather]

    def factors(self, site: Site) -> Tensor | None:
        """[G, K] scale times strength at a site, 0 for adapters that leave it alone; None where all
        are 1.
        """
        if site.name not in self._factors:
            self._factors[site.name] = self._scaled(site)
        return self._factors[site.name]

    def notes(self, name: str) -> list[list[Any]]:
        """[G][K] a note of every adapter (None where it has none)."""
        notes = [None if held is None else held.notes.get(name) for held in self._held]
        return [[notes[u] for u in index] for index in self._index]

    def ready(self, site: str, make: Any) -> Any:
        """What `make()` returns, made once per routing and site."""
        if site not in self._ready:
            self._ready[site] = make()
        return self._ready[site]

    def collect(self) -> None:
        """Bring gradients home where the slots were no neighbours in memory.

        They are added: another routing (the text encoder's) may have been there before.
        """
        if self._gradients is None or self.is_view:
            return
        for position, slot in enumerate(self.slots):
            self.bank.gradient(slot).add_(self._gradients[position])
        self._gradients.zero_()

    def _scaled(self, site: Site) -> Tensor | None:
        scales = [
            held.scales.get(site.name, 1.0) if held is not None and _acts(held, site) else 0.0
            for held in self._held
        ]
        factors = [
            [scales[u] * strength for u, strength in zip(index, strengths, strict=True)]
            for index, strengths in zip(self._index, self._strengths, strict=True)
        ]
        if all(factor == 1.0 for row in factors for factor in row):
            return None
        return torch.tensor(factors, device=self.bank.device)

    def _gradient_stack(self) -> Tensor:
        if self.bank.max_slots in self.slots:
            raise ValueError("rows that train have exactly one adapter each")
        if self.is_view:
            return self.bank.gradient_stack(self.slots)
        assert self._stack is not None
        return torch.zeros_like(self._stack)

    def _view(self, flat: Tensor | None, name: str, length: int, axis: int) -> Tensor:
        assert flat is not None
        offset, part = self.bank.span(name)
        block = flat[:, offset : offset + part.size].unflatten(1, part.shape)
        return block.narrow(axis + 1, 0, length)


def _acts(held: _Slot | None, site: Site) -> bool:
    """Whether an adapter has tensors at a site."""
    return held is not None and any(part.name in held.shapes for part in site.parts)


def _active(adapters: Adapters) -> tuple[tuple[int, float], ...]:
    return tuple((slot, strength) for slot, strength in adapters if strength != 0)


def _are_neighbours(slots: Sequence[int]) -> bool:
    return list(slots) == list(range(slots[0], slots[-1] + 1))


def _equal_runs(rows: Sequence[Any]) -> list[Any]:
    """The values of runs of equal neighbours if all runs are of one length, else all rows."""
    runs: list[tuple[Any, int]] = []
    for row in rows:
        if runs and runs[-1][0] == row:
            runs[-1] = (row, runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    if len({count for _, count in runs}) <= 1:
        return [row for row, _ in runs]
    return list(rows)
