"""What goes from the ingress to an engine replica and back: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dreamfleet.errors import AdapterFileError

PictureFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True)
class RegistryFiles:
    """A registered version's files, for whoever does not have them: `registry.fetch_version`.

    Attributes:
        uri: of MLflow; may hold a password.
        source: where the files are, as MLflow names it.
        folder: where they are copied to, on each node.
        run_id: of the run that made it; empty: unknown.
    """

    uri: str = field(repr=False)
    name: str
    version: str
    source: str
    folder: str
    run_id: str = ""


class AdapterReplaced(AdapterFileError):
    """An adapter's file is no longer the one that was asked for."""


def file_stamp(path: Path) -> tuple[int, ...]:
    """What tells a file from one that takes its place, alike on all nodes that see it: seconds and
    bytes. Inodes and fractions of seconds differ between mounts.

    Raises:
        OSError: it is not there.
    """
    status = path.stat()
    return (int(status.st_mtime), status.st_size)


@dataclass(frozen=True)
class AdapterRef:
    """One version of an adapter, and where its file is.

    Attributes:
        id: as clients name it.
        key: names its content: another file under the same id has another key.
        location: the adapter's folder or file, which every replica can read.
        origin: where a replica gets the files if they are not there.
        stamp: of the weights file, whose content `key` names; empty: unknown.
    """

    id: str
    key: str
    location: str
    origin: RegistryFiles | None = None
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True)
class DrawOrder:
    """Pictures of one prompt, one for each seed.

    Attributes:
        adapters: with their strengths; they add up. Empty: the bare base.
        previews: unfinished pictures sent while each is drawn.
        Others as in `engine.packed_sampling.ImageRequest`.
    """

    prompt: str
    seeds: tuple[int, ...]
    adapters: tuple[tuple[AdapterRef, float], ...] = ()
    negative_prompt: str = ""
    num_inference_steps: int = 25
    guidance_scale: float | None = None
    scheduler: Literal["ddim", "euler", "dpm"] = "ddim"
    height: int | None = None
    width: int | None = None
    previews: int = 0
    output_format: PictureFormat = "png"

    @property
    def affinity(self) -> str:
        """Orders with the same text find the same replica."""
        return "+".join(ref.key for ref, _ in self.adapters)


@dataclass(frozen=True)
class Accepted:
    """The first event of every stream: the engine has taken the order."""


@dataclass(frozen=True)
class StepDone:
    """One denoising step of picture `index`; `preview` is an encoded picture of what is there."""

    index: int
    step: int
    total: int
    preview: bytes | None = None


@dataclass(frozen=True)
class PictureDone:
    """Picture `index`, encoded."""

    index: int
    picture: bytes


Event = Accepted | StepDone | PictureDone


@dataclass(frozen=True)
class BaseAbout:
    """What the ingress needs to know of the base that the engines hold; sides in pixels."""

    name: str
    hash: str
    resolution: int
    resolution_step: int
    num_inference_steps: int
    guidance_scale: float
