"""The HTTP side: OpenAI's images endpoint, models, health, metrics, the studio's pages."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from dreamfleet import __version__
from dreamfleet.serving.guard import NOBODY, Caller, Guard
from dreamfleet.serving.orders import Accepted, Event, PictureDone
from dreamfleet.serving.problems import ApiProblem, broken, no_right, not_ready
from dreamfleet.serving.schemas import (
    BASE_MODEL,
    Completed,
    ErrorBody,
    Health,
    ImageGenerationRequest,
    ImageGenerationResponse,
    Model,
    ModelList,
    PartialImage,
    Picture,
    Progress,
    Promotion,
    described,
)
from dreamfleet.serving.studio import Studio

if TYPE_CHECKING:
    from dreamfleet.serving.catalogue import Entry
    from dreamfleet.serving.keys import KeyFile
    from dreamfleet.serving.service import ImageService, Job
    from dreamfleet.serving.shelf import Shelf

log = logging.getLogger("dreamfleet.serving")

GENERATIONS = "/v1/images/generations"
PICTURES = "/pictures"
NO_STORE = {"Cache-Control": "no-store"}
ModelId = Annotated[str, Path(description="adapter id, or `id@alias`", examples=["biscuit"])]
AdapterId = Annotated[str, Path(description="adapter id", examples=["biscuit"])]
PictureName = Annotated[str, Path(description="as in the address that was given")]
STREAMED = (Progress, PartialImage, Completed)
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "a field, or the body, cannot be used"},
    401: {"model": ErrorBody, "description": "missing or wrong key"},
    404: {"model": ErrorBody, "description": "no such model"},
    413: {"model": ErrorBody, "description": "the body is too large"},
    429: {"model": ErrorBody, "description": "busy: ask again after Retry-After seconds"},
    503: {"model": ErrorBody, "description": "not ready, or this adapter cannot be used"},
}
DESCRIPTION = """Pictures of registered subjects: adapters of one base model, drawn together.

