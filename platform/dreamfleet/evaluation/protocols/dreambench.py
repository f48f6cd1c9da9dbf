"""DreamBench's subjects in the user's own copy of the photographs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.protocols.protocol import protocol_file

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True)
class DreamBenchSubject:
    """One subject: photos in order of their names; `photos[0]` is 00.jpg, SuDe's only one."""

    subject_id: str
    class_word: str
    photos: tuple[Path, ...]


def dreambench_subjects(
    data_dir: str | Path, count: int | None = None
) -> tuple[list[DreamBenchSubject], list[str]]:
    """The published subjects that are in `data_dir`, and the names of those that are not.

    The order takes a subject of each class in turn, so that any first few are mixed; it does not
    depend on which are missing.

    Args:
        data_dir: a copy of google/dreambooth's `dataset` folder.
        count: at most so many.

    Raises:
        BadInputError: none of the subjects is there.
    """
    folder = Path(data_dir).expanduser()
    present: list[DreamBenchSubject] = []
    missing: list[str] = []
    for name, class_word in _in_turn(protocol_file("dreambench")["subjects"].items()):
        photos = sorted(
            path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES
        )
        if photos:
            present.append(DreamBenchSubject(name, class_word, tuple(photos)))
        else:
            missing.append(name)
    if not present:
        raise BadInputError(
            f"--data-dir {folder}: none of DreamBench's subjects (backpack, dog, vase …) is there; "
            "give the folder `dataset` of a copy of github.com/google/dreambooth"
        )
    return present[:count], sorted(missing)


def _in_turn(subjects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    by_class: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, class_word in subjects:
        by_class[class_word].append((name, class_word))
    rounds = zip_longest(*by_class.values())
    return [entry for one in rounds for entry in one if entry is not None]
