"""The identifier token and prompt lengths, against the base's own tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from dreamfleet.errors import BadInputError


def token_pieces(tokenizer: Any, text: str) -> list[str]:
    """How `tokenizer` cuts `text`, without the begin and end marks."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return [str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]


def token_warnings(tokenizer: Any, token: str, class_word: str) -> list[str]:
    """What a user should know about the token: several pieces, a common word, or the class word
    itself.
    """
    pieces = token_pieces(tokenizer, token)
    if not pieces:
        raise BadInputError(
            f"subject.token = {token!r}: the base's tokenizer reads nothing in it; use e.g. sks"
        )
    from dreamfleet.bases.defaults import RARE_TOKENS, rare_token

    rare = rare_token(tokenizer, taken=class_word.split())
    if token.strip().lower() == class_word.strip().lower():
        return [
            f"token {token!r} is the class word itself: the class would be overwritten; use "
            f"e.g. {rare!r}"
        ]
    if len(pieces) > 1:
        return [
            f"token {token!r} is {len(pieces)} tokens for this base ({' '.join(pieces)}), "
            "whose meanings mix in; "
            f"use e.g. {rare!r}, or --token auto"
        ]
    # A single token that can be spoken is a word that the base met often enough to learn.
    if re.search("[aeiouy]", token.lower()) and token not in RARE_TOKENS:
        return [
            f"token {token!r} may be a common word with a meaning of its own; use e.g. "
            f"{rare!r}, or --token auto"
        ]
    return []


def prompt_warnings(tokenizer: Any, prompts: Iterable[str]) -> list[str]:
    """Prompts that the text encoder cuts off."""
    limit = int(tokenizer.model_max_length)
    warnings = []
    for prompt in dict.fromkeys(prompts):
        length = len(tokenizer(prompt).input_ids)
        if length > limit:
            warnings.append(
                f"prompt {_shortened(prompt)!r}: {length} tokens; the base reads the first {limit}"
            )
    return warnings


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
