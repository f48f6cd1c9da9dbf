"""An engine behind Serve: adapters in and out of host memory, pictures out, encoded."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import DreamfleetError
from dreamfleet.runtime.engine_actor import EngineActor, EngineSource
from dreamfleet.serving.cache import AdapterCache
from dreamfleet.serving.figures import resident_bytes
from dreamfleet.serving.orders import (
    Accepted,
    AdapterRef,
    AdapterReplaced,
    BaseAbout,
    DrawOrder,
    Event,
    PictureDone,
    PictureFormat,
    RegistryFiles,
    StepDone,
    file_stamp,
)
from dreamfleet.serving.scaling import METRIC, Demand

if TYPE_CHECKING:
    from PIL import Image

    from dreamfleet.bases import Base
    from dreamfleet.engine.engine import Engine
    from dreamfleet.engine.packed_sampling import ImageRequest, Ticket

QUALITY = 92  # of JPEG and WebP
UNBOUNDED = 10**9  # the cache counts bytes, not adapters


class EngineReplica(EngineActor):
    """Draws orders with one base on one device.

    Args:
        source: what to load.
        max_slots: adapters on the device at once.
        max_rows: rows of one forward; None: as many as fit.
        cache_bytes: budget of host memory for adapters.
        num_threads: of torch; None: its own choice.
    """

    def __init__(
        self,
        source: EngineSource,
        *,
        max_slots: int = 16,
        max_rows: int | None = None,
        cache_bytes: int = 2**30,
        num_threads: int | None = None,
    ) -> None:
        bounds = EngineSettings(
            max_slots=max_slots, max_rows=max_rows, max_host_adapters=UNBOUNDED, teacher_cache_mib=1
        )
        super().__init__(source, bounds)
        self._num_threads = num_threads
        self._cache = AdapterCache(cache_bytes, self._load_adapter, self._unload_adapter)
        self._demand = Demand()

    def start(self) -> None:
        """Begin to load the base; returns at once."""
        _ = self.loop

    async def check_health(self) -> None:
        """For Serve, which puts another replica in the place of one that raises.

        Raises:
            DreamfleetError: the base cannot be loaded, or step after step fails.
        """
        if trouble := self.loop.trouble():
            raise DreamfleetError(f"this engine draws no more: {trouble}")

    async def about(self) -> BaseAbout:
        """The base; waits until it is loaded.

        Raises:
            BaseModelError: it cannot be.
        """
        return await self._ask(_about)

    async def draw_order(self, order: DrawOrder) -> list[bytes]:
        """The pictures. Cancelling the call stops them before the next step.

        Raises:
            BadInputError: the order, or an adapter in it, cannot be used.
        """
        async with self._cache.hold([ref for ref, _ in order.adapters]):
            tickets = await self._submitted(
                lambda engine: [engine.submit(request) for request in requests_of(order)]
            )
            try:
                images = await asyncio.gather(*(asyncio.wrap_future(t.image) for t in tickets))
            finally:
                for ticket in tickets:
                    ticket.cancel()
        return await asyncio.to_thread(encode_all, images, order.output_format)

    async def draw_events(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        """`Accepted`, then every step and every picture. A consumer that goes away stops them
        before the next step.

        Raises:
            BadInputError: before the first event: the order, or an adapter in it, cannot be used.
        """
        async with self._cache.hold([ref for ref, _ in order.adapters]):
            events: asyncio.Queue[Any] = asyncio.Queue()
            tickets = await self._submit(order, events)
            try:
                yield Accepted()
                left = len(tickets)
                while left:
                    event = await events.get()
                    if isinstance(event, tuple):
                        step, preview = event
                        if preview is not None:
                            told = await asyncio.to_thread(encode, preview, order.output_format)
                            step = replace(step, preview=told)
                        yield step
                        continue
                    index, left = event, left - 1
                    image = tickets[index].image.result()
                    encoded = await asyncio.to_thread(encode, image, order.output_format)
                    yield PictureDone(index, encoded)
            finally:
                for ticket in tickets:
                    ticket.cancel()

    async def prefetch(self, ref: AdapterRef) -> None:
        """Load an adapter that will be wanted soon."""
        await self._cache.prefetch(ref)

    async def note_demand(self, ingress: str, pictures: int) -> None:
        """Pictures that are drawn by any engine, or wait, for one ingress."""
        self._demand.note(ingress, pictures)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve; `PicturesPolicy` reads it."""
        return {METRIC: float(self._demand.total())}

    async def stats(self) -> dict[str, float]:
        """The engine's figures and the cache's."""
        cache = self._cache
        return {
            **await self.metrics(),
            "cache_bytes": float(cache.bytes),
            "cache_budget_bytes": float(cache.budget_bytes),
            "cache_adapters": float(len(cache)),
            "cache_in_use": float(cache.in_use),
            "cache_hits_total": float(cache.hits),
            "cache_misses_total": float(cache.misses),
            "cache_evictions_total": float(cache.evictions),
            "resident_bytes": resident_bytes(),
        }

    async def _submit(self, order: DrawOrder, events: asyncio.Queue[Any]) -> list[Ticket]:
        loop = asyncio.get_running_loop()

        def tell(event: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def begin(engine: Engine) -> list[Ticket]:
            tickets: list[Ticket] = []
            # The checker judges finished pictures; nothing goes out that it has not seen.
            wanted = set() if engine.base.safety_checker else _preview_steps(order)

            def on_step(index: int, done: int, total: int) -> None:
                preview = None
                if done in wanted and done < total:
                    preview = engine.preview(tickets[index])
                tell((StepDone(index, done, total), preview))

            for index, request in enumerate(requests_of(order)):
                step = _bound(on_step, index)
                tickets.append(engine.submit(request, step))
                tickets[-1].image.add_done_callback(_bound_last(tell, index))
            return tickets

        return await self._submitted(begin)

    async def _load_adapter(self, ref: AdapterRef) -> int:
        from dreamfleet.adapters.lora_slots import read_lora_slot

        base = await self._ask(lambda engine: engine.base)

        def read() -> Any:
            if ref.origin is not None and not Path(ref.location).exists():
                return read_lora_slot(base, _fetched(ref.origin))
            return _read_whole(base, ref)

        state = await asyncio.to_thread(read)
        await self._ask(lambda engine: engine.add_adapter(ref.key, state))
        return sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values())

    async def _unload_adapter(self, ref: AdapterRef) -> None:
        await self._ask(lambda engine: engine.remove_adapter(ref.key))

    def _build(self) -> Engine:
        if self._num_threads:
            import torch

            torch.set_num_threads(self._num_threads)
        return super()._build()


