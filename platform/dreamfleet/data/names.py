"""Safe ids from any name a user may give."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAX_LENGTH = 48
_WINDOWS = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
)


def safe_id(name: str) -> str:
    """A name for files, runs, actors and the registry: lower-case ASCII letters, digits and single
    hyphens.

    Where characters other than case, spaces and underscores had to go, a short hash of the name
    keeps different names apart.

    >>> safe_id("Biscuit the Dog")
    'biscuit-the-dog'
    >>> safe_id("../犬").startswith("subject-")
    True
    """
    folded = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"[^a-z0-9]+", "-", folded).strip("-")
    harmless = re.fullmatch(r"[A-Za-z0-9 _.-]+", name) is not None and ".." not in name
    short = plain[:MAX_LENGTH].strip("-")
    if harmless and short == plain and short and short not in _WINDOWS:
        return short
    return f"{(short or 'subject')[: MAX_LENGTH - 9].strip('-')}-{_digest(name)}"


def unique_ids(names: Sequence[str], locations: Sequence[str]) -> list[str]:
    """One id per subject; subjects whose names collide are told apart by a hash of where their
    photos lie.
    """
    ids = [safe_id(name) for name in names]
    counts = Counter(ids)
    unique = [
        f"{identity}-{_digest(location)}" if counts[identity] > 1 else identity
        for identity, location in zip(ids, locations, strict=True)
    ]
    seen: Counter[str] = Counter()
    for index, identity in enumerate(unique):  # the same photos under the same name, listed twice
        seen[identity] += 1
        if seen[identity] > 1:
            unique[index] = f"{identity}-{seen[identity]}"
    return unique


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
