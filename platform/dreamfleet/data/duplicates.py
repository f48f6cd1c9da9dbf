"""Exact and near duplicates: the same photo twice must not count twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamfleet.data.photos import Fingerprint

# Re-saved and resized copies of one photo differ in at most a few of the 64 bits; the thumbnails
# tell them from different pictures of plain objects on plain ground, whose hashes can be close too.
# The limits are generous to JPEG at quality 30 and strict enough for burst shots with a moved
# subject.
MAX_HASH_BITS = 6
MAX_THUMBNAIL_DIFFERENCE = 6.0  # mean absolute difference, of 255


def is_near_duplicate(one: Fingerprint, other: Fingerprint) -> bool:
    if (one.phash ^ other.phash).bit_count() > MAX_HASH_BITS:
        return False
    difference = np.abs(one.thumbnail.astype(np.int16) - other.thumbnail.astype(np.int16))
    return float(difference.mean()) <= MAX_THUMBNAIL_DIFFERENCE


def duplicate_groups(hashes: Sequence[str], prints: Sequence[Fingerprint]) -> list[int]:
    """The group of each photo: the index of the first photo that it is a copy of (its own when it
    is none).

    Args:
        hashes: SHA-256 of each file.
        prints: fingerprint of each photo, in the same order.
    """
    groups: list[int] = []
    for index, (content, fingerprint) in enumerate(zip(hashes, prints, strict=True)):
        first = next(
            (
                groups[earlier]
                for earlier in range(index)
                if hashes[earlier] == content or is_near_duplicate(prints[earlier], fingerprint)
            ),
            index,
        )
        groups.append(first)
    return groups


def weights(groups: Sequence[int]) -> list[float]:
    """Sampling weight of each photo: one for each group, shared by its members."""
    counts = {group: groups.count(group) for group in set(groups)}
    return [1.0 / counts[group] for group in groups]