def requests_of(order: DrawOrder) -> list[ImageRequest]:
    """One request per picture."""
    from dreamfleet.engine.packed_sampling import ImageRequest

    adapters = tuple((ref.key, strength) for ref, strength in order.adapters)
    return [
        ImageRequest(
            prompt=order.prompt,
            seed=seed,
            negative_prompt=order.negative_prompt,
            num_inference_steps=order.num_inference_steps,
            guidance_scale=order.guidance_scale,
            scheduler=order.scheduler,
            height=order.height,
            width=order.width,
            adapters=adapters,
        )
        for seed in order.seeds
    ]


def encode(image: Image.Image, output_format: PictureFormat) -> bytes:
    """A picture as a file's bytes."""
    buffer = io.BytesIO()
    options = {} if output_format == "png" else {"quality": QUALITY}
    image.convert("RGB").save(buffer, output_format.upper(), **options)
    return buffer.getvalue()


def encode_all(images: list[Image.Image], output_format: PictureFormat) -> list[bytes]:
    """As `encode`."""
    return [encode(image, output_format) for image in images]


def _fetched(origin: RegistryFiles) -> Path:
    """A registered adapter's folder on this node, whose disk the ingress's need not be."""
    from dreamfleet.tracking.registry import RegisteredVersion, fetch_version

    version = RegisteredVersion(origin.name, origin.version, origin.source, {}, 0)
    return fetch_version(origin.uri, version, Path(origin.folder)).parent


def _read_whole(base: Base, ref: AdapterRef) -> Any:
    """The slot of an adapter whose file stays the one that was asked for while it is read.

    Raises:
        AdapterReplaced: it does not.
    """
    from dreamfleet.adapters.files import adapter_path
    from dreamfleet.adapters.lora_slots import read_lora_slot

    def check() -> None:
        if ref.stamp and file_stamp(adapter_path(ref.location)) != ref.stamp:
            raise AdapterReplaced(f"{ref.location}: another file has taken its place")

    check()
    state = read_lora_slot(base, ref.location)
    check()
    return state


def _about(engine: Engine) -> BaseAbout:
    base = engine.base
    return BaseAbout(
        name=base.name,
        hash=base.hash,
        resolution=base.resolution,
        resolution_step=base.files.resolution_step,
        num_inference_steps=base.defaults.num_inference_steps,
        guidance_scale=base.defaults.guidance_scale,
    )


def _preview_steps(order: DrawOrder) -> set[int]:
    """After which steps unfinished pictures are sent: evenly over the way."""
    parts, steps = order.previews + 1, order.num_inference_steps
    return {round(part * steps / parts) for part in range(1, parts)} if order.previews else set()


def _bound(call: Any, index: int) -> Any:
    return lambda done, total: call(index, done, total)


def _bound_last(tell: Any, index: int) -> Any:
    return lambda image: tell(index)
