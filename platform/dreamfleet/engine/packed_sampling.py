"""Images of many requests at once: each at its own step, with its own sampler, guidance, size and
adapters. A request joins at the next step and leaves after its last one or when cancelled.

Shapes: B requests of a pass, R rows (a guided request has two, without and with its prompt).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreamfleet.adapters.bank import AdapterBank, Adapters
from dreamfleet.bases import Base
from dreamfleet.config import MAX_INFERENCE_STEPS
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.diffusion.linear_steps import LinearSteps, advance, linear_steps, stacked
from dreamfleet.diffusion.samplers import SamplerName
from dreamfleet.errors import BadInputError
from dreamfleet.methods.dreambooth.text import TextCache

OnStep = Callable[[int, int], None]
SEED_LIMIT = 2**64
MAX_SIDE = 4096


@dataclass(frozen=True)
class ImageRequest:
    """One picture.

    Attributes:
        prompt: what to draw; the identifier is filled in.
        seed: of the first noise, as `torch.Generator("cpu").manual_seed(seed)`.
        negative_prompt: used with guidance only.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance (on above 1); None: the base's default.
        scheduler: ddim, euler or dpm (DPM-Solver++ 2M).
        height, width: pixels; None: the base's own.
        adapters: names and strengths of the adapters that add up; empty: the bare base.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    num_inference_steps: int = 25
    guidance_scale: float | None = None
    scheduler: SamplerName = "ddim"
    height: int | None = None
    width: int | None = None
    adapters: tuple[tuple[str, float], ...] = ()

    def checked(self, base: Base) -> None:
        """Refuse what cannot be drawn.

        Raises:
            BadInputError: naming the field, what was given and what is accepted.
        """
        if not 0 <= self.seed < SEED_LIMIT:
            raise BadInputError(f"seed = {self.seed}: expected 0 to 2**64 - 1")
        if not 1 <= self.num_inference_steps <= MAX_INFERENCE_STEPS:
            raise BadInputError(
                f"num_inference_steps = {self.num_inference_steps}: expected 1 to "
                f"{MAX_INFERENCE_STEPS}"
            )
        scale = self.guidance_scale
        if scale is not None and not 0 <= scale < math.inf:
            raise BadInputError(f"guidance_scale = {scale}: expected a finite number, 0 or more")
        if any(not math.isfinite(strength) for _, strength in self.adapters):
            raise BadInputError(f"adapters = {self.adapters}: expected finite strengths")
        step = base.files.resolution_step
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and (not step <= side <= MAX_SIDE or side % step):
                raise BadInputError(
                    f"{name} = {side}: expected a multiple of {step} up to {MAX_SIDE} for base "
                    f"model {base.name}"
                )


@dataclass(eq=False)
class Ticket:
    """A request under way. `image` gets the picture, or what went wrong; cancel it to stop."""

    request: ImageRequest
    on_step: OnStep | None = None
    image: Future[Image.Image] = field(default_factory=Future)
    adapters: Adapters = ()  # slots and strengths, once it is drawn
    cancelled: bool = False
    passed: int = 0  # later ones with adapters that joined while it waited for slots

    def cancel(self) -> None:
        """Stop before the next step (from any thread)."""
        self.cancelled = True


@dataclass(eq=False)
class _Drawing:
    ticket: Ticket
    steps: LinearSteps
    scale: float  # guidance; on above 1
    texts: Conditioning  # [1 or 2, L, D]: (negative,) prompt
    x: Tensor  # [C, h, w] fp32
    kept: Tensor  # [C, h, w] the prediction of the step before (DPM-Solver++)
    done: int = 0

    @property
    def rows(self) -> int:
        return 2 if self.scale > 1 else 1

    @property
    def finished(self) -> bool:
        return self.done == len(self.steps)


