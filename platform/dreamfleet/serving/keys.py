"""API keys: a file of hashes in DREAMFLEET_HOME; a key itself is shown once and kept nowhere."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock

from dreamfleet.config import dreamfleet_home
from dreamfleet.errors import BadInputError

Scope = Literal["generate", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
FILE_NAME = "keys.json"
KEY_BYTES = 32
LOCK_S = 30.0


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key.

    Attributes:
        id: for people and logs; not secret.
        sha256: of the key itself.
        scope: generate draws and lists models; admin changes adapters too.
    """

    id: str
    sha256: str
    scope: str
    name: str
    created: str


def default_keys_file() -> Path:
    """DREAMFLEET_HOME/keys.json."""
    return dreamfleet_home().expanduser() / FILE_NAME


class KeyFile:
    """The keys in a file, read anew when it changes.

    Args:
        path: default: `default_keys_file()`.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path).expanduser() if path else default_keys_file()
        self._seen: tuple[int, int] | None = None
        self._keys: list[ApiKey] = []

    def keys(self) -> list[ApiKey]:
        """All keys, oldest first; none where there is no file.

        Raises:
            BadInputError: the file is no file of keys.
        """
        try:
            status = self.path.stat()
        except OSError:
            self._seen, self._keys = None, []
            return []
        seen = (status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._keys, self._seen = self._read(), seen
        return list(self._keys)

    def find(self, key: str) -> ApiKey | None:
        """Whose key this is; takes equally long whichever it is."""
        digest = _hash(key)
        found = None
        for own in self.keys():
            if hmac.compare_digest(own.sha256, digest):
                found = own
        return found

    def create(self, scope: str = "generate", name: str = "") -> tuple[str, ApiKey]:
        """A new key and what is kept of it.

        Raises:
            BadInputError: no such scope, or the file cannot be written.
        """
        if scope not in SCOPES:
            raise BadInputError(f"scope {scope!r}: expected one of {', '.join(SCOPES)}")
        key = f"df-{secrets.token_urlsafe(KEY_BYTES)}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = ApiKey(secrets.token_hex(4), _hash(key), scope, name, now)
        with self._locked():
            self._write([*self._read_or_none(), entry])
        return key, entry

    def revoke(self, key_id: str) -> ApiKey:
        """Forget a key by its id.

        Raises:
            BadInputError: there is none.
        """
        with self._locked():
            keys = self._read_or_none()
            gone = [key for key in keys if key.id == key_id]
            if not gone:
                raise BadInputError(
                    f"key {key_id!r}: no such id; `dreamfleet keys list` shows them"
                )
            self._write([key for key in keys if key.id != key_id])
        return gone[0]

    def _locked(self) -> FileLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(
                f"{self.path.parent}: cannot be made ({error.strerror}); set DREAMFLEET_HOME to a "
                "folder that can be written"
            ) from error
        return FileLock(f"{self.path}.lock", timeout=LOCK_S)

    def _read_or_none(self) -> list[ApiKey]:
        return self._read() if self.path.exists() else []

    def _read(self) -> list[ApiKey]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))["keys"]
            return [ApiKey(**entry) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f"{self.path}: not a file of keys ({error}); move it away and create keys anew"
            ) from error

    def _write(self, keys: list[ApiKey]) -> None:
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
