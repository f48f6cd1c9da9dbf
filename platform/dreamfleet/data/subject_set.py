"""Photos → subject set: validated, cropped, weighted and encoded by Ray Data, kept photo by photo
in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamfleet.data.cache import Cache, cache_key
from dreamfleet.data.crops import Saliency, crop_square, subject_saliency
from dreamfleet.data.duplicates import duplicate_groups, weights
from dreamfleet.data.names import safe_id
from dreamfleet.data.photos import (
    Fingerprint,
    content_hash,
    fingerprint,
    from_png,
    read_photo,
    shrink,
    to_png,
)
from dreamfleet.data.ray_pipeline import actor_pool, dataset, rows_of
from dreamfleet.data.sources import FoundPhotos, PhotoSource, Skipped
from dreamfleet.data.subjects import SubjectRequest, fill_prompt
from dreamfleet.errors import SubjectSetError
from dreamfleet.runtime.storage import Folder

if TYPE_CHECKING:
    from dreamfleet.runtime.progress import Progress
    from dreamfleet.runtime.session import RaySession

CACHE_VERSION = 1
# Small sets travel inside the rows, so that workers on other nodes need no shared folder.
EMBED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PhotoSettings:
    """Everything that decides what becomes of a photo, beside its bytes."""

    resolution: int
    crop: str
    max_pixels: int
    base_model: str
    vae_hash: str
    device: str = "cpu"

    def key(self, data_hash: str) -> str:
        return cache_key(
            version=CACHE_VERSION,
            photo=data_hash,
            resolution=self.resolution,
            crop=self.crop if self.crop == "center" else subject_saliency(self.base_model)[0],
            max_pixels=self.max_pixels,
            vae=self.vae_hash,
        )


@dataclass(frozen=True)
class Photo:
    """One photo of a subject set."""

    name: str
    content_hash: str  # SHA-256 of the file
    width: int  # of the upright original, pixels
    height: int
    caption: str | None
    weight: float  # copies of one photo share a weight of 1
    png: bytes  # the square that is trained on
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SubjectSet:
    """All that training needs to know about a subject.

    Latents are posterior moments of the VAE, scaled as the UNet expects them: [N, C, h, w],
    float32; `flipped_mean` and `flipped_std` are those of the mirrored photos.
    """

    id: str
    display_name: str
    class_word: str
    token: str
    photos: tuple[Photo, ...]
    prompts: tuple[str, ...]  # one per photo: its caption, or the subject's prompt
    latent_mean: np.ndarray
    latent_std: np.ndarray
    flipped_mean: np.ndarray
    flipped_std: np.ndarray
    skipped: tuple[Skipped, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()  # groups of names
    warnings: tuple[str, ...] = ()

    @property
    def content_key(self) -> str:
        """Hash of what training sees: photos, weights and prompts, in order."""
        return cache_key(
            photos=[[p.content_hash, p.weight] for p in self.photos], prompts=list(self.prompts)
        )

    def summary(self) -> list[str]:
        """Lines for the user: what is used, what is not, and why."""
        count = len(self.photos)
        lines = [
            f"{self.display_name}: {count} photo{'s' if count != 1 else ''} of a {self.class_word}"
        ]
        lines += [f"  skipped {item.name}: {item.reason}" for item in self.skipped]
        lines += [f"  same picture, weighted once: {', '.join(group)}" for group in self.duplicates]
        lines += [f"  {photo.name}: {note}" for photo in self.photos for note in photo.notes]
        return lines

    def write_pictures(self, folder: Folder) -> None:
        """The training squares as PNGs, each with its prompt beside it as a caption file."""
        for index, (photo, prompt) in enumerate(zip(self.photos, self.prompts, strict=True)):
            name = f"{index:03d}-{safe_id(Path(photo.name).stem)}"
            folder.write(f"{name}.png", photo.png)
            folder.write(f"{name}.txt", f"{prompt}\n".encode())


class PhotoStore:
    """Prepared photos of many subjects; rows stay in the cache until a subject is assembled."""

    def __init__(self, cache: Cache, settings: PhotoSettings) -> None:
        self._cache, self._settings = cache, settings
        self._hashes: dict[tuple[str, str | None], str] = {}
        self._unreadable: dict[tuple[str, str | None], str] = {}

    def prepare(
        self, places: Sequence[FoundPhotos], session: RaySession | None, progress: Progress
    ) -> None:
        """Validate, crop and encode every photo of `places` that the cache does not hold yet.

        With `session` None (tests, tiny tools) the same functions run in this process.
        """
        missing = self._missing([photo for place in places for photo in place.photos])
        if not missing:
            return
        with progress.stage("photos", len(missing)) as stage:
            rows = _run(missing, self._settings, session)
            for done, row in enumerate(rows, start=1):
                self._keep(missing, row)
                stage.update(done)

    def _keep(self, missing: Mapping[str, PhotoSource], row: dict[str, Any]) -> None:
        """Put a row into the cache; not what befell the reading of its photo just now, which says
        nothing about these bytes.
        """
        key = str(row.pop("key"))
        wanted = _place(missing[key])
        if row["sha256"] == self._hashes[wanted]:
            self._cache.put("photos", key, [row])
            return
        reason = str(row["reason"]) or "changed while it was read; run the command again"
        same = [place for place, found in self._hashes.items() if found == self._hashes[wanted]]
        self._unreadable |= dict.fromkeys(same, reason)

    def _missing(self, sources: Sequence[PhotoSource]) -> dict[str, PhotoSource]:
        """Photos to prepare, by cache key; exact copies only once."""
        missing: dict[str, PhotoSource] = {}
        for source in sources:
            place = _place(source)
            try:
                self._hashes[place] = content_hash(source.read())
            except SubjectSetError as error:
                self._unreadable[place] = str(error)
                continue
            key = self._settings.key(self._hashes[place])
            if self._cache.get("photos", key) is None:
                missing[key] = source
        return missing

    def assemble(self, request: SubjectRequest) -> SubjectSet:
        """The subject set of a request whose photos were prepared.

        Raises:
            SubjectSetError: no photo can be used; lists each with its reason.
        """
        if request.found is None:
            raise SubjectSetError(request.error or f"no photos of {request.display_name}")
        used, skipped = self.rows(request.found)
        if not used:
            listed = "; ".join(f"{item.name}: {item.reason}" for item in skipped)
            raise SubjectSetError(
                f"no usable photo in {request.found.location}: {listed}; give at least one "
                "good picture"
            )
        groups = duplicate_groups(
            [row["sha256"] for _, row in used], [_fingerprint(row) for _, row in used]
        )
        photos = tuple(
            _photo(source, row, weight)
            for (source, row), weight in zip(used, weights(groups), strict=True)
        )
        prompts, prompt_warnings = _prompts(request, photos)
        return SubjectSet(
            id=request.id,
            display_name=request.display_name,
            class_word=request.config.subject.class_word,
            token=request.config.subject.token,
            photos=photos,
            prompts=prompts,
            **stacked_moments([row for _, row in used]),
            skipped=tuple(skipped),
            duplicates=_named_groups(groups, photos),
            warnings=(*request.found.warnings, *prompt_warnings),
        )

    def rows(
        self, found: FoundPhotos
    ) -> tuple[list[tuple[PhotoSource, dict[str, Any]]], list[Skipped]]:
        """Usable photos of a place with their prepared rows, and all that is skipped."""
        used, skipped = [], list(found.skipped)
        for source in found.photos:
            place = _place(source)
            if place in self._unreadable:
                skipped.append(Skipped(source.name, self._unreadable[place]))
                continue
            rows = self._cache.get("photos", self._settings.key(self._hashes[place]))
            if not rows:
                raise SubjectSetError(
                    f"{source.name}: gone from the cache in the middle of the run; raise "
                    "data.cache_max_gib"
                )
            if rows[0]["reason"]:
                skipped.append(Skipped(source.name, str(rows[0]["reason"])))
            else:
                used.append((source, rows[0]))
        return used, skipped


def _place(source: PhotoSource) -> tuple[str, str | None]:
    return source.location, source.member


def _photo(source: PhotoSource, row: Mapping[str, Any], weight: float) -> Photo:
    return Photo(
        name=source.name,
        content_hash=row["sha256"],
        width=row["width"],
        height=row["height"],
        caption=source.caption,
        weight=weight,
        png=row["png"],
        notes=tuple(note for note in row["notes"].split("\n") if note),
    )


def _fingerprint(row: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(
        int(row["phash"], 16), np.frombuffer(row["thumbnail"], np.uint8).reshape(-1, 3)
    )


def _named_groups(groups: Sequence[int], photos: Sequence[Photo]) -> tuple[tuple[str, ...], ...]:
    members = [
        tuple(photo.name for photo, group in zip(photos, groups, strict=True) if group == first)
        for first in sorted(set(groups))
    ]
    return tuple(names for names in members if len(names) > 1)


def _prompts(request: SubjectRequest, photos: Sequence[Photo]) -> tuple[tuple[str, ...], list[str]]:
    warnings, prompts = [], []
    token = request.config.subject.token
    for photo in photos:
        prompt = (
            request.prompt if photo.caption is None else fill_prompt(photo.caption, request.config)
        )
        if token not in prompt:
            warnings.append(
                f"{photo.name}: its caption lacks the token {token!r}, which learns nothing "
                "from this photo; "
                "write {token} where the subject stands"
            )
        prompts.append(prompt)
    return tuple(prompts), warnings


# ---- the pipeline; every function also runs without Ray


def _run(
    missing: Mapping[str, PhotoSource], settings: PhotoSettings, session: RaySession | None
) -> Any:
    rows = [
        {
            "key": key,
            "name": source.name,
            "location": source.location,
            "member": source.member or "",
            "data": b"",
        }
        for key, source in missing.items()
    ]
    if session is None:
        encoder = PhotoEncoder(settings)
        return (encoder.encode(validate_row(row, settings)) for row in rows)
    _embed_small(rows, list(missing.values()))
    use_gpu = settings.device == "cuda"
    blocks = -(-len(rows) // 8)
    pool, resources = actor_pool(session, -(-blocks // 4), use_gpu, num_cpus=0.5)
    pipeline = (
        dataset(rows, 8)
        .map(validate_row, fn_kwargs={"settings": settings}, num_cpus=0.5)
        .map_batches(
            PhotoEncoder,
            fn_constructor_kwargs={"settings": settings},
            batch_size=8,
            compute=pool,
            **resources,
        )
    )
    return rows_of(pipeline)


def _embed_small(rows: list[dict[str, Any]], sources: Sequence[PhotoSource]) -> None:
    contents, total = [], 0
    for source in sources:
        contents.append(source.read())
        total += len(contents[-1])
        if total > EMBED_BYTES:
            return
    for row, content in zip(rows, contents, strict=True):
        row["data"] = content


def validate_row(row: dict[str, Any], settings: PhotoSettings) -> dict[str, Any]:
    """One photo's bytes → a checked upright RGB picture with its shorter side at the training
    resolution.

    Never raises for a bad photo: `reason` says why it cannot be used. Without `sha256` the trouble
    is this machine's and this moment's, not the photo's.
    """
    result: dict[str, Any] = {
        "key": row["key"],
        "reason": "",
        "sha256": "",
        "width": 0,
        "height": 0,
    }
    result |= {"phash": "", "thumbnail": b"", "png": b"", "notes": ""}
    try:
        data = (
            row["data"] or PhotoSource(row["name"], row["location"], row["member"] or None).read()
        )
        result["sha256"] = content_hash(data)
        photo = read_photo(data, max_pixels=settings.max_pixels, resolution=settings.resolution)
    except SubjectSetError as error:
        return result | {"reason": str(error)}
    except MemoryError:
        reason = "needs more memory than there is; lower data.max_pixels"
        return result | {"reason": reason, "sha256": ""}
    notes = list(photo.notes)
    if min(photo.width, photo.height) < settings.resolution:
        notes.append(f"{photo.width}x{photo.height} enlarged to {settings.resolution}")
    marks = fingerprint(photo.image)
    return result | {
        "width": photo.width,
        "height": photo.height,
        "phash": f"{marks.phash:016x}",
        "thumbnail": marks.thumbnail.tobytes(),
        "png": to_png(shrink(photo.image, settings.resolution)),
        "notes": "\n".join(notes),
    }


class PhotoEncoder:
    """Holds the base's VAE; crops and encodes photos. One instance per actor of the pool."""

    def __init__(self, settings: PhotoSettings) -> None:
        self._settings = settings
        self._vae: Any = None
        self._saliency: Saliency | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        count = len(batch["key"])
        rows = [self.encode({name: _plain(batch[name][i]) for name in batch}) for i in range(count)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Add the moments of the cropped photo and of its mirror image.

        One photo at a time: in a batch the last bits would depend on the neighbours, hence on what
            was cached.
        """
        empty: dict[str, Any] = {
            "mean": b"",
            "std": b"",
            "flipped_mean": b"",
            "flipped_std": b"",
            "shape": "0 0 0",
        }
        if row["reason"]:
            return row | empty
        if self._vae is None:
            self._vae = load_for_encoding(self._settings)
        if self._saliency is None and self._settings.crop == "subject":
            self._saliency = subject_saliency(self._settings.base_model)[1]
        square = crop_square(from_png(row["png"]), self._settings.resolution, self._saliency)
        pixels = np.asarray(square)
        mean, std, shape = encode_pixels(self._vae, pixels)
        flipped_mean, flipped_std, _ = encode_pixels(self._vae, pixels[:, ::-1])
        moments = {
            "mean": mean,
            "std": std,
            "flipped_mean": flipped_mean,
            "flipped_std": flipped_std,
        }
        return row | moments | {"shape": shape, "png": to_png(square)}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def load_for_encoding(settings: PhotoSettings) -> Any:
    """The base's VAE; UNet and text encoders would be gigabytes for nothing."""
    from dreamfleet.bases.loading import load_vae

    return load_vae(settings.base_model, device=settings.device)


def encode_pixels(vae: Any, pixels: np.ndarray) -> tuple[bytes, bytes, str]:
    """Moments of one picture uint8 [H, W, 3] as float32 bytes, and their shape "C h w"."""
    import torch

    from dreamfleet.bases.base import encode_images

    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    mean, std = encode_images(vae, tensor)
    arrays = [moment[0].float().cpu().numpy() for moment in (mean, std)]
    return arrays[0].tobytes(), arrays[1].tobytes(), " ".join(str(size) for size in arrays[0].shape)


def stacked_moments(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """latent_mean, latent_std, flipped_mean and flipped_std [N, C, h, w] of prepared rows."""
    columns = {
        "latent_mean": "mean",
        "latent_std": "std",
        "flipped_mean": "flipped_mean",
        "flipped_std": "flipped_std",
    }
    return {
        name: np.stack(
            [
                np.frombuffer(row[column], np.float32).reshape(
                    [int(n) for n in row["shape"].split()]
                )
                for row in rows
            ]
        )
        for name, column in columns.items()
    }
