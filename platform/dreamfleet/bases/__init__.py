"""Base models: embedded, a local diffusers folder, or a hub id; one file per family."""

from dreamfleet.bases.base import Base
from dreamfleet.bases.defaults import BaseDefaults, resolved_config
from dreamfleet.bases.files import BaseFiles, embedded_path, inspect_base
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
