"""What a request may hold, and what comes back; the OpenAPI document is made from this."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from dreamfleet.serving.orders import PictureFormat

MAX_PROMPT_CHARS = 2000
MAX_IMAGES = 10
MAX_STEPS = 150
MAX_GUIDANCE = 50.0
MAX_STRENGTH = 10.0
MAX_SIDE = 2048
PIXELS_FACTOR = 4  # pictures of at most so many times the base's own pixels
MAX_ADAPTERS = 4
MAX_PREVIEWS = 10
MAX_SEED = 2**53 - 1  # what a JSON number holds exactly, everywhere
BASE_MODEL = "base"
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")

ModelName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=300),
    Field(
        description="adapter id, `id@alias`, or `base` for the base model without an adapter",
        examples=["biscuit", "biscuit@champion"],
    ),
]
Strength = Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class AnotherAdapter(_Body):
    """One more adapter, added to that of `model`."""

    model: ModelName
    strength: Strength = Field(1.0, description="factor on its change, no unit; 1: as trained")


class ImageGenerationRequest(_Body):
    """`POST /v1/images/generations`: OpenAI's fields, and those that diffusion needs."""

    model: ModelName
    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARS,
        description="what to draw; `{token}` and `{class}` become the adapter's own. Tokens beyond "
        "the text encoder's context (77 for Stable Diffusion) are cut off",
        examples=["a photo of {token} {class} on the beach"],
    )
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="how many pictures")
    size: str = Field(
        "auto",
        max_length=16,
        description="`WIDTHxHEIGHT` in pixels, each a multiple of the base's step and at most "
        f"{MAX_SIDE}, with up to {PIXELS_FACTOR} times the pixels of the base's own size; `auto`: "
        "that size",
        examples=["auto", "512x512"],
    )
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json",
        description="`b64_json`: the encoded picture itself, in base64; `url`: an address that is "
        "good for one hour at most",
    )
    output_format: PictureFormat = Field(
        "png", description="file format of the pictures, unfinished ones too"
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="picture i of n is drawn from seed + i; the same seed gives the same picture. "
        "Left out: at random, and told in the answer",
    )
    negative_prompt: str = Field(
        "", max_length=MAX_PROMPT_CHARS, description="what not to draw; needs guidance above 1"
    )
    num_inference_steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description="denoising steps of each picture; left out: the base's own number",
    )
    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=MAX_GUIDANCE,
        description="factor of classifier-free guidance, no unit; off up to 1; left out: the "
        "base's own",
    )
    scheduler: Literal["ddim", "euler", "dpm"] = Field("ddim", description="sampler")
    adapter_strength: Strength = Field(
        1.0,
        description="factor on the adapter's change, no unit; 1: as trained, 0: the bare base",
    )
    adapters: list[AnotherAdapter] = Field(
        default_factory=list,
        max_length=MAX_ADAPTERS - 1,
        description="further adapters that add up with that of `model`",
    )
    stream: bool = Field(False, description="server-sent events: each step, then the pictures")
    partial_images: int = Field(
        0, ge=0, le=MAX_PREVIEWS, description="unfinished pictures sent on the way, with `stream`"
    )
    user: str | None = Field(None, max_length=256, description="taken for OpenAI's sake; not used")
    quality: Literal["auto", "standard"] | None = Field(
        None, description="taken for OpenAI's sake; not used"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, given: Any) -> Any:
        """OpenAI's client sends null for what its caller passes as None."""
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if value is not None or name not in cls.model_fields or name in ("model", "prompt")
        }

    @field_validator("size")
    @classmethod
    def _known_size(cls, size: str) -> str:
        if size != "auto":
            match = SIZE.fullmatch(size)
            if match is None or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
                raise ValueError(f"expected auto or WIDTHxHEIGHT of at most {MAX_SIDE} pixels each")
        return size

    def sides(self) -> tuple[int, int] | None:
        """Width and height in pixels, or None for the base's own."""
        match = SIZE.fullmatch(self.size)
        return (int(match[1]), int(match[2])) if match else None


class Picture(BaseModel):
    """One picture; of `b64_json` and `url` the one that was asked for."""

    b64_json: str | None = Field(None, description="the encoded picture in base64")
    url: str | None = Field(None, description="where the picture is, for one hour at most")
    revised_prompt: str | None = Field(None, description="the prompt with token and class in it")
    seed: int = Field(description="draws the same picture again, with `n` 1")


