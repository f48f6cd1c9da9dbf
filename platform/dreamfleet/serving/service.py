"""A request's way: adapter, order, queue, engine, pictures. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

from dreamfleet.errors import AdapterFileError, BadInputError, BaseModelError, first_line
from dreamfleet.serving.admission import FairQueue
from dreamfleet.serving.catalogue import Catalogue, Entry, registered_as
from dreamfleet.serving.figures import Figures, resident_bytes
from dreamfleet.serving.orders import (
    AdapterReplaced,
    BaseAbout,
    DrawOrder,
    Event,
    PictureDone,
    StepDone,
)
from dreamfleet.serving.problems import (
    ApiProblem,
    not_ready,
    unusable_model,
    wrong_field,
)
from dreamfleet.serving.sampled import Sampled
from dreamfleet.serving.schemas import BASE_MODEL, PIXELS_FACTOR, ImageGenerationRequest

log = logging.getLogger("dreamfleet.serving")

TRIES = 3  # of an order whose replica is lost
RETRY_PAUSE_S = 0.5
POLL_S = 2.0
ANSWER_S = 5.0  # of all engines


class ReplicaLost(Exception):
    """The engine replica that had the order is gone; another one may draw it."""


class Backend(Protocol):
    """The engines."""

    async def about(self) -> BaseAbout:
        """The base; waits until an engine has loaded it."""

    async def draw(self, order: DrawOrder) -> list[bytes]:
        """The pictures. Raises BadInputError, ReplicaLost."""

    def draw_events(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        """As it goes. Raises BadInputError, ReplicaLost."""

    async def prefetch(self, order: DrawOrder) -> None:
        """Have the order's adapters loaded where it will probably be drawn."""

    async def stats(self) -> dict[str, float]:
        """Figures of the engines together."""

    async def num_replicas(self) -> int:
        """Engines that are running."""

    async def tell_demand(self, pictures: int) -> None:
        """How many pictures are drawn and waited for, for whoever decides how many engines."""


@dataclass(frozen=True)
class Job:
    """A request that was understood."""

    order: DrawOrder
    model: str  # id and version that draws
    size: tuple[int, int]  # width and height, pixels

    @property
    def cost(self) -> int:
        return len(self.order.seeds)


