"""From a subject's prompt to its class prompt."""

from __future__ import annotations

import re

from dreamfleet.errors import ConfigError


def without_token(prompt: str, token: str) -> str:
    """`prompt` without the identifier `token`: "a photo of sks dog" -> "a photo of dog".

    Whole words only: a class word that contains the token ("masks" and "sks") stays whole.

    Raises:
        ConfigError: the token is empty.
    """
    if not token.strip():
        raise ConfigError("subject.token is empty; expected a rare word such as sks, or auto")
    pattern = rf"(?<!\w){re.escape(token.strip())}(?!\w)"
    return " ".join(re.sub(pattern, " ", prompt, flags=re.IGNORECASE).split())