class PackedSampler:
    """Draws with one base and a bank of adapters.

    Args:
        base: frozen, eval mode.
        bank: where the requests' adapters are; None: the bare base only.
        texts: embeddings of the frozen text encoder.
        max_rows: rows of one UNet call at most; what is more waits.
    """

    def __init__(
        self, base: Base, bank: AdapterBank | None, texts: TextCache, max_rows: int = 32
    ) -> None:
        self.base, self.bank, self.texts, self.max_rows = base, bank, texts, max_rows
        self._drawings: deque[_Drawing] = deque()
        self._plan = lru_cache(maxsize=64)(
            lambda name, steps: linear_steps(base.scheduler_config, name, steps)
        )
        self._joined: tuple[list[Conditioning], Conditioning] | None = None

    def __len__(self) -> int:
        return len(self._drawings)

    def add(self, ticket: Ticket, adapters: Adapters = ()) -> bool:
        """Join from the next step on; a request that cannot begin fails its ticket only.

        Returns:
            Whether it joined.
        """
        ticket.adapters = adapters
        try:
            with torch.no_grad():
                self._drawings.append(self._begin(ticket))
        except Exception as error:
            fail(ticket, error)
            return False
        return True

    def step(self) -> list[Ticket]:
        """One denoising step of as many requests as fit; returns those that ended.

        Where more wait than fit, they take turns.
        """
        ended = self._drop_cancelled()
        part = self._next()
        if not part:
            return ended
        with torch.no_grad():
            ended += self._advance(part)
            finished = [drawing for drawing in part if drawing.finished]
            ended += self._decode(finished)
        gone = {id(ticket) for ticket in ended}
        rest = [drawing for drawing in self._drawings if id(drawing.ticket) not in gone]
        turn = {id(drawing) for drawing in part}
        self._drawings = deque(sorted(rest, key=lambda drawing: id(drawing) in turn))
        return ended

    def adapters(self) -> set[tuple[int, float]]:
        """Slots (and strengths) that are being drawn with."""
        return {pair for drawing in self._drawings for pair in drawing.ticket.adapters}

    def abort(self, error: Exception) -> list[Ticket]:
        """Fail all that are being drawn; returns them."""
        tickets = [drawing.ticket for drawing in self._drawings]
        self._drawings.clear()
        for ticket in tickets:
            fail(ticket, error)
        return tickets

    def latents(self, ticket: Ticket) -> Tensor:
        """[C, h, w] of a request as it is now."""
        return next(drawing.x for drawing in self._drawings if drawing.ticket is ticket)

    def preview(self, ticket: Ticket) -> Image.Image:
        """A request's latents as they are now, decoded."""
        with torch.no_grad():
            pixels = self.base.decode_latents(self.latents(ticket).unsqueeze(0))
        return Image.fromarray(pixels[0].numpy())

    def _begin(self, ticket: Ticket) -> _Drawing:
        request, base = ticket.request, self.base
        request.checked(base)
        scale = request.guidance_scale
        scale = base.defaults.guidance_scale if scale is None else scale
        steps = self._plan(request.scheduler, request.num_inference_steps)
        channels = base.latent_shape[0]
        sides = [
            (side or base.resolution) // base.files.vae_factor
            for side in (request.height, request.width)
        ]
        noise = torch.randn(
            (1, channels, *sides), generator=torch.Generator("cpu").manual_seed(request.seed)
        )[0]
        x = noise.to(base.device) * steps.init_noise_sigma
        prompts = [request.negative_prompt, request.prompt] if scale > 1 else [request.prompt]
        texts = self._encode(prompts, ticket.adapters)
        return _Drawing(ticket, steps, scale, texts, x, torch.zeros_like(x))

    def _encode(self, prompts: Sequence[str], adapters: Adapters) -> Conditioning:
        bank = self.bank
        if bank is None or not any(bank.changes(slot, "text_encoder") for slot, _ in adapters):
            return self.texts.encode(prompts)
        with bank.routed([adapters]):
            return Conditioning.cat([self.base.encode_prompts([prompt]) for prompt in prompts])

    def _drop_cancelled(self) -> list[Ticket]:
        gone = [drawing for drawing in self._drawings if drawing.ticket.cancelled]
        for drawing in gone:
            self._drawings.remove(drawing)
            drawing.ticket.image.cancel()
        return [drawing.ticket for drawing in gone]

    def _next(self) -> list[_Drawing]:
        """The next pass: equal sizes, neighbours with equal adapters, up to `max_rows` rows."""
        if not self._drawings:
            return []
        first, rows = self._drawings[0], 0
        part: list[_Drawing] = []
        for drawing in self._drawings:
            fits = rows + drawing.rows <= self.max_rows or not part
            if fits and _shapes(drawing) == _shapes(first):
                part.append(drawing)
                rows += drawing.rows
        return sorted(part, key=lambda drawing: (drawing.rows, *drawing.ticket.adapters))

    def _advance(self, part: Sequence[_Drawing]) -> list[Ticket]:
        """One step of a pass; if it breaks, of each alone, so that one fails only."""
        try:
            self._step(part)
        except Exception as error:
            if len(part) == 1:
                return [_lost(part[0].ticket, error)]
        else:
            return [ticket for drawing in part for ticket in _report(drawing)]
        # Out here the error's traceback holds the pass's activations no longer.
        return [ticket for drawing in part for ticket in self._advance([drawing])]

    def _step(self, part: Sequence[_Drawing]) -> None:
        device = self.base.device
        steps, at = [d.steps for d in part], [d.done for d in part]
        t, input_scale, coefficients = stacked(steps, at, device)  # [B], [B], [B, 5]
        x = torch.stack([drawing.x for drawing in part])  # [B, C, h, w]
        rows = [index for index, drawing in enumerate(part) for _ in range(drawing.rows)]
        which = torch.tensor(rows, device=device)  # [R]
        inputs = (x * input_scale.view(-1, 1, 1, 1))[which]  # [R, C, h, w]
        output = self._predict(part, inputs, t[which]).float()  # [R, C, h, w]
        guided, position = [], 0
        for drawing in part:
            own = output[position : position + drawing.rows]
            position += drawing.rows
            guided.append(own[0] if len(own) == 1 else own[0] + drawing.scale * (own[1] - own[0]))
        kept = torch.stack([drawing.kept for drawing in part])
        x, kept = advance(coefficients, x, torch.stack(guided), kept)
        for index, drawing in enumerate(part):
            drawing.x, drawing.kept = x[index], kept[index]
            drawing.done += 1

    def _predict(self, part: Sequence[_Drawing], inputs: Tensor, t: Tensor) -> Tensor:
        texts = self._texts_of(part)  # [R, L, D]
        if self.bank is None:
            return self.base.predict(inputs, t, texts)
        routes: list[Any] = [d.ticket.adapters for d in part for _ in range(d.rows)]
        with self.bank.routed(routes):
            return self.base.predict(inputs, t, texts)

    def _texts_of(self, part: Sequence[_Drawing]) -> Conditioning:
        """Joined once for as long as the same requests share a pass."""
        texts = [drawing.texts for drawing in part]
        if self._joined is None or not _identical(self._joined[0], texts):
            self._joined = (texts, Conditioning.cat(texts))
        return self._joined[1]

    def _decode(self, finished: Sequence[_Drawing]) -> list[Ticket]:
        """Pictures of what is ready, in batches of their own; one that fails fails alone."""
        if not finished:
            return []
        try:
            pixels = self.base.decode_latents(torch.stack([drawing.x for drawing in finished]))
            pictures = [Image.fromarray(picture.numpy()) for picture in pixels]
            if self.base.safety_checker is not None:
                pictures = self.base.safety_checker(pictures)
        except Exception as error:
            if len(finished) == 1:
                return [_lost(finished[0].ticket, error)]
        else:
            for drawing, picture in zip(finished, pictures, strict=True):
                _deliver(drawing.ticket, picture)
            return [drawing.ticket for drawing in finished]
        return [ticket for drawing in finished for ticket in self._decode([drawing])]


def _identical(one: Sequence[object], two: Sequence[object]) -> bool:
    """The very same objects, in the same order."""
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


def _shapes(drawing: _Drawing) -> tuple[torch.Size, torch.Size]:
    return drawing.x.shape, drawing.texts.prompt_embeds.shape[1:]


def _report(drawing: _Drawing) -> list[Ticket]:
    """Tell the requester; one whose callback fails is failed."""
    ticket = drawing.ticket
    if ticket.on_step is None:
        return []
    try:
        ticket.on_step(drawing.done, len(drawing.steps))
    except Exception as error:
        fail(ticket, error)
        drawing.done = -1  # never finished
        return [ticket]
    return []


def _lost(ticket: Ticket, error: Exception) -> Ticket:
    """Fail a ticket; the error's traceback, which holds a pass's activations, goes."""
    fail(ticket, error.with_traceback(None))
    return ticket


def fail(ticket: Ticket, error: Exception) -> None:
    """End a request, unless its requester has cancelled it."""
    if ticket.image.set_running_or_notify_cancel():
        ticket.image.set_exception(error)


def _deliver(ticket: Ticket, image: Image.Image) -> None:
    if ticket.image.set_running_or_notify_cancel():
        ticket.image.set_result(image)