class ImageService:
    """Draws for callers.

    Args:
        backend: the engines.
        catalogue: of adapters.
        queue: in front of the engines.
        figures: counts what happens.
        refresh_s: between looks at the source of adapters.
        pictures_per_replica: room of one engine, for the queue.
        sampled: keeps a few pictures for the record; default: none.
    """

    def __init__(
        self,
        backend: Backend,
        catalogue: Callable[[Callable[[], str | None]], Catalogue],
        queue: FairQueue,
        figures: Figures,
        *,
        refresh_s: float = 10.0,
        pictures_per_replica: int = 16,
        sampled: Sampled | None = None,
    ) -> None:
        self.backend, self.queue, self.figures = backend, queue, figures
        self.sampled = sampled or Sampled(0)
        self.catalogue = catalogue(lambda: self.about.hash if self.about else None)
        self.about: BaseAbout | None = None
        self.trouble = "the base model is being loaded"
        self.failed = False  # it cannot be loaded
        self.under_way = 0
        self._engines = 1
        self._draining = False
        self._refresh_s, self._per_replica = refresh_s, pictures_per_replica
        self._background: list[asyncio.Task[None]] = []
        self._replaced: deque[asyncio.Future[float]] = deque(maxlen=8)  # looks because of a file

    async def start(self) -> None:
        """Read the catalogue; wait for the engines and look again in the background.

        Engines that are there already answer before the first request comes: who asks an ingress
        that took the place of a lost one is not told that it is not ready.
        """
        await self._look_again()
        for work in (self._wait_for_engines, self._look_again, self._follow_replicas):
            self._background.append(asyncio.ensure_future(_for_ever(work)))
        await asyncio.wait(self._background[:1], timeout=ANSWER_S)

    async def close(self) -> None:
        """End the background work."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self.why_not_ready()

    @property
    def base_name(self) -> str:
        """The base model for clients, to whom places on this machine are no matter."""
        name = self.about.name if self.about else ""
        return PurePath(name).name if name.startswith(("/", ".", "~")) else name

    def why_not_ready(self) -> str:
        """What stands in the way of requests; empty: nothing."""
        if self.about is None or self._draining:
            return self.trouble
        if not self.catalogue.read:
            return "the adapters cannot be listed yet"
        return "" if self._engines else "no engine is running; one is being started"

    def drain(self) -> None:
        """Take no more requests; those that are here go on."""
        self._draining = True
        self.trouble = "the service is ending"

    def job(self, body: ImageGenerationRequest) -> Job:
        """What a request asks of the engines.

        Raises:
            ApiProblem: an unknown adapter, or a value that does not suit this base.
        """
        about = self.about
        if about is None or not self.ready:
            raise not_ready(self.why_not_ready())
        entries = self._entries(body)
        strengths = [body.adapter_strength, *(more.strength for more in body.adapters)]
        refs = [
            (entry.ref, strength)
            for entry, strength in zip(entries, strengths, strict=True)
            if entry is not None
        ]
        first = seed_of(body)
        width, height = _sides(body, about)
        order = DrawOrder(
            prompt=_filled(body, entries[0]),
            seeds=tuple(first + index for index in range(body.n)),
            adapters=tuple(refs),
            negative_prompt=body.negative_prompt,
            num_inference_steps=body.num_inference_steps or about.num_inference_steps,
            guidance_scale=(
                about.guidance_scale if body.guidance_scale is None else body.guidance_scale
            ),
            scheduler=body.scheduler,
            height=height,
            width=width,
            previews=body.partial_images if body.stream else 0,
            output_format=body.output_format,
        )
        entry = entries[0]
        model = BASE_MODEL if entry is None else f"{entry.id}@{entry.version}"
        return Job(order, model, (width, height))

    async def draw(self, job: Job, caller: str) -> list[bytes]:
        """The pictures of a job.

        Raises:
            ApiProblem: no room (429), or it cannot be drawn.
        """
        with self._counted(job):
            async with self._place(job, caller):
                attempt = 1
                while True:
                    try:
                        pictures = await self.backend.draw(job.order)
                        self.sampled.offer(job.order.prompt, pictures[0])
                        return pictures
                    except ReplicaLost as error:
                        await self._again(attempt, error)
                        attempt += 1

    async def events(self, job: Job, caller: str) -> AsyncGenerator[Event, None]:
        """What happens with a job; the first event comes once an engine has taken it.

        Raises:
            ApiProblem: as `draw`; before the first event, where it is about the job itself.
        """
        with self._counted(job):
            async with self._place(job, caller):
                finished: set[int] = set()
                attempt = 1
                while len(finished) < job.cost:
                    try:
                        async with contextlib.aclosing(
                            self.backend.draw_events(job.order)
                        ) as events:
                            async for event in events:
                                if _is_old(event, finished):
                                    continue
                                if isinstance(event, PictureDone):
                                    self.sampled.offer(job.order.prompt, event.picture)
                                yield event
                    except ReplicaLost as error:
                        await self._again(attempt, error)
                        attempt += 1

    async def values(self) -> dict[str, float]:
        """What queue and engines are at now."""
        found = {
            "queue_running_pictures": float(self.queue.running),
            "queue_waiting_pictures": float(self.queue.waiting),
            "queue_capacity_pictures": float(self.queue.capacity),
            "queue_refused": float(self.queue.refused),
            "requests_under_way": float(self.under_way),
            "adapters": float(len(self.catalogue)),
            "ingress_resident_bytes": resident_bytes(),
        }
        if self.about is not None:
            with contextlib.suppress(Exception):
                stats = await asyncio.wait_for(self.backend.stats(), ANSWER_S)
                found |= {f"engine_{name}": value for name, value in stats.items()}
        return found

    async def snapshot(self) -> dict[str, float]:
        """Figures so far, and what queue and engines are at."""
        return {**self.figures.snapshot(), **await self.values()}

    def versions(self) -> dict[str, dict[str, str]]:
        """By adapter its version, and where that is registered, as far as that is known."""
        return {
            entry.id: {"version": entry.version, "registered": registered_as(entry)}
            for entry, _ in self.catalogue.usable()
        }

    def _entries(self, body: ImageGenerationRequest) -> list[Entry | None]:
        """The adapters of a request, that of `model` first; None stands for the base itself."""
        names = [body.model, *(more.model for more in body.adapters)]
        entries = [None if name == BASE_MODEL else self.catalogue.resolve(name) for name in names]
        if None in entries[1:]:
            raise wrong_field("adapters", f"adapters: {BASE_MODEL!r} is no adapter; leave it out")
        keys = [entry.key for entry in entries if entry is not None]
        if len(set(keys)) < len(keys):
            raise wrong_field("adapters", "adapters: one adapter twice; give it one strength")
        return entries

    @contextlib.contextmanager
    def _counted(self, job: Job) -> Iterator[None]:
        """Count how a request ends; what engines complain of becomes an answer."""
        started = time.monotonic()
        self.under_way += 1
        try:
            yield
            self.figures.done(time.monotonic() - started, job.cost)
        except ApiProblem as problem:
            self.figures.ended("refused" if problem.status == 429 else "failed")
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self.figures.ended("cancelled")
            raise
        except AdapterReplaced as error:
            self.figures.ended("failed")
            self._replaced.append(asyncio.ensure_future(self._look_again()))
            raise not_ready(f"{job.model}: its file was replaced just now; ask again", 1) from error
        except AdapterFileError as error:
            self.figures.ended("failed")
            raise _about_adapter(job, error) from error
        except BaseModelError as error:  # of an engine that Serve will replace
            self.figures.ended("failed")
            log.warning("an engine has no base model: %s", first_line(error))
            raise not_ready("the engine that was asked has no base model; ask again") from error
        except BadInputError as error:
            self.figures.ended("invalid")
            raise ApiProblem(400, first_line(error), "invalid_value") from error
        except Exception:
            self.figures.ended("failed")
            raise
        finally:
            self.under_way -= 1

    @contextlib.asynccontextmanager
    async def _place(self, job: Job, caller: str) -> AsyncIterator[None]:
        """Room in the engines; while it has to be waited for, adapters are loaded ahead."""
        ahead = None
        if job.order.adapters and self.queue.would_wait(job.cost):
            ahead = asyncio.ensure_future(self.backend.prefetch(job.order))
            ahead.add_done_callback(_not_asked)
        try:
            async with self.queue.place(caller, job.cost):
                yield
        finally:
            if ahead is not None:  # refused, or gone while it waited: nobody wants it any more
                ahead.cancel()

    async def _again(self, attempt: int, error: ReplicaLost) -> None:
        """Pause before the next attempt.

        Raises:
            ApiProblem: there is none.
        """
        self.figures.ended("retried")
        if attempt >= TRIES:
            raise not_ready("the engine that drew this was lost; ask again") from error
        await asyncio.sleep(RETRY_PAUSE_S * attempt)

    async def _wait_for_engines(self) -> float | None:
        try:
            self.about = await self.backend.about()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if isinstance(error, ApiProblem | ReplicaLost):
                return POLL_S
            self.failed = isinstance(error, BadInputError)
            self.trouble = f"no engine is ready: {first_line(error)}"
            return POLL_S
        for name, problem in self.catalogue.problems().items():
            log.warning("adapter %s cannot be used: %s", name, problem)
        return None

    async def _look_again(self) -> float:
        try:
            await asyncio.to_thread(self.catalogue.refresh)
        except Exception as error:  # a registry that is down: what is known goes on
            log.warning("adapters cannot be listed now: %s", first_line(error))
        return self._refresh_s

    async def _follow_replicas(self) -> float:
        with contextlib.suppress(Exception):
            self._engines = await self.backend.num_replicas()
            self.queue.resize(self._per_replica * max(1, self._engines))
            wanted = self.queue.running + self.queue.waiting
            await asyncio.wait_for(self.backend.tell_demand(wanted), ANSWER_S)
        return POLL_S


def seed_of(body: ImageGenerationRequest) -> int:
    """The first picture's seed."""
    return secrets.randbelow(2**32) if body.seed is None else body.seed


