"""Pictures of two adapters that were drawn for the same subject and prompt from the same noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamfleet.config import load_config
from dreamfleet.data.photos import to_png
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.drawing import BARE
from dreamfleet.evaluation.references import reference_photos
from dreamfleet.evaluation.results import RESULTS, read_rows
from dreamfleet.training.samples import INDEX

REFERENCES = "references"  # folder of photos in an evaluation's output
LEFT_OUT_KINDS = ("class",)
Key = tuple[str, str, int, int]  # subject, prompt, noise seed, how many-th training seed


@dataclass(frozen=True)
class Pair:
    """One comparison: two pictures and what they should show.

    Its id is of question and pictures: a vote on pictures that were since drawn anew does not
    count.
    """

    pair_id: str
    subject: str
    prompt: str
    a: Path
    b: Path
    references: tuple[bytes, ...]  # PNGs


def load_pairs(a: str | Path, b: str | Path) -> list[Pair]:
    """All pairs of two output folders of `evaluate`, `benchmark` or `personalize`.

    Raises:
        BadInputError: a folder without pictures or with those of several hosts, or no subject and
            prompt in common.
    """
    one, two = (Path(place).expanduser() for place in (a, b))
    first, second = _pictures(one), _pictures(two)
    common = [key for key in first if key in second]
    if not common:
        raise BadInputError(
            f"{one} and {two} have no pictures of the same subject, prompt and noise; compare "
            "outputs of the same protocol, or adapters of the same photos and seed"
        )
    references: dict[str, tuple[bytes, ...]] = {}
    pairs = []
    for key in common:
        subject, prompt = key[:2]
        if subject not in references:
            references[subject] = _references(one, subject) or _references(two, subject)
        digest = _pair_id(key, first[key], second[key])
        pairs.append(Pair(digest, subject, prompt, first[key], second[key], references[subject]))
    return pairs


def _pair_id(key: Key, a: Path, b: Path) -> str:
    pictures = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b)]
    return hashlib.sha256(repr((key, pictures)).encode()).hexdigest()[:16]


def _pictures(folder: Path) -> Mapping[Key, Path]:
    if (folder / RESULTS).is_file():
        rows = _last_rows(folder)
        # Noise is the same for all of them, so the two need not have been trained from equal ones.
        nth = {seed: i for i, seed in enumerate(sorted({row["seed"] for row in rows}))}
        return {
            (row["subject"], row["prompt"], row["noise_seed"], nth[row["seed"]]): folder
            / row["picture"]
            for row in rows
        }
    if (folder / INDEX).is_file():
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return {("", e["prompt"], e["seed"], 0): folder / e["file"] for e in entries}
    raise BadInputError(
        f"{folder}: neither {RESULTS} nor {INDEX} in it; give an output folder of `dreamfleet "
        "evaluate`, `benchmark` or `personalize`"
    )


def _last_rows(folder: Path) -> list[dict[str, Any]]:
    """Of each subject those of its last step, for a ladder is judged by its end."""
    rows = [
        row
        for row in read_rows(folder / RESULTS)
        if row["host"] != BARE and row["kind"] not in LEFT_OUT_KINDS
    ]
    hosts = sorted({row["host"] for row in rows})
    if len(hosts) > 1:
        raise BadInputError(
            f"{folder}: pictures of several hosts ({', '.join(hosts)}); people compare one with "
            "another, so expected one in each folder, as `dreamfleet evaluate` and `benchmark` "
            "leave it"
        )
    last: dict[str, int] = {}
    for row in rows:
        last[row["subject"]] = max(row["steps"], last.get(row["subject"], 0))
    return [row for row in rows if row["steps"] == last[row["subject"]]]


def _references(folder: Path, subject: str) -> tuple[bytes, ...]:
    kept = sorted((folder / REFERENCES / subject).glob("*.png")) if subject else []
    if kept:
        return tuple(path.read_bytes() for path in kept)
    if (folder / "config.yaml").is_file():
        config = load_config(folder / "config.yaml")
        return reference_photos(config.subject.images, config.data)
    return ()


def write_references(folder: Path, photos: Mapping[str, tuple[bytes, ...]]) -> None:
    """Keep the photos in an evaluation's output, for whoever compares pictures later."""
    from dreamfleet.data.photos import from_png, shrink

    for subject, pngs in photos.items():
        place = folder / REFERENCES / subject
        place.mkdir(parents=True, exist_ok=True)
        for number, png in enumerate(pngs):
            image = from_png(png)
            small = shrink(image, 512) if min(image.size) > 512 else image
            (place / f"{number:02d}.png").write_bytes(to_png(small))
