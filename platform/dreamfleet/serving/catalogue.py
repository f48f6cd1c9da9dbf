"""Which adapters can be asked for: a folder of them, or MLflow's registry, read again and again.

The source is the only truth. Promoting and retiring write to it, so every ingress replica sees it
at its next look, and a restart forgets nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock

from dreamfleet.errors import AdapterFileError, BadInputError, first_line
from dreamfleet.runtime.storage import write_whole
from dreamfleet.serving.orders import AdapterRef, RegistryFiles, file_stamp
from dreamfleet.serving.problems import ApiProblem, no_model, unusable_model, wrong_field
from dreamfleet.serving.schemas import BASE_MODEL

if TYPE_CHECKING:
    from dreamfleet.tracking.registry import RegisteredVersion

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # as adapters.files, which would import torch
WHOLE_MODEL = "model_index.json"
METADATA_KEY = "dreamfleet"
ALIASES_FILE = "aliases.json"
RETIRED = ".retired"  # in an adapter's folder
MAX_FILE_BYTES = 4 * 2**30
MAX_HEADER_BYTES = 64 * 2**20
LARGEST = 2**63  # of numbers
CHAMPION = "champion"
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Entry:
    """One version of an adapter.

    Attributes:
        id, version: in a folder both are the folder's name; in a registry name and number.
        location: folder (or weights file) that the engines read.
        key: names the content.
        base_hash: of the base that it was made for; empty where its file does not say.
        problem: why it cannot be used; empty if it can.
        stamp: as in AdapterRef.
        origin: where it was fetched from; paths in its files mean nothing here then.
    """

    id: str
    version: str
    location: str
    key: str = ""
    base_hash: str = ""
    rank: int | None = None
    created: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    stamp: tuple[int, ...] = ()
    origin: RegistryFiles | None = None

    @property
    def ref(self) -> AdapterRef:
        return AdapterRef(self.id, self.key, self.location, self.origin, self.stamp)

    def text(self, name: str) -> str:
        """A text of adapter.json."""
        value = self.about.get(name)
        return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class Listing:
    """What a source holds at one moment.

    Attributes:
        versions: by id, by version.
        current: by id the version that the bare id stands for.
        aliases: by id: alias -> version.
    """

    versions: Mapping[str, Mapping[str, Entry]]
    current: Mapping[str, str]
    aliases: Mapping[str, Mapping[str, str]]


class Source(Protocol):
    """Where adapters come from. Methods block; they are called in threads."""

    def read(self) -> Listing:
        """All there is now."""

    def version(self, model_id: str, version: str) -> Entry:
        """One version, whether an alias points at it or not. Raises ApiProblem: 404 for an unknown
        adapter, 400 for an unknown version.
        """

    def promote(self, model_id: str, alias: str, version: str) -> None:
        """Let an alias point at a version. Raises BadInputError."""

    def retire(self, model_id: str) -> None:
        """Offer an adapter no longer; its files stay. Raises BadInputError."""


class FolderSource:
    """A folder of adapter folders, or one adapter's folder; ids are the folders' names.

    `aliases.json` in it holds {"id": {"alias": "folder name"}}; a file `.retired` in an adapter's
    folder takes it off.
    """

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(folder).expanduser().absolute()
        if not self.root.is_dir():
            raise BadInputError(
                f"--adapters {folder}: no such folder; give an adapter's folder (of `dreamfleet "
                "personalize`) or a folder of them"
            )
        self.single = any((self.root / name).is_file() for name in (WEIGHTS_NAME, WHOLE_MODEL))
        self._known: dict[Path, tuple[tuple[int, ...], Entry]] = {}

    def read(self) -> Listing:
        entries = {entry.id: entry for entry in self._entries()}
        named: Mapping[str, Mapping[str, str]] = {}
        with suppress(BadInputError):  # half written by hand: as if it were not there
            named = self._aliases()
        aliases = {
            model_id: {
                alias: name
                for alias, name in own.items()
                if name in entries and ALIAS.fullmatch(alias)
            }
            for model_id, own in named.items()
            if model_id in entries
        }
        versions = {
            model_id: {
                name: entries[name] for name in {model_id, *aliases.get(model_id, {}).values()}
            }
            for model_id in entries
        }
        return Listing(versions, {name: name for name in entries}, aliases)

    def version(self, model_id: str, version: str) -> Entry:
        entries = {entry.id: entry for entry in self._entries()}
        if model_id not in entries:
            raise no_model(model_id)
        if version not in entries:
            raise _no_version(model_id, version)
        return entries[version]

    def promote(self, model_id: str, alias: str, version: str) -> None:
        with self._lock():
            aliases = self._aliases()
            aliases.setdefault(model_id, {})[alias] = version
            text = json.dumps(aliases, indent=1, sort_keys=True)
            write_whole(self.root / ALIASES_FILE, text.encode())

    def retire(self, model_id: str) -> None:
        place = next((entry for entry in self._entries() if entry.id == model_id), None)
        if place is None:
            raise BadInputError(f"{model_id!r}: no such adapter in {self.root.name}")
        try:
            (Path(place.location) / RETIRED).touch()
        except OSError as error:
            raise BadInputError(
                f"{place.location}: cannot be written ({error.strerror})"
            ) from error

    def _lock(self) -> FileLock:
        try:
            (self.root / f".{ALIASES_FILE}.lock").touch()
        except OSError as error:
            raise BadInputError(f"{self.root}: cannot be written ({error.strerror})") from error
        return FileLock(self.root / f".{ALIASES_FILE}.lock", timeout=30)

    def _entries(self) -> Iterable[Entry]:
        folders = [self.root] if self.single else sorted(self.root.iterdir())
        for folder in folders:
            try:
                entry = self._looked_at(folder)
            except Exception as error:  # one folder must not take the others down
                name = plain(folder.name)
                entry = Entry(name, name, str(folder), problem=first_line(error)[:300])
            if entry is not None:
                yield entry

    def _looked_at(self, folder: Path) -> Entry | None:
        """The adapter in a folder; None: there is none to be offered."""
        weights = folder / WEIGHTS_NAME
        if (folder / RETIRED).exists():
            return None
        if weights.is_file():
            if problem := name_problem(folder.name):
                raise AdapterFileError(problem)
            return self._entry(folder, weights)
        if (folder / WHOLE_MODEL).is_file():
            reason = "it is a fully fine-tuned model; only LoRA adapters share a base"
            return Entry(folder.name, folder.name, str(folder), problem=reason)
        return None

    def _entry(self, folder: Path, weights: Path) -> Entry:
        """An adapter as it was looked at, as long as its files stay the same."""
        seen = _stamp(weights) + _stamp(folder / "adapter.json")
        known = self._known.get(folder)
        # What could not be read may be readable now, with the same files.
        if known is None or known[0] != seen or known[1].problem:
            known = (seen, inspect(folder.name, folder.name, folder))
            self._known[folder] = known
        return known[1]

    def _aliases(self) -> dict[str, dict[str, str]]:
        """What the file says, whether it means anything or not.

        Raises:
            BadInputError: it cannot be read.
        """
        path = self.root / ALIASES_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {
                str(model_id): {str(alias): str(name) for alias, name in own.items()}
                for model_id, own in content.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise BadInputError(
                f'{path}: cannot be read ({first_line(error)}); expected {{"id": {{"alias": '
                '"folder name"}}; mend it, or move it away to begin without aliases'
            ) from error


class RegistrySource:
    """Versions of MLflow's registered models that are adapters.

    `id` stands for the version with alias champion, else the newest one.

    Args:
        uri: of MLflow.
        cache: where versions are copied to when they are first wanted.
        names: only these registered models; empty: all.
    """

    def __init__(self, uri: str, cache: Path, names: tuple[str, ...] = ()) -> None:
        self.uri, self.cache, self.names = uri, cache, names
        self._known: dict[str, Entry] = {}

    def read(self) -> Listing:
        from dreamfleet.tracking.registry import registered_adapters

        versions: dict[str, dict[str, Entry]] = {}
        current: dict[str, str] = {}
        aliases: dict[str, dict[str, str]] = {}
        for model in registered_adapters(self.uri, self.names):
            wanted = {model.versions[0].version, *model.aliases.values()}
            own = {
                version.version: self._entry(version)
                for version in model.versions
                if version.version in wanted
            }
            versions[model.name], aliases[model.name] = own, dict(model.aliases)
            current[model.name] = model.aliases.get(CHAMPION, model.versions[0].version)
        return Listing(versions, current, aliases)

    def version(self, model_id: str, version: str) -> Entry:
        from dreamfleet.tracking.registry import registered_adapters

        models = registered_adapters(self.uri, (model_id,))
        if not models:
            raise no_model(model_id)
        for own in models[0].versions:
            if own.version == version:
                return self._entry(own)
        raise _no_version(model_id, version)

    def promote(self, model_id: str, alias: str, version: str) -> None:
        from dreamfleet.tracking.registry import set_alias

        set_alias(self.uri, model_id, alias, version)

    def retire(self, model_id: str) -> None:
        from dreamfleet.tracking.registry import retire

        retire(self.uri, model_id)

    def _entry(self, version: RegisteredVersion) -> Entry:
        # A version of this name and number may be another one in another, or a wiped, registry.
        told = [self.uri, version.name, version.version, version.source, version.run_id]
        digest = hashlib.sha256(json.dumps([*told, version.created]).encode()).hexdigest()[:16]
        if digest not in self._known or self._known[digest].problem:
            self._known[digest] = self._fetched(version, digest)
        return self._known[digest]

    def _fetched(self, version: RegisteredVersion, digest: str) -> Entry:
        from dreamfleet.tracking.registry import fetch_version

        safe = re.sub(r"[^\w.-]", "_", version.name)
        place = self.cache / f"{safe}-{version.version}-{digest}"
        origin = RegistryFiles(
            self.uri, version.name, version.version, version.source, str(place), version.run_id
        )
        try:
            weights = fetch_version(self.uri, version, place)
            entry = inspect(version.name, version.version, weights.parent)
        except Exception as error:  # one version must not take the others down
            return Entry(version.name, version.version, str(place), problem=first_line(error)[:300])
        tags = {key: value for key, value in version.tags.items() if key in ("class_word", "token")}
        about = {**tags, **entry.about}
        key = f"{version.name}#{digest}"  # the same on every node
        # No stamp: each node copies the file at a time of its own.
        return replace(
            entry, key=key, about=about, created=version.created, stamp=(), origin=origin
        )


class Catalogue:
    """A source as it was last read.

    Args:
        source: where from.
        base_hash: of the engines' base; adapters of another one are not offered.
        max_rank: adapters of larger rank are not offered: every slot would have to grow.
    """

    def __init__(
        self, source: Source, base_hash: Callable[[], str | None], max_rank: int = 128
    ) -> None:
        self._source, self._base_hash, self._max_rank = source, base_hash, max_rank
        self._listing = Listing({}, {}, {})
        self._looking = threading.Lock()
        self.read = False  # at least once

    def refresh(self) -> None:
        """Look again (blocks). One look after the other: an older one never comes out on top."""
        with self._looking:
            self._listing = self._source.read()
        self.read = True

    def promote(self, model_id: str, alias: str, version: str) -> None:
        """As `Source.promote`, and look again (blocks). The alias stays where it is if the version
        cannot be used here.

        Raises:
            ApiProblem: 400, it cannot be, or there is no such version; 404 for an unknown adapter.
        """
        if problem := self._problem(self._source.version(model_id, version)):
            raise wrong_field("version", f"version {version!r} cannot be used: {problem}")
        self._source.promote(model_id, alias, version)
        self.refresh()

    def retire(self, model_id: str) -> None:
        """As `Source.retire`, and look again (blocks); one that cannot be used may go, too.

        Raises:
            ApiProblem: 404 for an unknown one.
        """
        if model_id not in self._listing.versions:
            raise no_model(model_id)
        self._source.retire(model_id)
        self.refresh()

    def resolve(self, name: str) -> Entry:
        """The version that `id` or `id@alias` (or `id@version`) stands for now.

        Raises:
            ApiProblem: 404 for an unknown one, 503 for one that cannot be used.
        """
        model_id, at, alias = name.partition("@")
        listing = self._listing
        versions = listing.versions.get(model_id)
        if versions is None:
            raise no_model(name)
        if not at:
            version = listing.current[model_id]
        else:
            version = listing.aliases.get(model_id, {}).get(alias, alias)
        entry = versions.get(version)
        if entry is None:
            raise no_model(name)
        if problem := self._problem(entry):
            raise unusable_model(name, problem)
        return entry

    def usable(self) -> list[tuple[Entry, Mapping[str, str]]]:
        """What ids stand for now, with their aliases; those that cannot be used are left out."""
        listing = self._listing
        found = []
        for model_id in sorted(listing.versions):
            entry = listing.versions[model_id].get(listing.current[model_id])
            if entry is not None and not self._problem(entry):
                found.append((entry, listing.aliases.get(model_id, {})))
        return found

    def problems(self) -> dict[str, str]:
        """By id what cannot be used, and why."""
        found = {}
        for model_id, versions in self._listing.versions.items():
            for entry in versions.values():
                if problem := self._problem(entry):
                    found[f"{model_id}@{entry.version}"] = problem
        return found

    def __len__(self) -> int:
        return len(self._listing.versions)

    def _problem(self, entry: Entry) -> str:
        if entry.problem:
            return entry.problem
        if entry.rank is not None and entry.rank > self._max_rank:
            return f"its rank is {entry.rank}, and this service takes up to {self._max_rank}"
        wanted = self._base_hash()
        if wanted and entry.base_hash and entry.base_hash != wanted:
            return (
                f"it was made for a base model with hash {entry.base_hash[:12]}, and this service "
                f"runs one with hash {wanted[:12]}"
            )
        return ""


def _no_version(model_id: str, version: str) -> ApiProblem:
    return wrong_field("version", f"model {model_id[:200]!r} has no version {version!r}")


def inspect(model_id: str, version: str, folder: Path) -> Entry:
    """An adapter by its file's header and its adapter.json; weights are not read.

    The engines check the rest when they load it: shapes against the base, finite values.
    """
    weights = folder / WEIGHTS_NAME
    try:
        stamp = _stamp(weights)
        about, rank = _header(weights)
    except (AdapterFileError, OSError) as error:
        return Entry(model_id, version, str(folder), problem=first_line(error)[:300])
    told = json.dumps([model_id, version, *stamp])
    return Entry(
        id=model_id,
        version=version,
        location=str(folder),
        key=f"{model_id}#{hashlib.sha256(told.encode()).hexdigest()[:16]}",
        base_hash=str(about.get("base_hash") or ""),
        rank=rank,
        created=int(stamp[0] / 1e9),
        about=_adapter_json(folder),
        problem=name_problem(model_id),
        stamp=file_stamp(weights),
    )


def name_problem(name: str) -> str:
    """Why an adapter of this name could not be asked for; empty if it can."""
    if plain(name) != name:
        return "its name is no text"
    if "@" in name:
        return "its name has an @, which stands before an alias"
    return "" if name != BASE_MODEL else f"the id {BASE_MODEL!r} is the base model's own"


def registered_as(entry: Entry) -> str:
    """An adapter's version in MLflow's registry, as MLflow writes it; empty where unknown."""
    if entry.origin is not None:
        return f"models:/{entry.id}/{entry.version}"
    tracking = entry.about.get("tracking")
    version = tracking.get("model_version") if isinstance(tracking, dict) else None
    name = entry.text("name")
    return f"models:/{name}/{version}" if name and version else ""


def _header(weights: Path) -> tuple[dict[str, Any], int | None]:
    """What the file says of its base, and the largest rank of its layers."""
    from safetensors import SafetensorError, safe_open

    size = weights.stat().st_size
    if size > MAX_FILE_BYTES:
        raise AdapterFileError(f"its file has {size} bytes; at most {MAX_FILE_BYTES} are read")
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, max(0, size - 8)):
        raise AdapterFileError("its file is no safetensors file")
    try:
        with safe_open(weights, framework="np") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
            ranks = [
                int(file.get_slice(key).get_shape()[0])
                for key in keys
                if key.endswith(".lora_A.weight")
            ]
    except (SafetensorError, OSError, ValueError, IndexError) as error:
        raise AdapterFileError(f"its file is damaged: {first_line(error)}") from error
    if not ranks:
        raise AdapterFileError("its file holds no LoRA in PEFT's naming")
    try:
        about = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        about = {}
    return about if isinstance(about, dict) else {}, max(ranks, default=None)


def _adapter_json(folder: Path) -> dict[str, Any]:
    path = folder / "adapter.json"
    try:
        if path.stat().st_size > 4 * 2**20:
            return {}
        content = _answerable(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _answerable(value: Any) -> Any:
    """JSON as it can be put into answers: texts in UTF-8, finite numbers; others become None."""
    if isinstance(value, dict):
        return {plain(key): _answerable(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_answerable(own) for own in value]
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, int | float) and not abs(value) < LARGEST:  # NaN is not either
        return None
    return value


def plain(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
