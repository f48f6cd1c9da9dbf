"""Bounds of an engine; importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """Bounds of an engine.

    Attributes:
        max_slots: adapters on the device at once, those in training included.
        max_rows: rows of one forward; None: as many as fit into memory. Training halves it when
            memory runs out all the same.
        max_host_adapters: adapters kept in host memory; the least recently used go first.
        teacher_cache_mib: memory for the frozen teacher's predictions.
        teacher_cache_folder: kept there too, for other engines and later runs; None: they are not.
        teacher_cache_disk_mib: bound of that folder.
        training_share: part of the time that training gets while images are drawn too.
    """

    max_slots: int = 16
    max_rows: int | None = None
    max_host_adapters: int = 1000
    teacher_cache_mib: int = 256
    teacher_cache_folder: str | None = None
    teacher_cache_disk_mib: int = 4096
    training_share: float = 0.5
