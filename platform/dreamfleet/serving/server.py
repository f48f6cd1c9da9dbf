"""`dreamfleet serve`: a private Ray with the application on it, until a signal comes."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dreamfleet.config import ClusterConfig, RunConfig
from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.runtime.ports import port_problem
from dreamfleet.runtime.progress import Progress
from dreamfleet.runtime.room import as_text, bundle
from dreamfleet.runtime.session import RaySession, ray_address, ray_session, visible_cpus
from dreamfleet.serving.catalogue import FolderSource
from dreamfleet.serving.settings import APP_NAME, CPUS_OF_INGRESS, LOOPBACK, ServeSettings

OnReady = Callable[[Any], Callable[[], None]]
READY_WITHIN_S = 600.0  # a large base from a slow disk
POLL_S = 0.25
ANSWER_S = 4.0
END_S = 3.0
HEAD = "node:__internal_head__"  # what Ray calls a resource that its head alone has
EVERYWHERE = ("0.0.0.0", "::")


def serve_foreground(
    settings: ServeSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    cluster: ClusterConfig | None = None,
    progress: Progress,
    on_ready: Sequence[OnReady] = (),
    done: Callable[[], bool] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is under way and end all processes.

    Args:
        settings: of the application.
        cluster: which Ray; default: a private one.
        on_ready: called with the ingress's handle; what they return is called at the end.
        done: asked now and then whether to end; default: only a signal ends it.

    Raises:
        BadInputError: something given cannot be used.
        DreamfleetError: the service did not become ready.
    """
    check_address(settings, host, port, cluster or ClusterConfig())
    _check_machine(settings, cluster or ClusterConfig())
    with (
        _until_asked(),
        _no_process_left() as note_processes,
        ray_session(_with_room(settings, cluster), dashboard=False) as session,
    ):
        handle: Any = None
        begun = False
        at_end: list[Callable[[], None]] = []
        _check_keys_asked(settings, local=session.local)
        if not session.local:
            _check_joined(host, port)
        try:
            settings = _with_device(settings, session, progress)
            begun = True
            handle = _deployed(settings, host, port)
            _wait_until_ready(handle, progress)
            _announce(handle, settings, host, port, progress)
            at_end += [begin(handle) for begin in on_ready]
            while done is None or not done():
                time.sleep(POLL_S)
        finally:
            note_processes()  # first: a second signal may cut the rest short
            if handle is not None:
                progress.info("ending: what is under way is finished")
                _drain(handle, settings.drain_s)
            for end in at_end:
                end()
            if begun and not session.local:
                _delete()
            note_processes()


def check_place(host: str, port: int, cluster: ClusterConfig) -> None:
    """Refuse a place where nothing could be served, before anything is made for it; a Ray that is
    to be joined is asked.

    Raises:
        BadInputError: the port is taken here, or that Ray serves already, or elsewhere.
        DreamfleetError: it cannot be joined.
    """
    if ray_address(cluster) is None:
        check_port(host, port)
        return
    with ray_session(cluster, dashboard=False):
        _check_joined(host, port)


