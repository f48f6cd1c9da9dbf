"""The whole loop in one command: photos in, a served subject and its first picture out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.config import ClusterConfig, RunConfig
from dreamfleet.errors import BadInputError, DreamfleetError, first_line
from dreamfleet.runtime.progress import Progress, SilentProgress
from dreamfleet.runtime.storage import Folder

if TYPE_CHECKING:
    from dreamfleet.serving.settings import ServeSettings

PROMPT = "a photo of {token} {class} on the beach"
PICTURE = "served.png"
KEY_NAME = "launch"


@dataclass(frozen=True)
class LaunchSettings:
    """What a launch is asked for beside the recipe.

    Attributes:
        prompt: of the first picture; None: on the beach.
        host, port: where to serve; port 0: any free one.
        resume, overwrite: as for `personalize` and `tune`.
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


@dataclass(frozen=True)
class Made:
    """Adapters that can be served now.

    Attributes:
        model: the first one, as clients ask for it.
        folder: of the first one, on this machine.
        source: flags of `dreamfleet serve` that name all of them.
        failures: subjects that have none.
    """

    model: str
    folder: Path
    source: Mapping[str, Any]
    failures: int = 0


def launch(
    config: RunConfig,
    settings: LaunchSettings,
    *,
    say: Callable[[str], Any],
    progress: Progress | None = None,
) -> Made:
    """Make adapters of the photos, serve them, and draw a first picture over HTTP.

    Serves until a signal comes, or with `once` until the picture is there. A recipe that says
    anything about a search (sections `tune` and `space`) is searched, and champions are served.

    Args:
        say: takes lines with results: where things are, and the key of this launch.

    Raises:
        BadInputError: something given cannot be used; named, before anything starts where possible.
        DreamfleetError: no subject was finished, the service did not start, or the picture failed.
        KeyboardInterrupt: with `once`, before there is a picture.
    """
    from dreamfleet.runtime.ports import free_port
    from dreamfleet.serving.server import check_place, serve_foreground

    cluster = ClusterConfig(ray_address=config.cluster.ray_address)
    _check_servable(config, settings)  # not after an hour
    check_place(settings.host, settings.port or free_port(settings.host), cluster)
    told = progress or SilentProgress()
    made = make_adapters(config, settings, say, told)
    # Any free one: free now, whatever happened while the adapters were made.
    settings = replace(settings, port=settings.port or free_port(settings.host))
    served = _serve_settings(config, made.source)
    # Its key is forgotten below, whatever comes.
    first = _FirstPicture(settings, made, say, told.warn)
    try:
        serve_foreground(
            served,
            host=settings.host,
            port=settings.port,
            cluster=cluster,
            progress=told,
            on_ready=[first.begin, *_recorders(config, served, told)],
            done=first.done.is_set if settings.once else None,
        )
    finally:
        first.forget_key()
    if first.error is not None:
        raise first.error
    if settings.once and not first.done.is_set():  # a signal ends a service in good order
        raise KeyboardInterrupt
    return made


def _check_servable(config: RunConfig, settings: LaunchSettings) -> None:
    """Refuse what can be made and not be served, before it is made.

    Raises:
        BadInputError: naming it.
    """
    from dreamfleet.serving.catalogue import name_problem
    from dreamfleet.serving.keys import KeyFile
    from dreamfleet.serving.schemas import MAX_PROMPT_CHARS
    from dreamfleet.serving.settings import ServeSettings

    if config.train.mode == "full":
        raise BadInputError(
            "train.mode = 'full': only LoRA adapters share a base and are served; leave it out, or "
            "use `dreamfleet personalize` and `dreamfleet generate`"
        )
    rank, most = _largest_rank(config), ServeSettings.model_fields["max_rank"].default
    if rank > most:
        raise BadInputError(
            f"train.rank, space.rank: up to {rank}, and `launch` serves up to {most}; give smaller "
            "ones, or use `dreamfleet personalize` or `tune`, and a Serve file with max_rank"
        )
    if len(settings.prompt or "") > MAX_PROMPT_CHARS:
        raise BadInputError(
            f"--prompt: {len(settings.prompt or '')} characters; expected at most "
            f"{MAX_PROMPT_CHARS}"
        )
    for key, name in _names(config):
        if problem := name_problem(name):
            raise BadInputError(f"{key} {name!r}: cannot be served, {problem}; give another one")
    KeyFile().keys()  # the service would let nobody in


def _names(config: RunConfig) -> list[tuple[str, str]]:
    """What the adapters will be asked for by, and what gives them these names."""
    from dreamfleet.data.subjects import requested_subjects
    from dreamfleet.personalization.planning import output_root

    requests = requested_subjects(config)
    if len(requests) == 1 and not _is_searched(config):
        return [("output folder", output_root(config, requests).name)]
    return [("subject", request.id) for request in requests]


def _largest_rank(config: RunConfig) -> int:
    """Of all adapters that may be made; the bases' own ranks are small."""
    own = config.train.rank or 1
    if not _is_searched(config):
        return own
    return max(own, *(config.space.rank or [2 * own]))  # as `tuning.space` searches


