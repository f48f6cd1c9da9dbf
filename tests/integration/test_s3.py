"""Photos, cache, checkpoints and results in a bucket: a local S3 server, no mock in between."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from dreamfleet.api import generate
from dreamfleet.config import RunConfig
from dreamfleet.data.cache import Cache, open_cache
from dreamfleet.data.preparation import Preparation
from dreamfleet.data.sources import find_photos
from dreamfleet.data.subjects import read_subject_list
from dreamfleet.errors import BadInputError
from dreamfleet.personalization import personalize
from dreamfleet.personalization.planning import complete_requests, output_root
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.runtime.storage import Folder, local_copy
from dreamfleet.training.checkpoints import CheckpointFolder
from dreamfleet.training.output import OutputFolder, working_path
from dreamfleet.training.task import SamplePlan, TrainOutcome, TrainTask
from dreamfleet.training.worker import train_in_process
from tests.integration.recipes import (
    ENDLESS,
    WEIGHTS,
    WatchingProgress,
    assert_equal,
    interrupt_once,
    recipe,
    trained_here,
)
from tests.unit.data.helpers import write_photos

Bucket = Callable[[str], str]
SAVE = """
import sys
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import CheckpointFolder
state = bytes(6_000_000)
CheckpointFolder(Folder(sys.argv[1])).save(int(sys.argv[2]), {"state.pt": state}, {}, keep=2)
"""
STUCK_WITHIN_S = 600.0


def test_storage_keeps_its_promises_in_a_bucket(s3_bucket: Bucket, tmp_path: Path) -> None:
    folder = Folder(s3_bucket("plain"))
    assert folder.names() == [] and folder.files() == [] and not folder.exists("a.bin")
    with pytest.raises(FileNotFoundError):
        folder.read("a.bin")
    folder.write("a.bin", b"123")
    folder.write("deep/er/b.bin", b"4")
    assert folder.read("a.bin") == b"123"
    assert folder.child("deep").child("er").read("b.bin") == b"4"
    assert (folder.names(), folder.files()) == (["a.bin", "deep"], ["a.bin", "deep/er/b.bin"])
    folder.delete_folder("deep")
    folder.delete("a.bin")
    assert folder.files() == []

    checkpoints = CheckpointFolder(Folder(s3_bucket("checkpoints")))
    for step in (10, 20, 30):
        checkpoints.save(step, {"state.pt": bytes([step])}, {"fingerprint": {}}, keep=2)
    assert checkpoints.folder.names() == ["step-00000020", "step-00000030"]
    checkpoints.folder.write("step-00000040/state.pt", b"cut short: no manifest")
    checkpoints.folder.write("step-00000030/state.pt", b"not what the manifest says")
    newest = checkpoints.newest()
    assert newest is not None and (newest.step, newest.files) == (20, {"state.pt": bytes([20])})

    cache = Cache(s3_bucket("cache"), 2000)
    for index in range(2):
        cache.put("photos", f"k{index}", [{"a": index, "b": bytes(100)}])
    assert cache.get("photos", "k1") == [{"a": 1, "b": bytes(100)}]
    assert cache.has("photos", "k0") and cache.get("photos", "no") is None
    entries = {use.kind: use.entries for use in cache.info()}
    assert entries == {"photos": 2, "prior_sets": 0, "teacher": 0}
    assert cache.prune() >= 1 and cache.clear() >= 0

    lists = Folder(s3_bucket("lists"))
    lists.write("family.csv", b"images,class_word\nRex,dog\n")
    rows = read_subject_list(lists.child("family.csv").location)
    assert rows == [{"images": [lists.child("Rex").location], "class_word": "dog"}]


def test_an_output_folder_in_a_bucket(s3_bucket: Bucket, fleet_home: Path) -> None:
    place = Folder(s3_bucket("out/rex"))
    folder = OutputFolder.of(place, None, "rex")
    folder.check(resume=False, overwrite=False)
    folder.begin(overwrite=False, info={"subject": "rex"})
    folder.write_text("config.yaml", "a: 1")
    Folder(str(folder.path)).write("samples/0.png", b"png")
    folder.update_info({"status": "finished"})
    folder.deliver()
    assert place.files() == ["checkpoints/run.json", "config.yaml", "samples/0.png"]
    assert list(folder.path.iterdir()) == []
    elsewhere = OutputFolder.of(Folder(place.location), None, "rex")  # as another host sees it
    assert elsewhere.info() == {"subject": "rex", "status": "finished"}
    with pytest.raises(BadInputError, match="not empty; add --resume"):
        elsewhere.check(resume=False, overwrite=False)
    elsewhere.check(resume=True, overwrite=False)
    with local_copy(place.location) as copy:
        assert sorted(Folder(str(copy)).files()) == ["config.yaml", "samples/0.png"]
    with local_copy(place.child("config.yaml").location) as copy:
        assert copy.read_text() == "a: 1"
    place.write("notes.txt", b"mine")
    folder.clear()
    assert place.files() == ["notes.txt"]
    with pytest.raises(BadInputError, match="other files"):
        folder.check(resume=False, overwrite=True)
    nowhere = Folder(place.location.replace("fleet", "nobody"))
    with pytest.raises(BadInputError, match="cannot be used"):
        OutputFolder.of(nowhere, None, "rex").begin(overwrite=False, info={})


class Blockage:
    """Passes connections on to a server, until a request matches: then nothing gets through any
    more but `more_bytes`.
    """

    def __init__(self, server: tuple[str, int], request: bytes, more_bytes: int) -> None:
        self._server, self._request, self._more_bytes = server, re.compile(request), more_bytes
        self._matched = False
        self.stuck = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                for pump in (self._upwards, self._downwards):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self._matched = self._matched or self._request.search(data) is not None
                if self._matched:
                    data, left = data[: self._more_bytes], self._more_bytes - len(data)
                    self._more_bytes = max(0, left)
                    if not self._more_bytes:
                        self.stuck.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _downwards(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


def kill_while_saving(location: str, step: int, request: bytes, more_bytes: int) -> None:
    """A process that writes a checkpoint to a bucket, and is killed on the way."""
    (server,) = re.findall(r"endpoint_override=([\w.]+):(\d+)", location)
    blockage = Blockage((server[0], int(server[1])), request, more_bytes)
    through = location.replace(":".join(server), f"127.0.0.1:{blockage.port}")
    process = subprocess.Popen([sys.executable, "-c", SAVE, through, str(step)])
    try:
        assert blockage.stuck.wait(STUCK_WITHIN_S)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        blockage.close()


def trained(config: RunConfig) -> TrainOutcome:
    """Prepare and train as a worker does, in this process."""
    (request,), files, resolved = complete_requests(config)
    preparation = Preparation(
        base=files,
        base_model=resolved.base_model,
        config=resolved,
        cache=open_cache(resolved.data.cache_path),
        device="cpu",
        session=None,
        progress=SilentProgress(),
    )
    preparation.prepare_photos([request])
    folder = OutputFolder.of(output_root(config, [request]), None, request.id)
    nothing = SamplePlan((), 0)
    task = TrainTask(
        config=request.config,
        subject=preparation.subject_set(request),
        prior=None,
        base_hash=files.hash,
        checkpoints=folder.checkpoints.location,
        device="cpu",
        final_samples=nothing,
        preview_samples=nothing,
    )
    return train_in_process(task)


def test_training_resumes_from_the_bucket(
    s3_bucket: Bucket, tmp_path: Path, tiny_base: Path, fleet_home: Path
) -> None:
    """The worker's and the publisher's part in this process, without Ray."""
    photos = Folder(s3_bucket("here/photos/Rex"))
    for path in sorted(write_photos(tmp_path / "Rex").iterdir()):
        photos.write(path.name, path.read_bytes())
    places: dict[str, Any] = {
        "subject": {"images": [photos.location], "class_word": "dog"},
        "output_dir": s3_bucket("here/runs/rex"),
        "data": {"cache_path": s3_bucket("here/cache")},
    }
    out = Folder(places["output_dir"])
    first = trained(recipe(tmp_path, tiny_base, train={"max_train_steps": 10}, **places))
    assert (first.status, first.step) == ("finished", 10)
    # Killed with a part of the state sent, and with all of it, but for the manifest.
    checkpoints = out.child("checkpoints")
    kill_while_saving(checkpoints.location, 12, rb"(PUT|POST) \S*state\.pt", 1_000_000)
    assert "step-00000012/state.pt" not in checkpoints.files()
    kill_while_saving(checkpoints.location, 13, rb"(PUT|POST) \S*manifest\.json", 0)
    assert "step-00000013/state.pt" in checkpoints.files()
    newest = CheckpointFolder(checkpoints).newest()
    assert newest is not None and newest.step == 10
    config = recipe(tmp_path, tiny_base, **places)
    second = trained(config)
    assert (second.status, second.resumed_from) == ("finished", 10)
    weights = load(out.child("checkpoints").child("adapter").read(WEIGHTS))
    assert_equal(weights, trained_here(config, tmp_path / "here"))
    assert Cache(s3_bucket("here/cache"), 2**30).info()[0].entries == 3


def test_a_run_lives_in_the_bucket_and_resumes_there(
    s3_bucket: Bucket, tmp_path: Path, tiny_base: Path, ray_running: object, fleet_home: Path
) -> None:
    photos = Folder(s3_bucket("photos/Rex"))
    for path in sorted(write_photos(tmp_path / "Rex").iterdir()):
        photos.write(path.name, path.read_bytes())
    photos.write("0.txt", b"sks dog on a lawn")
    assert len(find_photos([photos.location], max_photos=9).photos) == 3
    out = Folder(s3_bucket("runs/rex"))
    places: dict[str, Any] = {
        "subject": {"images": [photos.location], "class_word": "dog"},
        "output_dir": out.location,
        "data": {"cache_path": s3_bucket("shared-cache")},
    }
    endless = {"max_train_steps": ENDLESS, "checkpointing_steps": ENDLESS}
    with pytest.raises(KeyboardInterrupt):
        personalize(
            recipe(tmp_path, tiny_base, train=endless, **places),
            progress=WatchingProgress(interrupt_once(3)),
        )
    assert Cache(s3_bucket("shared-cache"), 2**30).info()[0].entries == 3
    stopped_at = CheckpointFolder(out.child("checkpoints")).newest_step()
    assert stopped_at is not None and 3 <= stopped_at < ENDLESS
    train = {"max_train_steps": stopped_at + 20, "checkpointing_steps": 100}
    config = recipe(tmp_path, tiny_base, train=train, **places)
    with pytest.raises(BadInputError, match="not empty; add --resume"):
        personalize(config)

    progress = WatchingProgress()
    (subject,) = personalize(config, resume=True, progress=progress).subjects
    assert (subject.status, subject.location) == ("finished", out.location)
    assert any(f"going on from step {stopped_at}" in line for line in progress.lines)
    names = out.files()
    assert {"adapter.json", "config.yaml", "report.html", "README.md"} <= set(names)
    assert any(name.startswith("samples/") for name in names)
    assert not any(name.startswith("checkpoints/ray/") for name in names)
    assert json.loads(out.read("checkpoints/run.json"))["status"] == "finished"
    assert [path.name for path in working_path(out).iterdir()] == [".lock"]
    weights = load(out.read("pytorch_lora_weights.safetensors"))
    assert_equal(weights, trained_here(config, tmp_path / "here"))

    (picture,) = generate("a {class}", adapter=out.location, num_inference_steps=2)
    (bare,) = generate("a dog", base_model=tiny_base, num_inference_steps=2)
    assert picture.tobytes() != bare.tobytes()
