"""Registered adapters on the disks of nodes: whose they are, copied once, fetched by engines."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreamfleet.errors import BadInputError
from dreamfleet.runtime.ports import free_port
from dreamfleet.serving.catalogue import WEIGHTS_NAME, Catalogue, RegistrySource
from dreamfleet.serving.orders import DrawOrder
from dreamfleet.tracking import registry
from dreamfleet.tracking.registry import RegisteredAdapter, RegisteredVersion
from dreamfleet.tracking.store import MlflowStore, Unreachable

pytestmark = pytest.mark.heavy


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A registry without MLflow: sources are folders; which of them were copied."""
    found: list[str] = []

    def download(uri: str, source: str, folder: Path) -> None:
        found.append(source)
        shutil.copytree(source, folder, dirs_exist_ok=True)

    monkeypatch.setattr(registry, "_asked", lambda uri, question: question(None))
    monkeypatch.setattr(registry, "_download", download)
    return found


def holding(monkeypatch: pytest.MonkeyPatch, source: Path, run_id: str = "1") -> None:
    version = RegisteredVersion("my dog", "1", str(source), {}, 5, run_id)
    model = RegisteredAdapter("my dog", [version], {})
    monkeypatch.setattr(registry, "registered_adapters", lambda uri, names: [model])


def looked(cache: Path, uri: str = "http://one") -> Catalogue:
    catalogue = Catalogue(RegistrySource(uri, cache), lambda: None)
    catalogue.refresh()
    return catalogue


def test_another_registry_does_not_serve_what_the_first_one_had(
    adapters: Path, tmp_path: Path, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(monkeypatch, adapters / "ada")
    first = looked(tmp_path).resolve("my dog")
    assert looked(tmp_path).resolve("my dog").key == first.key and len(copied) == 1
    other = looked(tmp_path, "http://two").resolve("my dog")
    holding(monkeypatch, adapters / "bo", run_id="2")  # the store was wiped
    anew = looked(tmp_path).resolve("my dog")
    assert len({own.location for own in (first, other, anew)}) == 3 == len(copied)
    assert len({own.key for own in (first, other, anew)}) == 3


def test_what_holds_no_adapter_is_asked_about_once_and_never_copied(
    tmp_path: Path, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (source := tmp_path / "classifier" / "data").mkdir(parents=True)
    (source / "model.bin").write_bytes(b"x")
    (source / f"{WEIGHTS_NAME}.index").write_bytes(b"x")
    holding(monkeypatch, source.parent)
    asked: list[str] = []
    look = registry._holds_weights

    def noted(uri: str, source: str) -> bool:
        asked.append(source)
        return look(uri, source)

    monkeypatch.setattr(registry, "_holds_weights", noted)
    catalogue = looked(tmp_path / "cache")
    for _ in range(3):
        catalogue.refresh()
    assert len(asked) == 1 and "only LoRA" in catalogue.problems()["my dog@1"]
    assert copied == [] and not list((tmp_path / "cache").rglob("model.bin"))


def test_an_adapter_is_found_below_other_files(
    adapters: Path, tmp_path: Path, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's flavour puts the adapter into a folder of its own."""
    (source := tmp_path / "model").mkdir()
    (source / "MLmodel").write_text("flavors: {}")
    shutil.copytree(adapters / "ada", source / "a" / "adapter_weights")
    holding(monkeypatch, source)
    assert looked(tmp_path / "cache").resolve("my dog").id == "my dog" and len(copied) == 1


def test_an_engine_on_another_node_fetches_it_itself(
    engine: Any,
    adapters: Path,
    tmp_path: Path,
    copied: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holding(monkeypatch, adapters / "ada")
    entry = looked(tmp_path).resolve("my dog")
    shutil.rmtree(entry.location)
    order = DrawOrder("a dog", (1,), ((entry.ref, 1.0),), num_inference_steps=1)
    assert len(asyncio.run(engine.draw_order(order))) == 1
    assert len(copied) == 2 and Path(entry.location).is_dir()


@pytest.mark.parametrize("question", ["list", "promote", "retire", "report"])
def test_a_registry_that_is_down_is_told_from_a_wrong_question(
    question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the error's cause: the service answers 503 then. No error names the password."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    place = f"127.0.0.1:{free_port('127.0.0.1')}"  # nobody listens there
    uri = f"http://me:secret@{place}"
    ask: dict[str, Callable[[], object]] = {
        "list": lambda: registry.registered_adapters(uri),
        "promote": lambda: registry.set_alias(uri, "ada", "champion", "1"),
        "retire": lambda: registry.retire(uri, "ada"),
        "report": lambda: registry.fetch_artifact(uri, "1", "report.html", tmp_path),
    }
    with pytest.raises(BadInputError, match=f"MLflow at http://me@{place}: ") as down:
        ask[question]()
    assert "secret" not in str(down.value) and isinstance(down.value.__cause__, Unreachable)


def test_an_outage_is_503(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    down = RegistrySource(f"http://127.0.0.1:{free_port('127.0.0.1')}", tmp_path)
    client.service.catalogue._source = down
    answer = client.post("/v1/admin/refresh")
    assert answer.status_code == 503 and "MLflow at" in answer.json()["error"]["message"]


def test_a_wrong_question_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    def refuse(*given: str) -> None:
        raise MlflowException("no such version", RESOURCE_DOES_NOT_EXIST)

    store = SimpleNamespace(client=SimpleNamespace(set_registered_model_alias=refuse))
    monkeypatch.setattr(MlflowStore, "connect", lambda uri, create: store)
    with pytest.raises(BadInputError, match="no such version") as wrong:
        registry.set_alias("http://host", "ada", "champion", "77")
    assert isinstance(wrong.value.__cause__, MlflowException)
