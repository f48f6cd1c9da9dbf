"""What files call the layers of a text encoder.

CLIPTextModel lost the `text_model.` in front of its layers in transformers 5.6; files keep it, for
diffusers over an older transformers finds nothing without.
"""

from __future__ import annotations

import contextlib
from typing import Any

from dreamfleet.bases import Base

_FRONT = "text_model."


def text_path(path: str) -> str:
    """A layer of a text encoder, or a tensor of one, as files name it."""
    inner = path.removeprefix(_FRONT)
    return inner if inner.startswith("text_projection") else f"{_FRONT}{inner}"


def name_in_files(name: str) -> str:
    """A layer or tensor with its component in front, as files name it."""
    component, _, path = name.partition(".")
    return f"{component}.{text_path(path)}" if component.startswith("text_encoder") else name


def find_layer(base: Base, layer: str) -> tuple[str, Any] | None:
    """The base's own name of a layer by that of a file, and the module; None: it has no such."""
    component, _, path = layer.partition(".")
    root: Any = getattr(base, component, None)
    if root is None:
        return None
    # Asked for each tensor: no list of all layers.
    for candidate in (path, path.removeprefix(_FRONT), f"{_FRONT}{path}"):
        with contextlib.suppress(AttributeError):
            return f"{component}.{candidate}", root.get_submodule(candidate)
    return None