def _check_joined(host: str, port: int) -> None:
    """Refuse to take the place of a service that runs on a cluster already, and to end it later;
    and an address that Serve, which listens on the head and where it was first told to, would pass
    over without a word.

    Raises:
        BadInputError: naming what is there.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client  # nothing public tells where Serve listens

    if APP_NAME in serve.status().applications:
        raise BadInputError(
            f"this Ray runs a service called {APP_NAME!r} already; change it by `dreamfleet serve "
            "deploy FILE`, or end it first"
        )
    client = _get_global_client(raise_if_no_controller_running=False)
    there = client and (client.http_config.host, client.http_config.port)
    if there and there != (host, port):
        raise BadInputError(
            f"--host {host} --port {port}: Serve on this Ray listens already, and elsewhere; give "
            f"--host {there[0]} --port {there[1]}"
        )
    head = _head()
    if host in LOOPBACK and head != ray.util.get_node_ip_address():
        raise BadInputError(
            f"--host {host}: Serve listens on the head of this Ray, {head}, and would answer that "
            "machine only; give --host 0.0.0.0, or serve there"
        )


def _head() -> str:
    """The address of the node that Serve listens on."""
    import ray

    heads = (own for own in ray.nodes() if own["Alive"] and HEAD in own["Resources"])
    return str(next(heads)["NodeManagerAddress"])


def address_of(host: str, port: int) -> str:
    """Where a service that listens there is asked, while Ray runs."""
    name = _head() if host in EVERYWHERE else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _with_device(settings: ServeSettings, session: RaySession, progress: Progress) -> ServeSettings:
    """`auto` decided by what this Ray has; an engine on a GPU reserves one, and on this machine
    engines share its cores.

    Raises:
        BadInputError: a private Ray has no place for so many engines: Serve would wait for ever.
    """
    from dreamfleet.runtime.devices import choose_device

    device = choose_device(RunConfig(device=settings.device), session, progress)
    gpus = settings.gpus_per_replica or (1.0 if device == "cuda" else 0.0)
    threads = settings.num_threads or (_threads(settings) if session.local else None)
    settings = settings.model_copy(
        update={"device": device, "gpus_per_replica": gpus, "num_threads": threads}
    )
    _check_room(settings, session, progress)
    return settings


def _threads(settings: ServeSettings) -> int:
    """Cores that one of the engines may use when all of them are there."""
    return max(1, visible_cpus() // (settings.max_replicas or settings.num_replicas))


def _check_room(settings: ServeSettings, session: RaySession, progress: Progress) -> None:
    count, gpus = settings.num_replicas, settings.gpus_per_replica
    if session.local:
        if gpus and count > _places(session.num_gpus, gpus):
            raise BadInputError(
                f"{count} engines (num_replicas) of {gpus:g} GPU each (gpus_per_replica): this "
                f"machine has {session.num_gpus:g} GPUs; lower one of them"
            )
        return
    import ray

    each = bundle({"num_cpus": settings.cpus_per_replica, "num_gpus": gpus})
    there = ray.available_resources()
    if any(count * wanted > there.get(name, 0.0) for name, wanted in each.items()):
        progress.warn(
            f"{count} engines want {as_text(each)} each, free in the cluster are "
            f"{as_text({name: there.get(name, 0.0) for name in each})}: the service is ready when "
            "there is room for all (Ctrl-C ends the waiting)"
        )


def _places(num_gpus: float, each: float) -> int:
    """How many engines find room; parts of one do not lie on two GPUs."""
    return int(num_gpus) * int(1 / each) if each < 1 else int(num_gpus / each)


def _with_room(settings: ServeSettings, cluster: ClusterConfig | None) -> ClusterConfig:
    """Logical CPUs for all that runs at once: on a small machine it shares cores."""
    engines = settings.cpus_per_replica * (settings.max_replicas or settings.num_replicas)
    wanted = math.ceil(engines + CPUS_OF_INGRESS * settings.num_ingress)
    return (cluster or ClusterConfig()).model_copy(update={"num_workers": max(1, wanted)})


def check_address(settings: ServeSettings, host: str, port: int, cluster: ClusterConfig) -> None:
    """Refuse what can be refused before Ray starts.

    Raises:
        BadInputError: no keys on an address that others reach, no folder or registry, or the port
            is taken, where a private Ray here is to serve.
    """
    if not settings.auth and host not in LOOPBACK:
        raise BadInputError(
            f"--no-auth with --host {host}: without keys the service answers this machine only; "
            "leave --host out, or leave --no-auth out and use `dreamfleet keys create`"
        )
    if settings.registry is not None:
        from dreamfleet.tracking.registry import registered_adapters

        registered_adapters(settings.registry, settings.registry_models)
    else:
        FolderSource(settings.adapters or "")
    if ray_address(cluster) is None:
        check_port(host, port)


def _check_machine(settings: ServeSettings, cluster: ClusterConfig) -> None:
    """Refuse a GPU or a base that this machine has not, where a private Ray here is to serve.

    Raises:
        BadInputError: naming it, before Ray starts.
    """
    from dreamfleet.bases import inspect_base
    from dreamfleet.runtime.devices import check_local_device

    check_local_device(RunConfig(device=settings.device, cluster=cluster))
    if ray_address(cluster) is None:
        inspect_base(settings.base_model)


def _check_keys_asked(settings: ServeSettings, *, local: bool) -> None:
    """On a Ray that others started Serve may listen already, and wherever it was told to."""
    if not settings.auth and not local:
        raise BadInputError(
            "--no-auth with a Ray cluster: without keys the service answers this machine only; "
            "leave --no-auth out and use `dreamfleet keys create`, or leave the cluster out"
        )


def check_port(host: str, port: int) -> None:
    """Raise BadInputError if the port cannot be listened on."""
    if problem := port_problem(host, port):
        raise BadInputError(problem)


def base_of_adapters(folder: str | Path) -> str:
    """The base model that most adapters in a folder were made for, by name; `embedded` where they
    do not say.
    """
    root = FolderSource(folder).root
    named: Counter[str] = Counter()
    for path in [root / "adapter.json", *sorted(root.glob("*/adapter.json"))]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            named[str(json.loads(path.read_text(encoding="utf-8"))["base"]["name"])] += 1
    return named.most_common(1)[0][0] if named else "embedded"


def _deployed(settings: ServeSettings, host: str, port: int) -> Any:
    import logging

    from ray import serve

    from dreamfleet.serving.application import build_app

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config=quiet,
    )
    return serve.run(
        build_app(settings.model_dump(mode="json")),
        name=APP_NAME,
        route_prefix="/",
        logging_config=quiet,
    )


def _wait_until_ready(handle: Any, progress: Progress) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    progress.info("loading the base model")
    while True:
        state = handle.state.remote().result(timeout_s=READY_WITHIN_S)
        if state["ready"]:
            break
        if state["failed"] or time.monotonic() > deadline:
            raise DreamfleetError(f"the service did not become ready: {state['trouble']}")
        time.sleep(POLL_S)
    for name, problem in state["problems"].items():
        progress.warn(f"adapter {name} is left out: {problem}")


def _announce(
    handle: Any, settings: ServeSettings, host: str, port: int, progress: Progress
) -> None:
    names = handle.state.remote().result(timeout_s=60)["adapters"]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    where = address_of(host, port)
    progress.info(f"ready: {where}/  (studio; the API's fields: {where}/docs)")
    progress.info(f"adapters: {shown or 'none yet'}")
    if settings.auth:
        from dreamfleet.serving.keys import KeyFile

        if not KeyFile(settings.keys_file).keys():
            progress.warn("there is no API key yet: `dreamfleet keys create` makes one")
    else:
        progress.warn("no keys are asked for (--no-auth): every process here may draw and change")


def _drain(handle: Any, drain_s: float) -> None:
    """No new requests; wait for those that are under way. All in all it takes `drain_s` seconds,
    or as long as an ingress that does not answer is waited for.
    """
    until = time.monotonic() + max(drain_s, ANSWER_S)
    deadline = time.monotonic() + drain_s
    with contextlib.suppress(Exception):
        handle.drain.remote().result(timeout_s=ANSWER_S)
        while time.monotonic() < deadline:
            rest_s = min(ANSWER_S, max(0.0, until - time.monotonic()))
            if not handle.state.remote().result(timeout_s=rest_s)["under_way"]:
                break
            time.sleep(POLL_S)


def _delete() -> None:
    """Take the application off a cluster that goes on; a private Ray ends with all it holds."""
    from ray import serve

    with contextlib.suppress(Exception):
        serve.delete(APP_NAME)


@contextlib.contextmanager
def _no_process_left() -> Iterator[Callable[[], None]]:
    """Wait for the processes that were started inside; those that do not end are killed.

    What it gives is called before they end: orphans could not be told from others' processes.
    """
    import psutil

    own = psutil.Process()
    before = set(own.children(recursive=True))
    started: set[psutil.Process] = set()
    try:
        yield lambda: started.update(own.children(recursive=True))
    finally:
        _, left = psutil.wait_procs(started - before, timeout=END_S)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=END_S)


class _Asked(KeyboardInterrupt):
    """The first signal: end in good order."""


@contextlib.contextmanager
def _until_asked() -> Iterator[None]:
    """SIGTERM and SIGINT interrupt what is inside, once, and that is no failure; a second one
    during the end is one.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        raise _Asked

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Asked:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
