"""Ray's token: a private local Ray asks for one, whoever else is on the machine.

Ray 2.60 switches token authentication on by itself for a local start, but writes the token file
readable for all, and dies where HOME cannot be written. Explicit RAY_AUTH_* variables are always
obeyed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from dreamfleet.config import environment

TOKEN_BYTES = 32


def default_token_path() -> Path:
    """Where Ray looks for its token when no variable names another place."""
    return Path.home() / ".ray" / "auth_token"


def token_environment() -> dict[str, str]:
    """Variables that a private local Ray needs on top of the present environment; makes the token
    file if missing.

    Returns an empty dict where the user has chosen (RAY_AUTH_MODE, RAY_AUTH_TOKEN or
    RAY_AUTH_TOKEN_PATH).
    The token itself is only in the result where HOME cannot be written: then it lives as long as
    this run.
    """
    if environment("RAY_AUTH_MODE") not in (None, "token"):
        return {}
    variables = {} if environment("RAY_AUTH_MODE") else {"RAY_AUTH_MODE": "token"}
    if environment("RAY_AUTH_TOKEN") or environment("RAY_AUTH_TOKEN_PATH"):
        return variables
    if not _ensure_token_file(default_token_path()):
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(TOKEN_BYTES)
    return variables


def _ensure_token_file(path: Path) -> bool:
    """True when `path` holds a token at the end; a new file is private (0600) from its first
    byte.
    """
    try:
        if path.is_file() and path.stat().st_size > 0:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size == 0:  # `link` would take it for a token
            path.unlink(missing_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(TOKEN_BYTES))
        try:
            with contextlib.suppress(FileExistsError):  # another run was first; its token counts
                os.link(partial, path)
        finally:
            partial.unlink()
        return True
    except (OSError, RuntimeError):  # RuntimeError: no home directory at all
        return False


def client_environment() -> dict[str, str]:
    """Variables with which Ray's clients send the token that this user has; nothing is made.

    Ray 2.60 starts a head with a token wherever there is a token file, but its clients send it only
    when told to.
    """
    if environment("RAY_AUTH_MODE"):
        return {}
    place = Path(environment("RAY_AUTH_TOKEN_PATH") or default_token_path())
    has_token = bool(environment("RAY_AUTH_TOKEN")) or place.is_file()
    return {"RAY_AUTH_MODE": "token"} if has_token else {}
