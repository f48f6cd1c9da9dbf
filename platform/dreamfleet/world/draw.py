"""Draw a piece of the training world to disk, in blocks: a stopped run goes on where it was.

Blocks may be drawn in other processes (`map_blocks`); they are written here in order, so the files
are the same.

    images.npy      uint8 [count, size, size, 3], memory-mappable
    masks.npy       uint8 [count, size, size], SUBJECT where the subject is, DETAIL where a fine
                    state alone changed the picture, else 0
    captions.jsonl  one JSON object a picture: "index", "caption"
    labels.npz      "labels" int64 [count, 7] with columns LABEL_COLUMNS, and the names they index
    progress.json   what is being drawn and how many pictures are done
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dreamfleet.errors import ResumeError
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.render import render
from dreamfleet.world.sampling import even_example, training_example
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec, Rendered
from dreamfleet.world.styles import STYLES

BLOCK = 1000
SUBJECT, DETAIL = 1, 2  # in a mask
VISIBLE_CHANGE = 20  # of 255, in one colour at least
VIEWS = ("side", "front", "back")
LABEL_COLUMNS = ("class", "state", "scene", "view", "style", "prop", "identity")

Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass
class Block:
    """Pictures of consecutive indices."""

    images: npt.NDArray[np.uint8]  # [n, size, size, 3]
    masks: npt.NDArray[np.uint8]  # [n, size, size]
    labels: npt.NDArray[np.int64]  # [n, len(LABEL_COLUMNS)]
    captions: list[str]


# As the built-in map: the results of a function on each range, in order.
MapBlocks = Callable[[Callable[[range], Block], Iterable[range]], Iterable[Block]]


def draw_block(seed: int, size_px: int, first_even: int, indices: range) -> Block:
    """Pictures `indices` of training world `seed`, from `first_even` on the even ones."""
    examples = [
        (training_example if index < first_even else even_example)(seed, index, size_px)
        for index in indices
    ]
    return Block(
        images=np.stack([np.asarray(rendered.image) for rendered, _ in examples]),
        masks=np.stack([training_mask(rendered) for rendered, _ in examples]),
        labels=np.array([label_indices(rendered.spec) for rendered, _ in examples]),
        captions=[text for _, text in examples],
    )


def training_mask(rendered: Rendered) -> npt.NDArray[np.uint8]:
    """SUBJECT and DETAIL, [size, size]."""
    mask = rendered.subject_mask.astype(np.uint8) * SUBJECT
    world_class = CLASSES[rendered.spec.class_name]
    if world_class.state(rendered.spec.state).fine:
        neutral = dataclasses.replace(rendered.spec, state=world_class.states[0].name)
        other = render(neutral, rendered.image.width).image
        change = np.abs(np.asarray(rendered.image, np.int16) - np.asarray(other, np.int16))
        mask[change.max(axis=2) > VISIBLE_CHANGE] = DETAIL
    return mask


def draw_dataset(
    out_dir: str | os.PathLike[str],
    count: int,
    seed: int,
    size_px: int = 64,
    start: int = 0,
    progress: Progress | None = None,
    map_blocks: MapBlocks = map,
    num_even: int = 0,
) -> Path:
    """Draw pictures `start` to `start + count - 1` of training world `seed` into `out_dir`.

    The last `num_even` of them are even ones. `map_blocks` draws the blocks, e.g. in several
    processes.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "count": count,
        "seed": seed,
        "size_px": size_px,
        "start": start,
        "num_even": num_even,
    }
    done = _done_before(folder, request)
    images = _opened(folder / "images.npy", (count, size_px, size_px, 3), np.uint8, done)
    masks = _opened(folder / "masks.npy", (count, size_px, size_px), np.uint8, done)
    labels = _opened(folder / "labels.partial.npy", (count, len(LABEL_COLUMNS)), np.int64, done)
    _keep_lines(folder / "captions.jsonl", done)
    ranges = [
        range(start + first, start + min(first + BLOCK, count))
        for first in range(done, count, BLOCK)
    ]
    draw = functools.partial(draw_block, seed, size_px, start + count - num_even)
    for block in map_blocks(draw, ranges):
        stop = done + len(block.images)
        images[done:stop], masks[done:stop] = block.images, block.masks
        labels[done:stop] = block.labels
        for file in (images, masks, labels):
            file.flush()
        _append_captions(folder / "captions.jsonl", start + done, block.captions)
        done = stop
        _write_progress(folder, {**request, "done": done})
        if progress is not None:
            progress(done, count)
    _write_labels(folder / "labels.npz", np.asarray(labels))
    return folder


def label_names() -> dict[str, list[str]]:
    """What the indices of each label column mean; a state's index counts within its class."""
    names = {
        "class": list(CLASSES),
        "scene": list(SCENES),
        "view": list(VIEWS),
        "style": list(STYLES),
    }
    names["state"] = [
        f"{entry.name}/{state.name}" for entry in CLASSES.values() for state in entry.states
    ]
    return names


def label_indices(spec: ImageSpec) -> tuple[int, ...]:
    """The row of LABEL_COLUMNS for a picture."""
    states = [state.name for state in CLASSES[spec.class_name].states]
    return (
        list(CLASSES).index(spec.class_name),
        states.index(spec.state),
        list(SCENES).index(spec.scene),
        VIEWS.index(spec.view),
        list(STYLES).index(spec.style),
        int(spec.prop),
        spec.identity_seed,
    )


def _done_before(folder: Path, request: Mapping[str, int]) -> int:
    path = folder / "progress.json"
    if not path.exists():
        return 0
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    done = int(before.pop("done"))
    if before != request:
        raise ResumeError(f"{folder} holds {before}, asked for {dict(request)}: use a new folder")
    return done


def _opened(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], done: int
) -> np.memmap[Any, Any]:
    if done and path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _keep_lines(path: Path, count: int) -> None:
    """Drop caption lines of a block that was not finished."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[:count]), encoding="utf-8")


def _append_captions(path: Path, first: int, captions: list[str]) -> None:
    rows = ({"index": first + i, "caption": text} for i, text in enumerate(captions))
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_progress(folder: Path, state: Mapping[str, int]) -> None:
    partial = folder / "progress.json.partial"
    partial.write_text(json.dumps(state), encoding="utf-8")
    partial.replace(folder / "progress.json")


def _write_labels(path: Path, labels: npt.NDArray[np.int64]) -> None:
    names = {f"{key}_names": np.array(value) for key, value in label_names().items()}
    np.savez(path, labels=labels, columns=np.array(LABEL_COLUMNS), **names)  # type: ignore[arg-type]
