"""Class prompts."""

from __future__ import annotations

import pytest

from dreamfleet.errors import ConfigError
from dreamfleet.methods.dreambooth.prompts import without_token


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of sks dog", "a photo of dog"),
        ("SKS dog, running", "dog, running"),
        ("two masks on sks desks", "two masks on desks"),
        ("a dog", "a dog"),
        ("sks", ""),
        ("the dog (sks)", "the dog ( )"),
    ],
)
def test_the_identifier_goes_and_nothing_else(prompt: str, expected: str) -> None:
    assert without_token(prompt, "sks") == expected


def test_tokens_with_punctuation_and_empty_ones() -> None:
    assert without_token("a <new1> dog", "<new1>") == "a dog"
    with pytest.raises(ConfigError, match="empty"):
        without_token("a dog", " ")