class ImageGenerationResponse(BaseModel):
    """The pictures, in the order of their seeds."""

    created: int = Field(description="seconds since 1970")
    data: list[Picture] = Field(description="`n` pictures")
    model: str = Field(description="adapter id and version that drew, `id@version`")
    output_format: PictureFormat = Field(description="file format of the pictures")
    size: str = Field(description="`WIDTHxHEIGHT` in pixels")


class Progress(BaseModel):
    """`stream`: event `image_generation.progress`, after each denoising step of each picture."""

    type: Literal["image_generation.progress"] = Field(
        "image_generation.progress", description="as the event's name"
    )
    index: int = Field(description="which of the `n` pictures, from 0")
    step: int = Field(description="denoising steps done")
    steps: int = Field(description="denoising steps in all")


class _StreamedPicture(BaseModel):
    index: int = Field(description="which of the `n` pictures, from 0")
    seed: int = Field(description="draws the same picture again, with `n` 1")
    created_at: int = Field(description="seconds since 1970, of the request")
    output_format: PictureFormat = Field(description="file format of the picture")
    size: str = Field(description="`WIDTHxHEIGHT` in pixels")


class PartialImage(_StreamedPicture):
    """`stream`: event `image_generation.partial_image`, an unfinished picture."""

    type: Literal["image_generation.partial_image"] = Field(
        "image_generation.partial_image", description="as the event's name"
    )
    b64_json: str = Field(description="the encoded picture in base64")
    partial_image_index: int = Field(description="which of its unfinished pictures, from 0")


class Completed(_StreamedPicture):
    """`stream`: event `image_generation.completed`, a picture; of `b64_json` and `url` the one that
    was asked for.
    """

    type: Literal["image_generation.completed"] = Field(
        "image_generation.completed", description="as the event's name"
    )
    b64_json: str | None = Field(None, description="the encoded picture in base64")
    url: str | None = Field(None, description="where the picture is, for one hour at most")
    model: str = Field(description="adapter id and version that drew, `id@version`")


class Model(BaseModel):
    """An adapter that can be asked for."""

    id: str = Field(description="what `model` in a request names")
    object: Literal["model"] = Field("model", description="for OpenAI's clients")
    created: int = Field(description="seconds since 1970")
    owned_by: str = Field("dreamfleet", description="for OpenAI's clients")
    version: str = Field("", description="what the id stands for now")
    aliases: dict[str, str] = Field(
        default_factory=dict, description="alias -> version, asked for as `id@alias`"
    )
    display_name: str = Field("", description="the subject's name, for people")
    class_word: str = Field("", description="what `{class}` in a prompt becomes")
    token: str = Field("", description="what `{token}` in a prompt becomes")
    rank: int | None = Field(None, description="the LoRA's largest rank")
    metrics: dict[str, float] = Field(
        default_factory=dict,
        description="its report's figures, the bare base's beside them (`.without_adapter`)",
    )
    has_thumbnail: bool = Field(
        False, description="whether `/v1/models/{model_id}/thumbnail` shows the subject"
    )
    has_report: bool = Field(False, description="whether there is `/v1/models/{model_id}/report`")


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = Field("list", description="for OpenAI's clients")
    data: list[Model] = Field(description="ordered by id; the base model, where it is listed, last")


class Promotion(_Body):
    """Let an alias point at a version."""

    alias: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$",
        description="a letter, then up to 99 letters, digits, `_` and `-`",
        examples=["champion"],
    )
    version: str = Field(
        min_length=1,
        max_length=300,
        description="a registry's version number; with a folder of adapters: the folder's name",
    )


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="what was given, what was expected, what to do")
    type: str = Field(description="OpenAI's kind of error, e.g. `invalid_request_error`")
    param: str | None = Field(None, description="the field that is wrong")
    code: str | None = Field(None, description="for programs, e.g. `model_not_found`")


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorDetail = Field(description="what went wrong")


class Health(BaseModel):
    """`GET /healthz`."""

    status: Literal["ready"] = Field("ready", description="requests are taken")
    base_model: str = Field(description="name of the base model")
    adapters: int = Field(description="how many can be asked for")


def described(error: dict[str, Any]) -> tuple[str | None, str]:
    """Field and message of one of pydantic's complaints; what was given is not repeated."""
    place = [str(part) for part in error.get("loc", ()) if part != "body"]
    if error.get("type") == "json_invalid":  # its place is no field, but a number of characters
        reason = (error.get("ctx") or {}).get("error", "it cannot be read")
        return None, f"body: no JSON, at character {''.join(place)}: {reason}"
    param = ".".join(place) or None
    message = str(error.get("msg", "not accepted")).removeprefix("Value error, ")
    return param, f"{param or 'body'}: {message}"
