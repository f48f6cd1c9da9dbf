"""The pages of the study: one comparison a page, sides and order at random, arms never named."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.evaluation.preference.pairs import Pair
from dreamfleet.evaluation.preference.votes import QUESTIONS, Vote, Votes
from dreamfleet.evaluation.report import page_environment
from dreamfleet.runtime.ports import port_problem
from dreamfleet.seeding import key_to_int, numpy_generator

COOKIE = "dreamfleet_voter"
QUESTIONS_EACH = 25  # as in DreamBooth's study
MAX_BODY_BYTES = 4096
SIDES = ("left", "right")
NO_STORE = {"Cache-Control": "no-store"}


def preference_app(
    pairs: Sequence[Pair], votes: Votes, *, comparisons: int = QUESTIONS_EACH
) -> FastAPI:
    """The pages as an ASGI application.

    Args:
        pairs: what is compared.
        votes: where answers go.
        comparisons: pages per person.

    Raises:
        BadInputError: nothing to compare.
    """
    if not pairs:
        raise BadInputError("no pairs to compare; expected at least one")
    by_id = {pair.pair_id: pair for pair in pairs}
    template = page_environment().get_template("preference.html.j2")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/", response_class=HTMLResponse)
    def page(request: Request) -> Response:
        voter = _voter(request) or secrets.token_hex(16)
        mine = order_for(voter, list(by_id), comparisons)
        done = votes.answered(voter)
        left = [pair_id for pair_id in mine if pair_id not in done]
        html = template.render(
            pair=by_id[left[0]] if left else None,
            number=len(mine) - len(left) + 1,
            total=len(mine),
            questions=QUESTIONS,
        )
        response = HTMLResponse(html, headers=NO_STORE)
        # Not "strict": who comes back by a link in a mail would be somebody new. "lax" goes with
        # links, and with no form of another site.
        response.set_cookie(COOKIE, voter, max_age=30 * 86400, httponly=True, samesite="lax")
        return response

    @app.get("/picture/{pair_id}/{side}")
    def picture(pair_id: str, side: str, request: Request) -> Response:
        pair, voter = by_id.get(pair_id), _voter(request)
        if pair is None or voter is None or side not in SIDES:
            return Response(status_code=404)
        path = pair.a if (side == "left") == a_is_left(voter, pair_id) else pair.b
        return Response(path.read_bytes(), media_type="image/png", headers=NO_STORE)

    @app.get("/photo/{pair_id}/{number}")
    def photo(pair_id: str, number: int) -> Response:
        pair = by_id.get(pair_id)
        if pair is None or not 0 <= number < len(pair.references):
            return Response(status_code=404)
        return Response(pair.references[number], media_type="image/png")

    @app.post("/vote")
    async def vote(request: Request) -> Response:
        voter, body = _voter(request), await request.body()
        if voter is None or len(body) > MAX_BODY_BYTES:
            return Response("cookies are needed to keep votes apart", status_code=400)
        given = {name: texts[-1] for name, texts in parse_qs(body.decode("latin-1")).items()}
        pair_id = given.get("pair", "")
        answers = {question: given.get(question, "") for question in QUESTIONS}
        known = pair_id in order_for(voter, list(by_id), comparisons)
        if not known or any(answer not in (*SIDES, "neither") for answer in answers.values()):
            return Response("not an answer to one of the pages", status_code=400)
        votes.add(_as_votes(voter, pair_id, answers))
        return RedirectResponse("/", status_code=303)

    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run until interrupted.

    Raises:
        DreamfleetError: the port is taken or the address is not this machine's.
    """
    import uvicorn

    if problem := port_problem(host, port):
        raise DreamfleetError(problem)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def order_for(voter: str, pair_ids: Sequence[str], count: int) -> list[str]:
    """The comparisons of one person, at random and the same at every visit."""
    shuffled = numpy_generator("preference order", voter).permutation(sorted(pair_ids))
    return [str(pair_id) for pair_id in shuffled[:count]]


def a_is_left(voter: str, pair_id: str) -> bool:
    """Which side A is on, at random for each person and pair."""
    return bool(key_to_int("preference side", voter, pair_id) % 2)


def _as_votes(voter: str, pair_id: str, answers: Mapping[str, str]) -> list[Vote]:
    left: Any = "a" if a_is_left(voter, pair_id) else "b"
    right: Any = "b" if left == "a" else "a"
    meaning = {"left": left, "right": right, "neither": "neither"}
    return [Vote(voter, pair_id, question, meaning[side]) for question, side in answers.items()]


def _voter(request: Request) -> str | None:
    """The person's own random name, if the browser brings one that we made."""
    name = request.cookies.get(COOKIE, "")
    return name if len(name) == 32 and set(name) <= set("0123456789abcdef") else None