def _sides(body: ImageGenerationRequest, about: BaseAbout) -> tuple[int, int]:
    """Width and height, if this base can draw them."""
    width, height = body.sides() or (about.resolution, about.resolution)
    step = about.resolution_step
    for side in (width, height):
        if side % step or side < step:
            raise wrong_field(
                "size",
                f"size = {body.size}: expected multiples of {step} pixels for this base model, "
                f"e.g. {about.resolution}x{about.resolution}",
            )
    most = PIXELS_FACTOR * about.resolution**2
    if width * height > most:
        raise wrong_field(
            "size", f"size = {body.size}: expected at most {most} pixels in all for this base model"
        )
    return width, height


def _filled(body: ImageGenerationRequest, entry: Entry | None) -> str:
    """The prompt with the adapter's token and class word in it."""
    prompt = body.prompt
    for placeholder, name in (("{token}", "token"), ("{class}", "class_word")):
        word = entry.text(name) if entry is not None else ""
        if placeholder in prompt and not word:
            raise wrong_field(
                "prompt",
                f"prompt: nothing says what {placeholder} is for {body.model[:200]!r}; write the "
                "word itself",
            )
        prompt = prompt.replace(placeholder, word)
    return prompt


def _is_old(event: Event, finished: set[int]) -> bool:
    """Whether an attempt after a lost replica repeats what the client has; notes new pictures."""
    if isinstance(event, StepDone):
        return event.index in finished
    if isinstance(event, PictureDone):
        known = event.index in finished
        finished.add(event.index)
        return known
    return False


def _about_adapter(job: Job, error: AdapterFileError) -> ApiProblem:
    """Which adapter it was; places on this machine are not for clients."""
    text = first_line(error)
    log.warning("%s: %s", job.model, text)
    for ref, _ in job.order.adapters:
        if ref.location in text:
            return unusable_model(ref.id, text.replace(ref.location, ref.id))
    return unusable_model(job.model, text)


def _not_asked(task: asyncio.Future[None]) -> None:
    """A prefetch that failed is nobody's concern."""
    if not task.cancelled():
        task.exception()


async def _for_ever(work: Callable[[], Awaitable[float | None]]) -> None:
    """Repeat background work after the seconds that it asks for; None: it is done."""
    while True:
        pause = await work()
        if pause is None:
            return
        await asyncio.sleep(pause)
