"""Base models: embedded, a local diffusers folder, or a hub id; one file per family.

What needs torch and diffusers is imported when it is asked for: a command looks through the base's
files and leaves the loading to its workers.
"""

from typing import TYPE_CHECKING, Any

from dreamfleet.bases.defaults import BaseDefaults, resolved_config
from dreamfleet.bases.files import BaseFiles, embedded_path, inspect_base

if TYPE_CHECKING:
    from dreamfleet.bases.base import Base
    from dreamfleet.bases.loading import load_base

__all__ = [
    "Base",
    "BaseDefaults",
    "BaseFiles",
    "embedded_path",
    "inspect_base",
    "load_base",
    "resolved_config",
]


def __getattr__(name: str) -> Any:
    if name == "Base":
        from dreamfleet.bases.base import Base

        return Base
    if name == "load_base":
        from dreamfleet.bases.loading import load_base

        return load_base
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
