"""What has been trained and scored, below `arms/`: shared by all studies of one output folder.

    arms/<subject>/<training key>/arm.json           what it is, and what it cost
                                 /log.parquet        figures of every step
                                 /state.pt           while it is under way
                                 /<steps>-<sampler>/<picture>.png
                                                   /rows-<judges>.parquet
                                 /weights-<steps>/pytorch_lora_weights.safetensors

A picture is named by its prompt and number, so studies that ask the same of the same training share
it. Every file is whole or absent. The weights of LoRA hosts are kept for the prompts of later
studies; a fully fine-tuned host has tens of megabytes a rung and is trained again instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dreamfleet.data.photos import to_png
from dreamfleet.evaluation.results import read_rows, write_json, write_rows
from dreamfleet.evaluation.worldbench.plan import Job
from dreamfleet.runtime.storage import write_whole

ARMS = "arms"
Row = dict[str, Any]


@dataclass(frozen=True)
class ArmFolder:
    """One training of one subject."""

    path: Path

    def rung(self, steps: int, sampler: str, judges: str) -> Rung:
        """Pictures at a number of steps."""
        return Rung(self.path / f"{steps:05d}-{sampler}", judges)

    def weights(self, steps: int) -> Path:
        """Folder of a LoRA at a number of steps."""
        return self.path / f"weights-{steps:05d}"

    @property
    def about(self) -> dict[str, Any]:
        """What `note` kept."""
        place = self.path / "arm.json"
        known: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.is_file() else {}
        return known

    def note(self, **facts: Any) -> None:
        """Keep facts; costs (keys that end in _s) are added up."""
        known = self.about
        for name, value in facts.items():
            known[name] = known.get(name, 0.0) + value if name.endswith("_s") else value
        write_json(self.path / "arm.json", known, default=str)

    def write_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Figures of every step; a longer log of the same training stays."""
        if rows and len(rows) >= len(self.read_log()):
            self.path.mkdir(parents=True, exist_ok=True)
            write_rows(self.path / "log.parquet", rows)

    def save_state(self, state: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> None:
        """Keep a training that is under way."""
        self.path.mkdir(parents=True, exist_ok=True)
        part = self._state.with_suffix(f".{os.getpid()}.part")
        torch.save({"state": dict(state), "log": list(log)}, part)
        os.replace(part, self._state)

    def load_state(self) -> tuple[dict[str, Any], list[Row]] | None:
        """What `save_state` kept last; None: nothing whole."""
        try:
            kept = torch.load(self._state, map_location="cpu", weights_only=True)
            return kept["state"], kept["log"]
        except (OSError, RuntimeError, KeyError, pickle.UnpicklingError):
            return None

    def drop_state(self) -> None:
        """The training is over."""
        self._state.unlink(missing_ok=True)

    @property
    def _state(self) -> Path:
        return self.path / "state.pt"

    def read_log(self) -> list[Row]:
        """What `write_log` wrote; empty where there is none."""
        place = self.path / "log.parquet"
        return read_rows(place) if place.is_file() else []


@dataclass(frozen=True)
class Rung:
    """Pictures of one training at one number of steps, by one sampler, read by some judges."""

    path: Path
    judges: str

    def rows(self) -> dict[str, Row]:
        """Rows by the picture's name."""
        place = self._rows_path
        return {str(row["name"]): row for row in read_rows(place)} if place.is_file() else {}

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows beside those that are there."""
        known = self.rows() | {str(row["name"]): row for row in rows}
        self.path.mkdir(parents=True, exist_ok=True)
        write_rows(self._rows_path, list(known.values()))

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs without a row."""
        known = self.rows()
        return [job for job in jobs if picture_name(job) not in known]

    def picture(self, job: Job) -> Path:
        """Where a job's picture is."""
        return self.path / f"{picture_name(job)}.png"

    def save(self, jobs: Sequence[Job], images: Sequence[Image.Image]) -> None:
        """Write pictures."""
        for job, image in zip(jobs, images, strict=True):
            write_whole(self.picture(job), to_png(image))

    def open(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """Read pictures."""
        found = []
        for job in jobs:
            with Image.open(self.picture(job)) as image:
                found.append(image.convert("RGB"))
        return found

    @property
    def _rows_path(self) -> Path:
        return self.path / f"rows-{self.judges}.parquet"


def picture_name(job: Job) -> str:
    """A job's picture: kind, prompt, number."""
    digest = hashlib.sha256(f"{job.request.prompt}\x1f{job.seed}".encode()).hexdigest()[:10]
    return f"{job.request.kind}-{digest}-{job.index:03d}"


def arm_folder(output_dir: Path, subject_id: str, key: str) -> ArmFolder:
    """Where a training's files go."""
    return ArmFolder(output_dir / ARMS / subject_id / key)
