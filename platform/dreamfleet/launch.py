"""The whole loop in one command: photos in, a served subject and its first picture out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig
from dreamfleet.errors import DreamfleetError
from dreamfleet.runtime.progress import Progress, SilentProgress
from dreamfleet.runtime.storage import is_uri

if TYPE_CHECKING:
    from dreamfleet.personalization import PersonalizeResult
    from dreamfleet.serving.settings import ServeSettings

PROMPT = "a photo of {token} {class} on the beach"
PICTURE = "served.png"
KEY_NAME = "launch"


@dataclass(frozen=True)
class LaunchSettings:
    """What a launch is asked for beside the recipe.

    Attributes:
        prompt: of the first picture; None: on the beach.
        host, port: where to serve.
        resume, overwrite: as for `personalize`.
        show: open the first picture, where there is a screen.
        once: end after it.
    """

    prompt: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    resume: bool = False
    overwrite: bool = False
    show: bool = True
    once: bool = False


def launch(
    config: RunConfig,
    settings: LaunchSettings,
    *,
    say: Callable[[str], Any],
    progress: Progress | None = None,
) -> PersonalizeResult:
    """Make adapters of the photos, serve them, and draw a first picture over HTTP.

    Serves until a signal comes, or with `once` until the picture is there.

    Args:
        say: takes lines with results: where things are, and the key of this launch.

    Raises:
        BadInputError: something given cannot be used; named, before anything starts where possible.
        DreamfleetError: no subject was finished, or the service did not start.
    """
    from dreamfleet.serving.server import check_port, serve_foreground

    check_port(settings.host, settings.port)  # not after an hour of training
    told = progress or SilentProgress()
    result = make_adapters(config, settings, told)
    finished = [subject for subject in result.subjects if subject.status == "finished"]
    if not finished:
        raise DreamfleetError("no subject was finished, see above; there is nothing to serve")
    folder = _served_folder(finished[0].file(), len(result.subjects))
    first = _FirstPicture(settings, Path(finished[0].file()), say)
    try:
        serve_foreground(
            _serve_settings(config, folder),
            host=settings.host,
            port=settings.port,
            progress=told,
            on_ready=[first.begin, *_recorders(config, folder, told)],
            done=first.done.is_set if settings.once else None,
        )
    finally:
        first.forget_key()
    if first.error is not None:
        raise first.error
    return result


def make_adapters(
    config: RunConfig, settings: LaunchSettings, progress: Progress
) -> PersonalizeResult:
    """Prepare, train and register: one training per subject, with the recipe as it is.

    A study that looks for the recipe belongs here, in place of this call.
    """
    from dreamfleet.personalization import personalize

    return personalize(
        config, resume=settings.resume, overwrite=settings.overwrite, progress=progress
    )


class _FirstPicture:
    """Asks the service for a picture, as any client would, in a thread of its own."""

    def __init__(self, settings: LaunchSettings, adapter: Path, say: Callable[[str], Any]) -> None:
        from dreamfleet.serving.keys import KeyFile

        self._settings, self._adapter, self._say = settings, adapter, say
        self._keys = KeyFile()
        self._key, self._entry = self._keys.create(name=KEY_NAME)
        self.done = threading.Event()
        self.error: DreamfleetError | None = None

    def begin(self, handle: Any) -> Callable[[], None]:
        """For `serve_foreground`."""
        threading.Thread(target=self._draw, name="first picture", daemon=True).start()
        return lambda: None

    def forget_key(self) -> None:
        """The key was for this launch only."""
        self._keys.revoke(self._entry.id)

    def _draw(self) -> None:
        from dreamfleet.serving.client import query

        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{settings.port}"
        wish = {"model": self._adapter.name, "prompt": settings.prompt or PROMPT, "seed": 0}
        try:
            ((_, picture),) = query(address, wish, key=self._key, progress=SilentProgress())
            path = self._adapter / PICTURE
            path.write_bytes(picture)
            self._say(f"picture   {path}")
            self._say(f"studio    {address}/")
            self._say(f"API key   {self._key}  (good until this ends)")
            if settings.show:
                _open(path)
        except DreamfleetError as error:
            self.error = error
        except OSError as error:
            self.error = DreamfleetError(f"{self._adapter}: cannot be written ({error.strerror})")
        finally:
            self.done.set()


def _served_folder(adapter: str, subjects: int) -> str:
    """The one adapter's folder, or that of all."""
    if is_uri(adapter):
        raise DreamfleetError(
            f"the adapters are at {adapter}, and a folder on this machine is served; launch with a "
            "local --output-dir, or serve them with `dreamfleet serve --registry`"
        )
    return adapter if subjects == 1 else str(Path(adapter).parent)


def _serve_settings(config: RunConfig, folder: str) -> ServeSettings:
    from dreamfleet.serving.command import settings_from_flags

    return settings_from_flags(
        {
            "adapters": folder,
            "base_model": config.base_source,
            "device": config.device,
            "mixed_precision": config.train.mixed_precision,
            "safety_checker": config.sampling.safety_checker,
        }
    )


def _recorders(config: RunConfig, folder: str, progress: Progress) -> list[Any]:
    if not config.tracking.enabled:
        return []
    from dreamfleet.serving.recording import recorder

    return [recorder(_serve_settings(config, folder), config.tracking.uri, progress.warn)]


def _open(path: Path) -> None:
    """Show a picture where there is a screen; without one a browser would take the terminal."""
    import os
    import sys
    import webbrowser

    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return
    webbrowser.open(path.absolute().as_uri())