def _is_searched(config: RunConfig) -> bool:
    return bool(config.tune.model_fields_set or config.space.model_fields_set)


def make_adapters(
    config: RunConfig, settings: LaunchSettings, say: Callable[[str], Any], progress: Progress
) -> Made:
    """Prepare, then train the recipe as it is or search it, and register."""
    make = _tuned if _is_searched(config) else _trained
    return make(config, settings, say, progress)


def _trained(
    config: RunConfig, settings: LaunchSettings, say: Callable[[str], Any], progress: Progress
) -> Made:
    """One training per subject; served out of their folder."""
    from dreamfleet.personalization import personalize

    if config.output_dir and Folder(config.output_dir).local is None:
        raise BadInputError(
            f"output_dir = {config.output_dir!r}: a folder on this machine is served; launch with "
            "a local --output-dir, or personalize there and `dreamfleet serve --registry "
            f"--base-model {config.base_source}`"
        )
    result = personalize(
        config, resume=settings.resume, overwrite=settings.overwrite, progress=progress
    )
    finished = [subject for subject in result.subjects if subject.status == "finished"]
    if not finished:
        raise DreamfleetError("no subject was finished, see above; there is nothing to serve")
    first = finished[0].output_dir
    folder = first if len(result.subjects) == 1 else first.parent
    return Made(first.name, first, {"adapters": str(folder)}, len(result.failures))


def _tuned(
    config: RunConfig, settings: LaunchSettings, say: Callable[[str], Any], progress: Progress
) -> Made:
    """One study per subject; champions are served out of the registry, where they are."""
    from dreamfleet.tuning.command import CHAMPION, tune

    result = tune(config, resume=settings.resume, overwrite=settings.overwrite, progress=progress)
    for line in (line for subject in result.subjects for line in subject.lines()):
        say(line)
    finished = [subject for subject in result.subjects if subject.status == "finished"]
    if not finished:
        raise DreamfleetError("no study has a champion, see above; there is nothing to serve")
    first, failures = finished[0], len(result.failures)
    folder = first.output_dir / CHAMPION
    if all(subject.alias for subject in finished):
        models = [subject.id for subject in finished]
        source = {
            "registry": True,
            "tracking_uri": config.tracking.uri,
            "registry_models": models,
        }
        return Made(f"{first.id}@{first.alias}", folder, source, failures)
    if len(result.subjects) > 1:
        raise DreamfleetError(
            "the champions of several subjects are served out of MLflow's registry, and they are "
            f"not registered; each lies in a folder of its own, e.g. {folder}"
        )
    return Made(folder.name, folder, {"adapters": str(folder)}, failures)


class _FirstPicture:
    """Asks the service for a picture, as any client would, in a thread of its own.

    Args:
        warn: is told at once why there is no picture, where the service goes on.
    """

    def __init__(
        self,
        settings: LaunchSettings,
        made: Made,
        say: Callable[[str], Any],
        warn: Callable[[str], Any],
    ) -> None:
        from dreamfleet.serving.keys import KeyFile

        self._settings, self._made, self._say, self._warn = settings, made, say, warn
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
        from dreamfleet.serving.server import address_of

        settings = self._settings
        try:
            address = address_of(settings.host, settings.port)
            if not settings.once:
                self._say(f"studio    {address}/")
                self._say(f"API key   {self._key}  (good until this ends)")
            path = self._drawn(address)
            self._say(f"picture   {path}")
            if settings.show:
                _open(path)
        except DreamfleetError as error:
            self.error = error
        except Exception as error:  # the thread's own end would tell nobody
            text = f"{type(error).__name__}: {first_line(error)} (unexpected)"
            self.error = DreamfleetError(text)
        finally:
            self.done.set()
        if self.error is not None and not settings.once:
            self._warn(f"no first picture: {self.error}")

    def _drawn(self, address: str) -> Path:
        """The file with the picture."""
        from dreamfleet.serving.client import query

        prompt = self._settings.prompt or PROMPT
        wish = {"model": self._made.model, "prompt": prompt, "seed": 0}
        ((_, picture),) = query(address, wish, key=self._key, progress=SilentProgress())
        path = self._made.folder / PICTURE
        try:
            path.write_bytes(picture)
        except OSError as error:
            raise DreamfleetError(
                f"{self._made.folder}: cannot be written ({error.strerror})"
            ) from error
        return path


def _serve_settings(config: RunConfig, source: Mapping[str, Any]) -> ServeSettings:
    from dreamfleet.serving.command import settings_from_flags

    return settings_from_flags(
        {
            **source,
            "base_model": config.base_source,
            "device": config.device,
            "mixed_precision": config.train.mixed_precision,
            "safety_checker": config.sampling.safety_checker,
        }
    )


def _recorders(config: RunConfig, served: ServeSettings, progress: Progress) -> list[Any]:
    if not config.tracking.enabled:
        return []
    from dreamfleet.serving.recording import recorder

    return [recorder(served, config.tracking, progress.warn)]


def _open(path: Path) -> None:
    """Show a picture where there is a screen; without one a browser would take the terminal."""
    import os
    import sys
    import webbrowser

    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return
    webbrowser.open(path.absolute().as_uri())
