"""`dreamfleet doctor`: what this machine offers, and what would stand in a run's way."""

from __future__ import annotations

import base64
import http.client
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreamfleet import __version__
from dreamfleet.config import dreamfleet_home, environment
from dreamfleet.errors import DreamfleetError

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "ray",
    "mlflow",
    "optuna",
    "pyarrow",
    "pydantic",
    "pillow",
)
MIN_FREE_GIB = 2.0  # caches, checkpoints and Ray's own session folder
MIN_MEMORY_GIB = 4.0  # Ray with its dashboard takes 0.8, a training worker 1 to 2
SERVER_TIMEOUT_S = 5.0

Mark = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line: `problem` is what a run cannot live with, `note` what its user may want to know."""

    name: str
    mark: Mark
    text: str


def examine(tracking_uri: str | None = None) -> list[Finding]:
    """All findings, in the order to show; no check can stop the others."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("dreamfleet", _program),
        ("cores", _cores),
        ("memory", _memory),
        ("GPU", _gpu),
        ("packages", _packages),
        ("Ray", _ray),
        ("Ray token", _ray_token),
        ("home", _home),
        ("temporary files", _temporary),
        ("tracking", lambda: _tracking(tracking_uri)),
        ("embedded base", _embedded_base),
    )
    return [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a broken installation is just what one asks a doctor about
        return Finding(name, "problem", f"{type(error).__name__}: {error}")


def _program() -> Finding:
    text = f"{__version__}, Python {platform.python_version()} on {platform.platform()}"
    return Finding("dreamfleet", "ok", f"{text}, {sys.executable}")


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    threads = environment("OMP_NUM_THREADS")
    text = f"{usable} usable of {os.cpu_count()}, load {load:.1f}"
    return Finding("cores", "ok", text + (f", OMP_NUM_THREADS={threads}" if threads else ""))


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    text = f"{free:.1f} GiB free of {total:.1f}"
    if free < MIN_MEMORY_GIB:
        return Finding("memory", "note", f"{text}; a run on a private Ray takes 2 to 4 GiB")
    return Finding("memory", "ok", text)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(
            "GPU", "note", f"none that torch {torch.__version__} can use; runs use the CPU"
        )
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    text = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)
    return Finding("GPU", "ok", text)


def _packages() -> Finding:
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding(
            "packages", "problem", f"missing: {', '.join(missing)}; install dreamfleet again"
        )
    return Finding("packages", "ok", ", ".join(found))


def _ray() -> Finding:
    address = environment("RAY_ADDRESS")
    version = importlib.metadata.version("ray")
    if address:
        return Finding("Ray", "ok", f"{version}; runs join the cluster at RAY_ADDRESS={address}")
    return Finding("Ray", "ok", f"{version}; each command starts a private local Ray and ends it")


def _ray_token() -> Finding:
    """Where Ray finds its token; the token itself is never shown."""
    from dreamfleet.runtime.auth import default_token_path

    mode = environment("RAY_AUTH_MODE")
    if mode not in (None, "token"):
        return Finding("Ray token", "note", f"RAY_AUTH_MODE={mode}: Ray asks for no token")
    if environment("RAY_AUTH_TOKEN"):
        return Finding("Ray token", "ok", "from RAY_AUTH_TOKEN")
    path = Path(environment("RAY_AUTH_TOKEN_PATH") or default_token_path())
    if not path.is_file():
        return Finding("Ray token", "ok", f"made at the first run, in {path}")
    rights = path.stat().st_mode & 0o777
    if rights & 0o077:
        text = f"{path} (mode {rights:04o}) can be read by others; chmod 600 {path}"
        return Finding("Ray token", "note", text)
    return Finding("Ray token", "ok", f"{path} (mode {rights:04o})")


def _home() -> Finding:
    return _folder("home", dreamfleet_home(), "set DREAMFLEET_HOME to a folder that can be written")


def _temporary() -> Finding:
    advice = "set TMPDIR (and RAY_TMPDIR) to a folder with space"
    return _folder("temporary files", Path(tempfile.gettempdir()), advice)


def _folder(name: str, path: Path, advice: str) -> Finding:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(name, "problem", f"{path} cannot be written; {advice}")
    free = shutil.disk_usage(existing).free / 2**30
    if free < MIN_FREE_GIB:
        return Finding(name, "problem", f"{path}: only {free:.1f} GiB free; {advice}")
    return Finding(name, "ok", f"{path}, {free:.0f} GiB free")


def _tracking(given: str | None) -> Finding:
    from dreamfleet.tracking.base import check_uri, resolve_uri, sqlite_path, without_password

    try:
        check_uri(given)
    except DreamfleetError as error:
        return Finding("tracking", "problem", str(error))
    uri = resolve_uri(given)
    if uri.lower().startswith(("http://", "https://")):
        return _tracking_server(uri)
    if sqlite_path(uri) is not None or "://" not in uri:
        return Finding("tracking", "ok", f"MLflow at {uri}")
    return Finding("tracking", "note", f"MLflow at {without_password(uri)}, which was not asked")


def _tracking_server(uri: str) -> Finding:
    from dreamfleet.tracking.base import without_password

    place = without_password(uri)
    try:
        with urllib.request.urlopen(_health_request(uri), timeout=SERVER_TIMEOUT_S) as reply:
            return Finding("tracking", "ok", f"{place} answers ({reply.status})")
    except urllib.error.HTTPError as error:
        text = f"{place} answers {error.code}; check address, allowed hosts and credentials"
    except (OSError, ValueError, http.client.HTTPException) as error:
        text = f"{place} cannot be reached ({error})"
    return Finding(
        "tracking", "problem", f"{text}; training would go on and keep its records on disk"
    )


def _health_request(uri: str) -> urllib.request.Request:
    """As MLflow would ask: urllib takes `me:secret@` for a part of the host's name, which it shows.

    The password goes to this server alone, not on to one that it points to.
    """
    scheme, _, rest = uri.rstrip("/").partition("://")
    authority, slash, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    request = urllib.request.Request(f"{scheme}://{host}{slash}{path}/health")
    if ":" in user:
        word = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {word}")
    return request


def _embedded_base() -> Finding:
    from dreamfleet.bases import embedded_path

    try:
        path = embedded_path()
    except DreamfleetError as error:
        return Finding("embedded base", "problem", str(error))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Finding("embedded base", "ok", f"{path}, {size / 2**20:.0f} MiB")
