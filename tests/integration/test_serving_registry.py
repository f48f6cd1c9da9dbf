"""Adapters out of MLflow's registry: versions, aliases, retirement, and the very same tensors."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dreamfleet.errors import BadInputError
from dreamfleet.runtime.engine_actor import EngineSource
from dreamfleet.serving import recording
from dreamfleet.serving.catalogue import WEIGHTS_NAME, Catalogue, RegistrySource
from dreamfleet.serving.orders import DrawOrder
from dreamfleet.serving.problems import ApiProblem
from dreamfleet.serving.replica import EngineReplica
from dreamfleet.serving.settings import ServeSettings
from dreamfleet.serving.thumbnails import has_report, report_of
from dreamfleet.tracking import MlflowTracker
from dreamfleet.tracking.store import MlflowStore
from tests.local_service import local_application
from tests.tiny_adapters import write_adapters

PATIENCE_S = 600.0
TAGS = {"class_word": "dog", "token": "sks"}


@pytest.fixture(scope="module")
def registered(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The registry's address, and the folder with the adapters that became ada 1 and 2, and bo."""
    place = tmp_path_factory.mktemp("registry")
    adapters = write_adapters(tiny_base, place / "adapters", ["first", "second", "bo"])
    uri = f"sqlite:///{place / 'mlflow.db'}"
    tracker = MlflowTracker(uri, spool=place / "spool", flush=False)
    run = tracker.start_run("adapters")
    for folder, name in (("first", "ada"), ("second", "ada"), ("bo", "bo")):
        version = run.register_adapter(
            adapters / folder, name, base_model=str(tiny_base), tags=TAGS, timeout_s=PATIENCE_S
        )
        assert version
    report = place / "report.html"
    report.write_text("<h1>Report</h1>", encoding="utf-8")
    run.log_artifact(report)  # after the versions, as `personalize` does
    run.finish(timeout_s=PATIENCE_S)
    tracker.close(PATIENCE_S)
    yield uri, adapters


def test_versions_aliases_and_retirement(
    registered: tuple[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    uri, adapters = registered
    catalogue = Catalogue(RegistrySource(uri, tmp_path / "cache"), lambda: None)
    catalogue.refresh()
    assert [entry.id for entry, _ in catalogue.usable()] == ["ada", "bo"]
    ada = catalogue.resolve("ada")
    assert ada.version == "2" and catalogue.resolve("ada@2") == ada
    assert ada.text("token") == "sks" and ada.created > 0
    assert catalogue.resolve("ada@candidate") == ada, "what personalize registers"
    original = load_file(adapters / "second" / WEIGHTS_NAME)
    fetched = load_file(Path(ada.location) / WEIGHTS_NAME)
    assert original.keys() == fetched.keys()
    assert all(np.array_equal(original[name], fetched[name]) for name in original)

    # An engine on another node, which has no such folder, fetches it itself.
    shutil.rmtree(tmp_path / "cache")
    replica = EngineReplica(EngineSource(str(tiny_base), "cpu"), num_threads=1)

    async def drawn() -> list[bytes]:
        order = DrawOrder("a dog", (1,), ((ada.ref, 1.0),), num_inference_steps=1)
        pictures = await replica.draw_order(order)
        await replica.close()
        return pictures

    assert len(asyncio.run(drawn())) == 1 and Path(ada.location).is_dir()

    catalogue.promote("ada", "champion", "1")
    champion = catalogue.resolve("ada")
    assert champion.version == "1" and champion == catalogue.resolve("ada@champion")
    assert champion.key != ada.key and catalogue.resolve("ada@candidate").version == "2"
    for model_id, status in (("ada", 400), ("nobody", 404)):
        with pytest.raises(ApiProblem, match="77" if status == 400 else "nobody") as error:
            catalogue.promote(model_id, "champion", "77")
        assert error.value.status == status

    catalogue.retire("bo")
    with pytest.raises(ApiProblem):
        catalogue.resolve("bo")
    again = Catalogue(RegistrySource(uri, tmp_path / "cache", ("ada",)), lambda: None)
    again.refresh()
    assert [entry.version for entry, _ in again.usable()] == ["1"]
    with pytest.raises(BadInputError, match="MLflow at"):
        RegistrySource(f"sqlite:///{tmp_path / 'none.db'}", tmp_path).read()


def test_a_versions_report_is_that_of_its_run(registered: tuple[str, Path], tmp_path: Path) -> None:
    uri, _ = registered
    catalogue = Catalogue(RegistrySource(uri, tmp_path / "cache", ("ada",)), lambda: None)
    catalogue.refresh()
    ada = catalogue.resolve("ada")
    assert ada.origin is not None and has_report(ada.location, ada.origin)
    assert not has_report(ada.location), "it is fetched when somebody asks"
    assert report_of(ada.location, ada.origin) == "<h1>Report</h1>" == report_of(ada.location)
    gone = replace(ada.origin, run_id="0" * 32)
    assert report_of(str(tmp_path), gone) is None
    with pytest.raises(BadInputError, match="MLflow at"):
        report_of(str(tmp_path), replace(gone, uri=f"sqlite:///{tmp_path / 'none.db'}"))


def test_a_service_on_a_cluster_records_itself(
    registered: tuple[str, Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    monkeypatch.setattr(recording, "END_S", PATIENCE_S)
    uri, adapters = registered
    engine = EngineReplica(EngineSource(str(tiny_base), "cpu"), num_threads=1)
    settings = ServeSettings(adapters=str(adapters), tracking_uri=uri)
    app, _ = local_application(engine, adapters, None, tmp_path / "shelf", settings=settings)
    opened: Any = TestClient(app, "http://localhost")
    wish = {"model": "first", "prompt": "a dog", "num_inference_steps": 1}
    with opened as client:
        deadline = time.monotonic() + PATIENCE_S
        while client.get("/healthz").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(2):
            assert client.post("/v1/images/generations", json=wish).status_code == 200
    store = MlflowStore.connect(uri).client
    wanted = "tags.`dreamfleet.serves.first` = 'first'"
    (run,) = store.search_runs([own.experiment_id for own in store.search_experiments()], wanted)
    assert run.info.status == "FINISHED" and run.data.metrics["requests_success"] == 2
    assert run.data.metrics["request_p95_s"] > 0 and "tracking_uri" not in run.data.params


def test_what_was_handed_to_a_cluster_is_recorded(registered: tuple[str, Path]) -> None:
    from dreamfleet.serving.recording import record_deployment
    from dreamfleet.tracking.runs import list_runs

    uri, _ = registered
    settings = {"registry": uri, "num_replicas": 2}
    record_deployment(settings, uri, "http://head:8265", notify=print)
    assert any(run.name.startswith("deploy ") for run in list_runs(uri, "dreamfleet", 10))
