"""Class word → prior set: pictures of the class made by the base itself, once per key for everyone
on this host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamfleet.config import RunConfig
from dreamfleet.data.cache import Cache, cache_key
from dreamfleet.data.photos import shrink, to_png
from dreamfleet.data.ray_pipeline import actor_pool, dataset, rows_of
from dreamfleet.data.sources import FoundPhotos, find_photos
from dreamfleet.data.subject_set import PhotoStore, encode_pixels, stacked_moments
from dreamfleet.data.subjects import fill_prompt
from dreamfleet.errors import SubjectSetError
from dreamfleet.runtime.locks import shared_work
from dreamfleet.seeding import key_to_int

if TYPE_CHECKING:
    from dreamfleet.bases import Base
    from dreamfleet.runtime.progress import Progress
    from dreamfleet.runtime.session import RaySession

CACHE_VERSION = 1


@dataclass(frozen=True)
class PriorRequest:
    """Everything a generated prior set depends on."""

    base_model: str
    base_hash: str
    prompt: str
    count: int
    num_inference_steps: int
    guidance_scale: float
    resolution: int
    seed: int
    batch_size: int
    device: str

    @property
    def key(self) -> str:
        """Without the batch size and the device, which change pictures only in their last bits."""
        return cache_key(
            version=CACHE_VERSION,
            base=self.base_hash,
            prompt=self.prompt,
            count=self.count,
            sampler=["ddim", self.num_inference_steps, self.guidance_scale],
            resolution=self.resolution,
            seed=self.seed,
        )

    def image_seed(self, index: int) -> int:
        return key_to_int(self.seed, "prior.image", index)


@dataclass(frozen=True)
class PriorSet:
    """Pictures of the class and their latents.

    `latent_mean` and `latent_std` are scaled posterior moments, float32 [N, C, h, w].
    """

    key: str
    prompts: tuple[str, ...]  # one per picture
    latent_mean: np.ndarray
    latent_std: np.ndarray


def prior_request(
    config: RunConfig, base_model: str, base_hash: str, resolution: int, device: str
) -> PriorRequest:
    """The prior set that `config` (with the base's defaults filled in) asks for."""
    prior = config.prior
    assert prior.guidance_scale is not None
    return PriorRequest(
        base_model=base_model,
        base_hash=base_hash,
        prompt=fill_prompt(config.subject.class_prompt, config),
        count=prior.num_class_images,
        num_inference_steps=prior.num_inference_steps,
        guidance_scale=prior.guidance_scale,
        resolution=resolution,
        seed=config.train.seed,
        batch_size=prior.sample_batch_size,
        device=device,
    )


def generated_prior_set(
    request: PriorRequest, cache: Cache, session: RaySession | None, progress: Progress
) -> PriorSet:
    """The prior set of `request`: from the cache, or made now.

    When another run is making it, waits for that one. With `session` None it is made in this
    process.
    """
    rows = cache.get("prior_sets", request.key)
    if rows is None:
        wait_line = f"prior set {request.prompt!r}: another run is making it; waiting"
        with shared_work(
            cache.lock_path("prior_sets", request.key), lambda: progress.info(wait_line)
        ):
            rows = cache.get("prior_sets", request.key)
            if rows is None:
                rows = _generate(request, session, progress)
                cache.put("prior_sets", request.key, rows)
    return _as_set(request.key, [request.prompt] * len(rows), rows)


def kept_prior_set(request: PriorRequest, cache: Cache) -> PriorSet:
    """The prior set of `request`, which was made before.

    Raises:
        SubjectSetError: it is gone.
    """
    rows = cache.get("prior_sets", request.key)
    if rows is None:
        raise SubjectSetError(
            f"prior set {request.prompt!r}: gone from the cache ({cache.root}) since it was made; "
            "--resume makes it again (data.cache_max_gib bounds the cache)"
        )
    return _as_set(request.key, [request.prompt] * len(rows), rows)


def find_class_pictures(config: RunConfig) -> FoundPhotos:
    """What lies in `prior.class_data_dir`.

    Raises:
        SubjectSetError: as `find_photos`.
    """
    limit = config.prior.num_class_images
    return find_photos(
        [str(config.prior.class_data_dir)], max_photos=limit, limited_by="prior.num_class_images"
    )


def own_prior_set(
    config: RunConfig, store: PhotoStore, session: RaySession | None, progress: Progress
) -> PriorSet:
    """The user's own class pictures (`prior.class_data_dir`), with their captions where they have
    some.
    """
    found = find_class_pictures(config)
    store.prepare([found], session, progress)
    used, skipped = store.rows(found)
    if not used:
        listed = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:5])
        raise SubjectSetError(
            f"class pictures {config.prior.class_data_dir}: none can be used: {listed}"
        )
    for item in skipped:
        progress.info(f"class pictures: skipped {item.name}: {item.reason}")
    prompt = fill_prompt(config.subject.class_prompt, config)
    prompts = [
        fill_prompt(source.caption, config) if source.caption else prompt for source, _ in used
    ]
    rows = [row for _, row in used]
    key = cache_key(photos=[row["sha256"] for row in rows], prompts=prompts)
    return _as_set(key, prompts, rows)


def _as_set(key: str, prompts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> PriorSet:
    moments = stacked_moments(rows)
    return PriorSet(
        key=key,
        prompts=tuple(prompts),
        latent_mean=moments["latent_mean"],
        latent_std=moments["latent_std"],
    )


def _generate(
    request: PriorRequest, session: RaySession | None, progress: Progress
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    with progress.stage("prior set", request.count) as stage:
        for row in _pipeline(request, session):
            made.append(row)
            stage.update(len(made))
    return sorted(made, key=lambda row: int(row["index"]))


def _pipeline(request: PriorRequest, session: RaySession | None) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"index": index} for index in range(request.count)]
    if session is None:
        maker = PriorMaker(request)
        for start in range(0, request.count, request.batch_size):
            yield from maker.make(
                [row["index"] for row in rows[start : start + request.batch_size]]
            )
        return
    blocks = -(-request.count // request.batch_size)
    pool, resources = actor_pool(session, blocks, request.device == "cuda")
    pipeline = dataset(rows, request.batch_size).map_batches(
        PriorMaker,
        fn_constructor_kwargs={"request": request},
        batch_size=request.batch_size,
        compute=pool,
        **resources,
    )
    yield from rows_of(pipeline)


class PriorMaker:
    """Holds the base; makes class pictures and their latents. One instance per actor of the
    pool.
    """

    def __init__(self, request: PriorRequest) -> None:
        from dreamfleet.bases import load_base

        self._request = request
        self._base: Base = load_base(request.base_model, device=request.device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        rows = self.make([int(index) for index in batch["index"]])
        return {name: [row[name] for row in rows] for name in rows[0]}

    def make(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Pictures number `indices` of the set; each depends on its own seed only."""
        from dreamfleet.engine.sampling import sample_images

        images = sample_images(
            self._base,
            [self._request.prompt] * len(indices),
            [self._request.image_seed(index) for index in indices],
            num_inference_steps=self._request.num_inference_steps,
            guidance_scale=self._request.guidance_scale,
            scheduler="ddim",
        )
        rows = []
        for index, drawn in zip(indices, images, strict=True):
            image = shrink(drawn, self._request.resolution)
            mean, std, shape = encode_pixels(self._base.vae, np.asarray(image))
            moments = {
                "mean": mean,
                "std": std,
                "flipped_mean": mean,
                "flipped_std": std,
                "shape": shape,
            }
            rows.append({"index": index, "png": to_png(image), **moments})
        return rows