The endpoints are OpenAI's, so its clients work here; fields that diffusion needs come on top.
Every `/v1` endpoint wants `Authorization: Bearer KEY` (`dreamfleet keys create`)."""


def build_api(
    service: ImageService,
    keys: KeyFile | None,
    shelf: Shelf,
    around: AbstractAsyncContextManager[None] | None = None,
    public_url: str | None = None,
) -> Guard:
    """The ASGI application.

    Args:
        service: draws.
        keys: who may ask; None: everybody (on loopback only; the caller sees to that).
        shelf: for `response_format: url`.
        around: entered when the service has begun, left before it ends.
        public_url: as in `ServeSettings`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        async with around or contextlib.nullcontext():
            yield
        await service.close()

    app = FastAPI(
        title="dreamfleet",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(_images(service, shelf, public_url))
    app.include_router(_models(service))
    app.include_router(_admin(service))
    app.include_router(_operation(service, shelf))
    _pages(app, Studio(keys is not None))
    _answer_errors(app)
    _describe(app)
    return Guard(app, keys)


def _images(service: ImageService, shelf: Shelf, public_url: str | None) -> APIRouter:
    router = APIRouter(tags=["images"], dependencies=[Depends(HTTPBearer(auto_error=False))])

    @router.post(GENERATIONS, response_model=ImageGenerationResponse, responses=ERRORS)
    async def generate(body: ImageGenerationRequest, request: Request) -> Any:
        """Draw pictures. With `stream` the answer is `text/event-stream`: events `Progress`,
        `PartialImage` and `Completed`, then `[DONE]`; an event `error` with an `ErrorBody` where
        it breaks off."""
        caller = _caller(request)
        job = service.job(body)
        # A TLS proxy's own scheme reaches no further than Serve.
        answers = _Answers(body, job, shelf, public_url or str(request.base_url))
        if not body.stream:
            return answers.whole(await service.draw(job, caller.id))
        events = service.events(job, caller.id)
        first = await anext(events)  # before any header: an error is a clean answer
        return _Events(answers.stream(first, events), events)

    return router


def _models(service: ImageService) -> APIRouter:
    router = APIRouter(tags=["models"], dependencies=[Depends(HTTPBearer(auto_error=False))])

    @router.get("/v1/models", response_model=ModelList, responses={401: ERRORS[401]})
    def models() -> ModelList:
        """Adapters that can be asked for, and the base model itself as `base`."""
        found = [_model(entry, aliases) for entry, aliases in service.catalogue.usable()]
        return ModelList(data=[*found, _base_model(service)])

    @router.get("/v1/models/{model_id}", response_model=Model, responses=ERRORS)
    def model(model_id: ModelId) -> Model:
        """One adapter."""
        if model_id == BASE_MODEL:
            return _base_model(service)
        entry = service.catalogue.resolve(model_id)
        aliases = {own.id: names for own, names in service.catalogue.usable()}
        return _model(entry, aliases.get(entry.id, {}))

    @router.get("/v1/models/{model_id}/thumbnail", response_class=Response, responses=ERRORS)
    def thumbnail(model_id: ModelId) -> Response:
        """A small WebP picture of the subject: a photo where it is at hand, else a sample."""
        from dreamfleet.serving.thumbnails import thumbnail_of

        entry = service.catalogue.resolve(model_id)
        picture = thumbnail_of(entry.location, photos=entry.origin is None)
        if picture is None:
            raise ApiProblem(404, f"model {model_id[:200]!r} has no picture", "no_thumbnail")
        return Response(picture, media_type="image/webp", headers=NO_STORE)

    @router.get("/v1/models/{model_id}/report", response_class=HTMLResponse, responses=ERRORS)
    def report(model_id: ModelId) -> Response:
        """The adapter's report, one HTML page."""
        from dreamfleet.serving.thumbnails import report_of

        entry = service.catalogue.resolve(model_id)
        page = report_of(entry.location, entry.origin)
        if page is None:
            raise ApiProblem(404, f"model {model_id[:200]!r} has no report", "no_report")
        return HTMLResponse(page, headers={**NO_STORE, "Content-Security-Policy": "sandbox"})

    return router


def _admin(service: ImageService) -> APIRouter:
    router = APIRouter(tags=["admin"], dependencies=[Depends(HTTPBearer(auto_error=False))])

    @router.post("/v1/admin/refresh", response_model=ModelList, responses=ERRORS)
    def refresh(request: Request) -> ModelList:
        """Look for new, changed and gone adapters now (else it happens every few seconds)."""
        _admin_only(request)
        service.catalogue.refresh()
        found = [_model(entry, aliases) for entry, aliases in service.catalogue.usable()]
        return ModelList(data=found)

    @router.post("/v1/admin/models/{model_id}/aliases", response_model=Model, responses=ERRORS)
    def promote(model_id: AdapterId, body: Promotion, request: Request) -> Model:
        """Let an alias point at a version; requests that follow use it."""
        _admin_only(request)
        service.catalogue.promote(model_id, body.alias, body.version)
        entry = service.catalogue.resolve(f"{model_id}@{body.alias}")
        return _model(entry, {body.alias: entry.version})

    @router.delete("/v1/admin/models/{model_id}", status_code=204, responses=ERRORS)
    def retire(model_id: AdapterId, request: Request) -> None:
        """Offer an adapter no longer. Its files stay; pictures under way are finished."""
        _admin_only(request)
        service.catalogue.retire(model_id)

    return router


def _operation(service: ImageService, shelf: Shelf) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", response_model=Health, responses={503: ERRORS[503]})
    def healthz() -> Health:
        """200 when requests are taken; no key is needed."""
        if why := service.why_not_ready():
            raise not_ready(why)
        return Health(base_model=service.base_name, adapters=len(service.catalogue.usable()))

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus's text format; no key is needed."""
        text = service.figures.text(await service.values())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get(f"{PICTURES}/{{name}}", response_class=Response, responses={404: ERRORS[404]})
    def picture(name: PictureName) -> Response:
        """A picture that was asked for with `response_format: url`; its name is the key."""
        content = shelf.get(name)
        if content is None:
            text = "no such picture here; addresses are good for one hour at most"
            raise ApiProblem(404, text, "not_found")
        kind = name.rpartition(".")[2]
        return Response(content, media_type=f"image/{kind}", headers=NO_STORE)

    return router


def _pages(app: FastAPI, studio: Studio) -> None:
    """Pages for people; they are not part of the OpenAPI document."""

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(studio.page(), headers=studio.headers)

    @app.get("/studio.{kind}", include_in_schema=False)
    def part(kind: str) -> Response:
        found = studio.part(kind)
        if found is None:
            raise HTTPException(404)
        return Response(found[0], media_type=found[1], headers=studio.headers)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(studio.docs(app.openapi()), headers=studio.headers)


class _Events(StreamingResponse):
    """Server-sent events. `source` is closed, and its place free, also where the client has gone
    before the first of them is sent: then `told` is never begun.
    """

    def __init__(self, told: AsyncIterator[str], source: AsyncGenerator[Event, None]) -> None:
        super().__init__(told, media_type="text/event-stream", headers=NO_STORE)
        self._source = source

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with contextlib.aclosing(self._source):
            await super().__call__(scope, receive, send)


class _Answers:
    """Pictures and events as the API gives them."""

    def __init__(self, body: ImageGenerationRequest, job: Job, shelf: Shelf, address: str) -> None:
        self._body, self._job, self._shelf = body, job, shelf
        self._address = address.rstrip("/")
        self._created = int(time.time())

    def whole(self, pictures: list[bytes]) -> ImageGenerationResponse:
        job = self._job
        data = [
            Picture(seed=seed, revised_prompt=job.order.prompt, **self._given(picture))
            for seed, picture in zip(job.order.seeds, pictures, strict=True)
        ]
        return ImageGenerationResponse(
            created=self._created,
            data=data,
            model=job.model,
            output_format=job.order.output_format,
            size=f"{job.size[0]}x{job.size[1]}",
        )

    async def stream(self, first: Event, events: AsyncGenerator[Event, None]) -> AsyncIterator[str]:
        """Server-sent events; a client that goes away ends the drawing."""
        previews: dict[int, int] = {}
        async with contextlib.aclosing(events):
            try:
                for told in self._told(first, previews):
                    yield told
                async for event in events:
                    for told in self._told(event, previews):
                        yield told
            except ApiProblem as problem:
                yield _sse("error", problem.body())
            except Exception:
                log.exception("a stream broke")
                yield _sse("error", broken().body())
        yield "data: [DONE]\n\n"

    def _told(self, event: Event, previews: dict[int, int]) -> list[str]:
        if isinstance(event, Accepted):
            return [": accepted\n\n"]
        if isinstance(event, PictureDone):
            given = self._given(event.picture)
            return [_event(Completed(**self._common(event.index), **given, model=self._job.model))]
        told = [_event(Progress(index=event.index, step=event.step, steps=event.total))]
        if event.preview is not None:
            number = previews.get(event.index, 0)
            previews[event.index] = number + 1
            encoded = base64.b64encode(event.preview).decode()
            partial = PartialImage(
                **self._common(event.index), b64_json=encoded, partial_image_index=number
            )
            told.append(_event(partial))
        return told

    def _common(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "seed": self._job.order.seeds[index],
            "created_at": self._created,
            "output_format": self._job.order.output_format,
            "size": f"{self._job.size[0]}x{self._job.size[1]}",
        }

    def _given(self, picture: bytes) -> dict[str, str]:
        if self._body.response_format == "b64_json":
            return {"b64_json": base64.b64encode(picture).decode()}
        name = self._shelf.put(picture, self._job.order.output_format)
        return {"url": f"{self._address}{PICTURES}/{name}"}


def _event(content: Progress | PartialImage | Completed) -> str:
    return _sse(content.type, content.model_dump(exclude_none=True))


def _sse(name: str, content: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


def _model(entry: Entry, aliases: Mapping[str, str]) -> Model:
    from dreamfleet.serving.thumbnails import has_report, has_thumbnail

    metrics = entry.about.get("metrics")
    numbers = metrics.items() if isinstance(metrics, dict) else ()
    return Model(
        id=entry.id,
        created=entry.created,
        version=entry.version,
        aliases=dict(aliases),
        display_name=entry.text("display_name") or entry.id,
        class_word=entry.text("class_word"),
        token=entry.text("token"),
        rank=entry.rank,
        metrics={str(k): float(v) for k, v in numbers if isinstance(v, int | float) and v == v},
        has_thumbnail=has_thumbnail(entry.location, photos=entry.origin is None),
        has_report=has_report(entry.location, entry.origin),
    )


def _base_model(service: ImageService) -> Model:
    name = service.base_name
    return Model(id=BASE_MODEL, created=0, version=name, display_name=f"base model {name}".strip())


def _caller(request: Request) -> Caller:
    caller = request.scope.get("state", {}).get("caller", NOBODY)
    assert isinstance(caller, Caller)
    return caller


def _admin_only(request: Request) -> None:
    if not _caller(request).may("admin"):
        raise no_right()


def _answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""
    from dreamfleet.errors import BadInputError, first_line

    def answer(problem: ApiProblem) -> JSONResponse:
        return JSONResponse(problem.body(), problem.status, problem.headers())

    @app.exception_handler(ApiProblem)
    async def own(request: Request, problem: ApiProblem) -> JSONResponse:
        return answer(problem)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [described(dict(item)) for item in error.errors()]
        text = "; ".join(message for _, message in found[:5])
        return answer(ApiProblem(400, text, "invalid_value", param=found[0][0]))

    @app.exception_handler(BadInputError)
    async def refused(request: Request, error: BadInputError) -> JSONResponse:
        from dreamfleet.tracking.store import Unreachable

        if isinstance(error.__cause__, Unreachable):
            return answer(not_ready(first_line(error)))
        return answer(ApiProblem(400, first_line(error), "invalid_value"))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return answer(broken())  # Starlette raises it again for the log

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return answer(ApiProblem(error.status_code, str(error.detail), code))


def _describe(app: FastAPI) -> None:
    """The OpenAPI document without FastAPI's own 422, which never comes, and with what is
    streamed, which FastAPI does not know of.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            known = schema["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                known.pop(name, None)
            for kind in STREAMED:
                known[kind.__name__] = kind.model_json_schema()
            references = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in STREAMED]
            drawn = schema["paths"][GENERATIONS]["post"]["responses"]["200"]
            drawn["description"] = "the pictures; with `stream` as events"
            drawn["content"]["text/event-stream"] = {"schema": {"oneOf": references}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
