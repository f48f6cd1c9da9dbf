"""The HTTP side with a real engine on a tiny base: fields, errors, events, changes at run time."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dreamfleet.errors import BaseModelError
from dreamfleet.serving import schemas
from dreamfleet.serving.guard import MAX_BODY_BYTES
from dreamfleet.serving.orders import Accepted
from dreamfleet.serving.sampled import Sampled
from dreamfleet.serving.settings import ServeSettings
from dreamfleet.serving.thumbnails import thumbnail_of
from tests.local_service import local_application
from tests.unit.serving.conftest import wait_until_ready

pytestmark = pytest.mark.heavy

PATH = "/v1/images/generations"
ASK: dict[str, Any] = {
    "model": "ada",
    "prompt": "a photo of {token} {class}",
    "seed": 5,
    "num_inference_steps": 2,
}


JSON = {"Content-Type": "application/json"}
WRONG_FIELDS: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "nobody"}, 404, "model"),
    ({"model": "ada@nobody"}, 404, "model"),
    ({"model": ""}, 400, "model"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": "x" * 2001}, 400, "prompt"),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": "\ud800"}, 400, "prompt"),
    ({"n": 0}, 400, "n"),
    ({"n": 1000}, 400, "n"),
    ({"size": "99999x99999"}, 400, "size"),
    ({"size": "63x64"}, 400, "size"),
    ({"size": "0x0"}, 400, "size"),
    ({"size": "2048x2048"}, 400, "size"),
    ({"num_inference_steps": 10**9}, 400, "num_inference_steps"),
    ({"guidance_scale": -1}, 400, "guidance_scale"),
    ({"guidance_scale": 1e400}, 400, "guidance_scale"),
    ({"seed": -1}, 400, "seed"),
    ({"seed": 2**53}, 400, "seed"),
    ({"scheduler": "magic"}, 400, "scheduler"),
    ({"response_format": "png"}, 400, "response_format"),
    ({"adapter_strength": 11}, 400, "adapter_strength"),
    ({"adapters": [{"model": "ada"}]}, 400, "adapters"),
    ({"adapters": [{"model": "base"}]}, 400, "adapters"),
    ({"adapters": [{"model": "bo"}] * 4}, 400, "adapters"),
    ({"sead": 1}, 400, "sead"),
]
WRONG_BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[" * 50_000, 400),
    (b'{"seed": ' + b"9" * 5000 + b"}", 400),
    (b"[]", 400),
    (b'"' + b"x" * MAX_BODY_BYTES + b'"', 413),
]


def drawn(answer: Any) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    return [pixels(entry["b64_json"]) for entry in answer.json()["data"]]


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=np.int16)


def events(answer: Any) -> list[dict[str, Any]]:
    lines = answer.text.split("\n\n")
    assert lines[-2] == "data: [DONE]" and lines[-1] == ""
    return [json.loads(part.partition("data: ")[2]) for part in lines[1:-2]]


class TestPictures:
    def test_seeds_and_subjects_decide(self, client: Any) -> None:
        both = drawn(client.post(PATH, json={**ASK, "n": 2}))
        second = drawn(client.post(PATH, json={**ASK, "seed": 6}))[0]
        assert np.abs(both[1] - second).max() <= 1, "picture i of n has seed + i"
        other = drawn(client.post(PATH, json={**ASK, "model": "bo"}))[0]
        plain = {**ASK, "model": "base", "prompt": "a photo of sks dog"}
        base = drawn(client.post(PATH, json=plain))[0]
        off = drawn(client.post(PATH, json={**ASK, "adapter_strength": 0}))[0]
        for one, two in ((both[0], both[1]), (both[0], other), (both[0], base), (other, base)):
            assert np.abs(one - two).max() > 1
        assert np.abs(base - off).max() <= 1

    def test_every_field_reaches_the_engine(self, client: Any) -> None:
        plain = drawn(client.post(PATH, json=ASK))[0]
        for change in (
            {"negative_prompt": "a cat"},
            {"num_inference_steps": 3},
            {"guidance_scale": 1.0},
            {"scheduler": "euler"},
            {"prompt": "a cat"},
            {"adapter_strength": 0.5},
            {"adapters": [{"model": "bo", "strength": 0.5}]},
        ):
            changed = drawn(client.post(PATH, json={**ASK, **change}))[0]
            assert np.abs(plain - changed).max() > 1, change

    def test_size_and_format(self, client: Any) -> None:
        body = {**ASK, "size": "128x64", "output_format": "webp"}
        answer = client.post(PATH, json=body).json()
        picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        assert picture.size == (128, 64) and picture.format == "WEBP"
        assert answer["size"] == "128x64" and answer["data"][0]["revised_prompt"].endswith(
            "sks dog"
        )

    def test_by_address(self, client: Any) -> None:
        answer = client.post(PATH, json={**ASK, "response_format": "url"}).json()["data"][0]
        assert answer["b64_json"] is None
        got = client.get(answer["url"], headers={"Authorization": ""})
        assert got.headers["content-type"] == "image/png"
        kept = np.asarray(Image.open(io.BytesIO(got.content)), dtype=np.int16)
        assert np.abs(kept - drawn(client.post(PATH, json=ASK))[0]).max() <= 1
        for name in ("0" * 32 + ".png", "..%2Fkeys.json", "x.png"):
            assert client.get(f"/pictures/{name}").status_code == 404

    def test_by_an_address_of_its_own(self, engine: Any, adapters: Path, tmp_path: Path) -> None:
        """Behind a TLS proxy requests name another scheme, and maybe another host."""
        settings = ServeSettings(adapters=str(adapters), public_url="https://images.example/fleet/")
        app, _ = local_application(engine, adapters, None, tmp_path, settings=settings)
        opened: Any = TestClient(app, "http://localhost")
        with opened as client:
            wait_until_ready(client)
            answer = client.post(PATH, json={**ASK, "response_format": "url"}).json()["data"][0]
            place, _, name = answer["url"].rpartition("/")
            assert place == "https://images.example/fleet/pictures"
            assert client.get(f"/pictures/{name}").status_code == 200

    def test_null_is_as_left_out(self, client: Any) -> None:
        names = schemas.ImageGenerationRequest.model_fields.keys() - ASK.keys()
        with_nulls = drawn(client.post(PATH, json={**ASK, **dict.fromkeys(names)}))
        assert np.abs(with_nulls[0] - drawn(client.post(PATH, json=ASK))[0]).max() <= 1

    def test_words_that_nobody_said_are_asked_for(self, client: Any) -> None:
        (client.folder / "bo" / "adapter.json").write_text('{"class_word": "cat"}', "utf-8")
        client.post("/v1/admin/refresh")
        drawn(client.post(PATH, json={**ASK, "model": "bo", "prompt": "a {class}"}))
        for model in ("bo", "base"):
            error = client.post(PATH, json={**ASK, "model": model}).json()["error"]
            assert error["param"] == "prompt" and "{token}" in error["message"]

    def test_without_a_seed_it_tells_which(self, client: Any) -> None:
        body = {key: value for key, value in ASK.items() if key != "seed"}
        seeds = {client.post(PATH, json=body).json()["data"][0]["seed"] for _ in range(2)}
        assert len(seeds) == 2


def test_a_stream_tells_steps_previews_and_pictures(client: Any) -> None:
    body = {**ASK, "num_inference_steps": 4, "n": 2, "stream": True, "partial_images": 1}
    answer = client.post(PATH, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer)
    steps = [e["step"] for e in found if e["type"].endswith("progress") and e["index"] == 1]
    assert steps == [1, 2, 3, 4]
    partial = [e for e in found if e["type"].endswith("partial_image")]
    assert sorted(e["index"] for e in partial) == [0, 1]
    done = {e["index"]: e for e in found if e["type"].endswith("completed")}
    kinds = client.get("/openapi.json").json()["components"]["schemas"]
    for kind, own in (("Progress", found[0]), ("PartialImage", partial[0]), ("Completed", done[1])):
        assert set(kinds[kind]["required"]) <= own.keys() <= kinds[kind]["properties"].keys()
    whole = drawn(client.post(PATH, json={**ASK, "num_inference_steps": 4, "n": 2}))
    for index in (0, 1):
        assert np.abs(pixels(done[index]["b64_json"]) - whole[index]).max() <= 1
        assert done[index]["seed"] == 5 + index
    assert np.abs(pixels(partial[0]["b64_json"]) - whole[partial[0]["index"]]).max() > 1


def test_pictures_are_sampled_where_that_is_asked_for(client: Any) -> None:
    drawn(client.post(PATH, json=ASK))
    assert client.service.sampled.take() == []
    for stream in (False, True):
        client.service.sampled = Sampled(60)
        client.post(PATH, json={**ASK, "n": 2, "stream": stream})
        ((prompt, picture),) = client.service.sampled.take()  # one a second at most
        assert prompt == "a photo of sks dog" and picture.startswith(b"\x89PNG")


class TestErrors:
    def test_keys(self, client: Any) -> None:
        for key in ("", "Bearer", "Bearer df-wrong", "Basic abc", "bearer \xff"):
            for path, ask in ((PATH, client.post), ("/v1/models", client.get)):
                answer = ask(path, headers={"Authorization": key.encode("latin-1")})
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"

    def test_a_key_of_scope_generate_changes_nothing(self, client: Any) -> None:
        headers = {"Authorization": f"Bearer {client.keys.create()[0]}"}
        assert client.get("/v1/models", headers=headers).status_code == 200
        for ask, path in (
            (client.post, "/v1/admin/refresh"),
            (client.delete, "/v1/admin/models/ada"),
        ):
            assert ask(path, headers=headers).status_code == 403
        assert client.get("/v1/models/ada").status_code == 200

    def test_fields(self, client: Any) -> None:
        for change, status, param in WRONG_FIELDS:
            content = json.dumps({**ASK, **change})
            answer = client.post(PATH, content=content, headers=JSON)
            given = (answer.status_code, answer.json()["error"]["param"])
            assert given == (status, param), change
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    def test_bodies(self, client: Any) -> None:
        for content, status in WRONG_BODIES:
            answer = client.post(PATH, content=content, headers=JSON)
            assert answer.status_code == status, content[:20]
            assert answer.json()["error"]["message"] and answer.json()["error"]["param"] is None
        message = client.post(PATH, content=b'{"seed": x', headers=JSON).json()["error"]["message"]
        assert message == "body: no JSON, at character 9: Expecting value"

    def test_unknown_paths_and_methods(self, client: Any) -> None:
        assert client.get("/v2/nothing").json()["error"]["code"] == "not_found"
        assert client.get(PATH).status_code == 405

    def test_busy_is_a_clean_429_also_for_streams(self, client: Any) -> None:
        for stream in (False, True):
            body = {**ASK, "n": 10, "stream": stream}
            client.service.queue.running += 4  # as if others were drawing
            try:
                answer = client.post(PATH, json=body)
            finally:
                client.service.queue.running -= 4
            assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1
        assert client.service.figures.snapshot()["requests_refused"] == 2

    def test_who_is_refused_has_nothing_loaded(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[Any] = []

        async def prefetch(order: Any) -> None:
            loaded.append(order)

        monkeypatch.setattr(client.service.backend, "prefetch", prefetch)
        client.service.queue.running += 4
        try:
            assert client.post(PATH, json={**ASK, "n": 10}).status_code == 429
        finally:
            client.service.queue.running -= 4
        client.get("/healthz")
        assert loaded == []

    def test_what_nobody_foresaw_has_the_same_shape(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(order: Any) -> Any:
            raise RuntimeError("secret")

        async def breaking(order: Any) -> Any:
            yield Accepted()
            raise RuntimeError("secret")

        monkeypatch.setattr(client.service.backend, "draw", broken)
        monkeypatch.setattr(client.service.backend, "draw_events", breaking)
        outside = TestClient(client.app, raise_server_exceptions=False)
        answer = outside.post(PATH, json=ASK, headers=dict(client.headers))
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
        stream = client.post(PATH, json={**ASK, "stream": True})
        assert stream.status_code == 200 and "event: error" in stream.text
        assert "secret" not in answer.text + stream.text

    def test_without_an_engine_there_is_503(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def lost(order: Any) -> Any:
            raise BaseModelError("/models/gone: no such folder")

        monkeypatch.setattr(client.service.backend, "draw", lost)
        answer = client.post(PATH, json=ASK)
        assert answer.status_code == 503 and "/models" not in answer.text
        monkeypatch.setattr(client.service, "_engines", 0)
        assert client.get("/healthz").status_code == 503
        assert client.post(PATH, json=ASK).json()["error"]["code"] == "not_ready"

    def test_while_ending_there_is_503(self, client: Any) -> None:
        client.service.drain()
        assert client.get("/healthz").status_code == 503
        assert client.post(PATH, json=ASK).json()["error"]["code"] == "not_ready"

    def test_an_adapter_with_nan_fails_alone_and_names_no_place(self, client: Any) -> None:
        from safetensors.numpy import load_file, save_file

        weights = client.folder / "bo" / "pytorch_lora_weights.safetensors"
        tensors = load_file(weights)
        tensors[next(iter(tensors))][:] = np.nan
        save_file(tensors, weights)
        client.post("/v1/admin/refresh")
        for stream in (False, True):
            answer = client.post(PATH, json={**ASK, "model": "bo", "stream": stream})
            assert answer.status_code == 503
            assert "NaN" in answer.text and str(client.folder) not in answer.text
        drawn(client.post(PATH, json=ASK))


class TestModels:
    def test_list(self, client: Any) -> None:
        listed = client.get("/v1/models").json()
        assert [model["id"] for model in listed["data"]] == ["ada", "bo", "cy", "base"]
        ada = client.get("/v1/models/ada").json()
        assert ada == listed["data"][0] and ada["metrics"]["clip_i"] == 0.8
        assert client.get("/v1/models/nobody").status_code == 404

    def test_add_promote_retire_while_it_runs(self, client: Any) -> None:
        shutil.copytree(client.folder / "bo", client.folder / "new")
        assert client.post(PATH, json={**ASK, "model": "new"}).status_code == 404
        client.post("/v1/admin/refresh")
        new = drawn(client.post(PATH, json={**ASK, "model": "new"}))[0]
        bo = drawn(client.post(PATH, json={**ASK, "model": "bo"}))[0]
        assert np.abs(new - bo).max() <= 1
        promoted = client.post(
            "/v1/admin/models/ada/aliases", json={"alias": "champion", "version": "new"}
        )
        assert promoted.json()["version"] == "new"
        ada = drawn(client.post(PATH, json={**ASK, "model": "ada@champion"}))[0]
        assert np.abs(ada - bo).max() <= 1
        assert client.delete("/v1/admin/models/new").status_code == 204
        assert client.post(PATH, json={**ASK, "model": "new"}).status_code == 404

    def test_a_replaced_file_is_never_mixed_up(self, client: Any) -> None:
        before = drawn(client.post(PATH, json=ASK))[0]
        weights = "pytorch_lora_weights.safetensors"
        shutil.copy(client.folder / "cy" / weights, client.folder / "ada" / weights)
        client.post("/v1/admin/refresh")
        after = drawn(client.post(PATH, json=ASK))[0]
        cy = drawn(client.post(PATH, json={**ASK, "model": "cy"}))[0]
        assert np.abs(after - cy).max() <= 1 < np.abs(after - before).max()

    def test_a_file_replaced_since_the_last_look_is_not_taken_for_it(self, client: Any) -> None:
        weights = client.folder / "ada" / "pytorch_lora_weights.safetensors"
        shutil.copy(client.folder / "cy" / weights.name, weights)
        os.utime(weights, (1, 1))
        answer = client.post(PATH, json=ASK)
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        cy = drawn(client.post(PATH, json={**ASK, "model": "cy"}))[0]
        while (answer := client.post(PATH, json=ASK)).status_code == 503:
            time.sleep(0.01)
        assert np.abs(drawn(answer)[0] - cy).max() <= 1

    def test_an_alias_is_not_moved_to_what_cannot_be_drawn(self, client: Any) -> None:
        path = "/v1/admin/models/ada/aliases"
        client.post(path, json={"alias": "champion", "version": "bo"})
        (client.folder / "cy" / "pytorch_lora_weights.safetensors").write_bytes(b"")
        refused = client.post(path, json={"alias": "champion", "version": "cy"})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "version"
        assert client.get("/v1/models/ada@champion").json()["version"] == "bo"

    def test_thumbnail_and_report(self, client: Any) -> None:
        assert client.get("/v1/models/ada/thumbnail").status_code == 404
        samples = client.folder / "ada" / "samples"
        samples.mkdir()
        Image.new("RGB", (64, 48), (200, 10, 10)).save(samples / "image_0.png")
        (client.folder / "ada" / "report.html").write_text("<h1>Ada</h1>", encoding="utf-8")
        assert client.get("/v1/models/ada").json()["has_thumbnail"]
        small = Image.open(io.BytesIO(client.get("/v1/models/ada/thumbnail").content))
        assert small.size == (160, 160)
        secret = client.folder / "secret.png"
        Image.new("RGB", (64, 48), (10, 200, 10)).save(secret)
        settings = {"subject": {"images": [str(secret)]}}
        (client.folder / "ada" / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
        for photos, strongest in ((True, 1), (False, 0)):
            picture = thumbnail_of(str(client.folder / "ada"), photos=photos)
            assert picture is not None
            shown = Image.open(io.BytesIO(picture))
            assert np.asarray(shown).mean((0, 1)).argmax() == strongest
        settings = {"subject": {"images": ["~nobody-here/x.png"]}}
        (client.folder / "ada" / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
        assert thumbnail_of(str(client.folder / "ada")) is not None
        report = client.get("/v1/models/ada/report")
        assert (
            report.text == "<h1>Ada</h1>" and "sandbox" in report.headers["Content-Security-Policy"]
        )


class TestDocuments:
    def test_metrics(self, client: Any) -> None:
        drawn(client.post(PATH, json={**ASK, "n": 2}))
        client.post(PATH, json={**ASK, "model": "nobody"})
        text = client.get("/metrics").text
        assert 'dreamfleet_pictures_total{ingress="test"} 2.0' in text
        assert 'dreamfleet_requests_total{ingress="test",outcome="success"} 1.0' in text
        assert re.search(r"dreamfleet_engine_cache_bytes\S* [1-9]", text)
        client.service.about = None  # as if engines did not answer
        assert "dreamfleet_engine_cache_bytes{" not in client.get("/metrics").text

    def test_docs_describe_every_field_and_fetch_nothing(self, client: Any) -> None:
        page = client.get("/docs", headers={"Authorization": ""}).text
        for name in schemas.ImageGenerationRequest.model_fields:
            assert f"<td>{name}</td>" in page
        for source in (page, client.get("/").text, client.get("/studio.js").text):
            assert not re.search(r"(src|href)=[\"']?https?://|import\(|//cdn", source)
        assert client.get("/studio.css").headers["content-type"].startswith("text/css")

    def test_openapi_describes_every_field_and_bounds_what_is_asked_for(self, client: Any) -> None:
        document = client.get("/openapi.json").json()
        known = document["components"]["schemas"]
        fields = {
            f"{name}.{field}": about
            for name, schema in known.items()
            for field, about in schema.get("properties", {}).items()
        }
        operations = [own for path in document["paths"].values() for own in path.values()]
        parameters = [given for own in operations for given in own.get("parameters", [])]
        assert len(fields) > 50 and len(parameters) >= 5
        assert [name for name, about in fields.items() if not about.get("description")] == []
        assert [given["name"] for given in parameters if not given.get("description")] == []
        bounds = {
            "integer": {"minimum", "maximum"},
            "number": {"minimum", "maximum"},
            "array": {"maxItems"},
        }
        bodies = ("ImageGenerationRequest", "AnotherAdapter", "Promotion")
        for name, about in fields.items():
            for kind in about.get("anyOf", [about]) if name.partition(".")[0] in bodies else ():
                assert bounds.get(kind.get("type"), set()) <= kind.keys(), name
                if kind.get("type") == "string":
                    assert kind.keys() & {"maxLength", "enum", "const", "pattern"}, name

    def test_openapi_has_no_answer_that_never_comes(self, client: Any) -> None:
        document = client.get("/openapi.json").json()
        assert "422" not in json.dumps(document["paths"])
        assert document["paths"][PATH]["post"]["security"]
