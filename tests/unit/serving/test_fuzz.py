"""Malformed requests by the hundred: every answer is one that the document names, none a 5xx."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
QUICK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def is_clean(answer: Any) -> bool:
    if answer.status_code == 200:
        return True
    error = answer.json()["error"]
    return answer.status_code in (400, 404, 405, 413, 429) and set(error) == {
        "message",
        "type",
        "param",
        "code",
    }


@settings(max_examples=400, deadline=None, suppress_health_check=QUICK)
@given(body=BODIES)
def test_bodies_of_any_shape(client: Any, body: dict[str, Any]) -> None:
    content = json.dumps({"num_inference_steps": 1, **body})  # what can be drawn is, quickly
    answer = client.post(PATH, content=content, headers={"Content-Type": "application/json"})
    assert is_clean(answer), (answer.status_code, answer.text)


@settings(max_examples=300, deadline=None, suppress_health_check=QUICK)
@given(
    content=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/plain", ""])
)
def test_bodies_of_any_bytes(client: Any, content: bytes, kind: str) -> None:
    answer = client.post(PATH, content=content, headers={"Content-Type": kind})
    assert is_clean(answer), (answer.status_code, answer.text)


@settings(max_examples=300, deadline=None, suppress_health_check=QUICK)
@given(name=st.text(min_size=1, max_size=40), data=st.data())
def test_names_of_any_kind(client: Any, name: str, data: st.DataObject) -> None:
    from urllib.parse import quote

    safe = quote(name.encode("utf-8", "replace"), safe="")
    path = data.draw(
        st.sampled_from(
            ["/v1/models/{}", "/v1/models/{}/report", "/pictures/{}", "/studio.{}", "/{}"]
        )
    )
    answer = client.get(path.format(safe))
    assert answer.status_code in (200, 307, 400, 404), (answer.status_code, answer.text)


@pytest.mark.slow
def test_schemathesis_finds_no_5xx(client: Any) -> None:
    """A thousand requests made from the OpenAPI document itself."""
    schemathesis = pytest.importorskip("schemathesis", reason="not installed (make install)")
    document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    headers = {"Authorization": client.headers["Authorization"]}

    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.method.upper() == "DELETE":
            continue  # it would retire what others ask for

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            answer = client.request(
                case.method,
                case.formatted_path,
                params=case.query,
                headers=headers,
                content=json.dumps(case.body, default=str) if case.body else b"",
            )
            assert answer.status_code < 500, (case.method, case.path, case.body)

        one()
