"""dreamfleet: a few photos of one subject in, a measured adapter of a text-to-image model out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamfleet.api import generate, personalize, tune

__version__ = "0.1.0"
__all__ = ["__version__", "generate", "personalize", "tune"]


def __getattr__(name: str) -> Any:
    """Public functions, imported at first use: `import dreamfleet` itself stays light."""
    if name in ("generate", "personalize", "tune"):
        from dreamfleet import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
