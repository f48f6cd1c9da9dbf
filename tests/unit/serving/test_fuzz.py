"""Malformed requests: every answer is one that the document names, none a 5xx. A thousand in the
ordinary suite, always the same; thousands of others among the slow tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

pytestmark = pytest.mark.heavy

PATH = "/v1/images/generations"
FIELDS = (
    *("model", "prompt", "n", "size", "response_format", "output_format", "seed", "user"),
    *("negative_prompt", "num_inference_steps", "guidance_scale", "scheduler", "quality"),
    *("adapter_strength", "adapters", "stream", "partial_images"),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["ada", "ada@x", "64x64", "auto", "ddim", "../../etc/passwd", "{token}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), VALUES, max_size=8)
PATHS = ("/v1/models/{}", "/v1/models/{}/report", "/pictures/{}", "/studio.{}", "/{}")
KINDS = ("application/json", "text/plain", "")
FEW, MANY = 160, 400
HOW_MANY = pytest.mark.parametrize(
    "examples", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
)


def tried(examples: int, test: Callable[..., None], **drawn: st.SearchStrategy[Any]) -> None:
    """Run `test` on so many examples."""
    bounds = settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < MANY,
        suppress_health_check=list(HealthCheck),
    )
    bounds(given(**drawn)(test))()


def is_clean(answer: Any) -> bool:
    if answer.status_code == 200:
        return True
    error = answer.json()["error"]
    known = answer.status_code in (400, 404, 405, 413, 429)
    return known and set(error) == {"message", "type", "param", "code"}


@HOW_MANY
def test_bodies_of_any_shape(client: Any, examples: int) -> None:
    def one(body: dict[str, Any]) -> None:
        content = json.dumps({"num_inference_steps": 1, **body})  # what can be drawn is, quickly
        answer = client.post(PATH, content=content, headers={"Content-Type": "application/json"})
        assert is_clean(answer), (answer.status_code, answer.text)

    tried(examples, one, body=BODIES)


@HOW_MANY
def test_bodies_of_any_bytes(client: Any, examples: int) -> None:
    def one(content: bytes, kind: str) -> None:
        answer = client.post(PATH, content=content, headers={"Content-Type": kind})
        assert is_clean(answer), (answer.status_code, answer.text)

    tried(examples, one, content=st.binary(max_size=200), kind=st.sampled_from(KINDS))


@HOW_MANY
def test_names_of_any_kind(client: Any, examples: int) -> None:
    def one(name: str, path: str) -> None:
        safe = quote(name.encode("utf-8", "replace"), safe="")
        answer = client.get(path.format(safe))
        assert answer.status_code in (200, 307, 400, 404), (answer.status_code, answer.text)

    tried(examples, one, name=st.text(min_size=1, max_size=40), path=st.sampled_from(PATHS))


@pytest.mark.parametrize("mode", ["positive", "negative"])
@HOW_MANY
def test_requests_made_from_the_document(client: Any, examples: int, mode: str) -> None:
    """By schemathesis: as the document has them, and just not so. Each operation gets its share."""
    schemathesis = pytest.importorskip("schemathesis", reason="not installed (make install)")
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations()]
    headers = {"Authorization": client.headers["Authorization"]}

    def one(case: Any) -> None:
        given_body = isinstance(case.body, dict | list | str | int | float | bool | None)
        answer = client.request(
            case.method,
            case.formatted_path,
            params=case.query,
            headers={**headers, "Content-Type": "application/json"},
            content=json.dumps(case.body) if given_body else b"",
        )
        assert answer.status_code < 500, (case.method, case.path, case.body, answer.text)

    for operation in operations:
        drawn = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
        try:
            tried(-(-examples // 4), one, case=drawn)
        except Unsatisfiable:
            assert mode == "negative" and not operation.body  # any text is a name
