"""One `tune` call: photos in, one study per subject, each subject's champion out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import queue
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig, dreamfleet_home, dump_config
from dreamfleet.data.cache import open_cache
from dreamfleet.data.preparation import Preparation
from dreamfleet.data.subjects import SubjectRequest
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError, TrainingError, first_line
from dreamfleet.evaluation.references import reference_photos
from dreamfleet.personalization.command import sigterm_as_interrupt
from dreamfleet.personalization.planning import (
    IdleCase,
    check_resume,
    complete_requests,
    say_without_effect,
    warn_of_prompts,
)
from dreamfleet.runtime.engine_actor import EngineSource, start_engine
from dreamfleet.runtime.jobs import check_job_places
from dreamfleet.runtime.locks import exclusive_run
from dreamfleet.runtime.progress import Progress, SilentProgress
from dreamfleet.runtime.storage import Folder, is_uri, write_whole
from dreamfleet.training.output import CONFIG
from dreamfleet.training.task import SamplePlan, TrainTask
from dreamfleet.tuning.judge import JudgeActor, JudgeSource, Reference
from dreamfleet.tuning.pictures import EMBEDDED, plain, shots
from dreamfleet.tuning.results import SubjectTuned, TuneResult
from dreamfleet.tuning.space import dimensions, endless, searches_prior

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.runtime.session import RaySession
    from dreamfleet.tracking import Tracker
    from dreamfleet.tuning.finals import Contender, Finals
    from dreamfleet.tuning.study import Asked, SubjectStudy
    from dreamfleet.tuning.trial import Order, Reading
    from dreamfleet.tuning.watching import Recorder

DATABASE, MARKER, TRIALS, FINALS, CHAMPION = (
    "study.db", "sweep.json", "trials", "finals", "champion",
)  # fmt: skip
TUNE_FILES = ".tune"
SEARCH = "search"  # part of the work, with the finals and the champion
WRITTEN = (
    DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", MARKER, TRIALS, FINALS, CHAMPION, TUNE_FILES,
    "plots", "report.html", CONFIG,
)  # fmt: skip
# Ctrl-C shall reach us, and nothing is written outside the output folder.
RAY_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def tune(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TuneResult:
    """Find each subject's own setting, and train its champion.

    Args:
        config: the recipe: what is not searched; sections `tune` and `space` say how and what is.
        resume: go on with the studies in the output folder (or in `tune.storage`).
        overwrite: begin again in a used output folder.
        progress: where the table and lines go; default: nowhere.

    Returns:
        One result per subject. With several subjects one that fails is a result; with one subject
        it is raised.

    Raises:
        BadInputError: something given cannot be used; named, before Ray starts where possible.
        TrainingError: the only subject's study ended without a host.
        KeyboardInterrupt: interrupted; `resume` goes on.
    """
    started = time.monotonic()
    command = Command.planned(config, resume, overwrite, progress or SilentProgress())
    with sigterm_as_interrupt(), exclusive_run(command.output):
        command.execute()
    results = [command.results[request.id] for request in command.requests]
    if len(results) == 1 and results[0].status != "finished":
        raise TrainingError(f"{results[0].id}: {results[0].message}")
    return TuneResult(results, time.monotonic() - started, command.engine_s)


@dataclass
class Command:
    """One `tune` call."""

    requests: list[SubjectRequest]
    files: BaseFiles
    config: RunConfig
    output: Path
    resume: bool
    overwrite: bool
    progress: Progress
    results: dict[str, SubjectTuned] = field(default_factory=dict)
    engine_s: dict[str, float] = field(default_factory=dict)
    key: str = ""  # of the sweep; its marker holds it
    former_keys: list[str] = field(default_factory=list)  # of what is overwritten

    @classmethod
    def planned(
        cls, config: RunConfig, resume: bool, overwrite: bool, progress: Progress
    ) -> Command:
        """Check all that can be checked without Ray; nothing is written.

        Raises:
            BadInputError: naming what cannot be used.
        """
        check_resume(resume, overwrite)
        check_job_places(config)
        _check_placement(config)
        _check_storage(config)
        requests, files, resolved = complete_requests(config)
        output = _output_folder(config, requests)
        _check_output(output, resume, overwrite)
        own = cls(requests, files, resolved, output, resume, overwrite, progress)
        for request in requests:
            own._check(request)
        JudgeSource.of(resolved, {}, "cpu").check()
        warn_of_prompts(requests, files, progress)
        _warn_of_idle_settings(resolved, progress)
        return own

    def _check(self, request: SubjectRequest) -> None:
        """Refuse a space or a class word that nothing can be made of."""
        try:
            dimensions(request.config)
            shots(request.config, self.config.tune.final_images)
        except ConfigError:
            raise
        except DreamfleetError as error:
            if len(self.requests) == 1:
                raise
            self._failed(request.id, str(error))

    def _failed(self, identity: str, message: str, *, is_said: bool = False) -> None:
        request = next(own for own in self.requests if own.id == identity)
        if not is_said:
            self.progress.warn(f"{request.display_name}: {message}")
        self.results[identity] = SubjectTuned(
            identity, request.display_name, "failed", self.folder(identity), message
        )

    def folder(self, identity: str) -> Path:
        """Where one subject's results go."""
        return self.output if len(self.requests) == 1 else self.output / identity

    def trial_folder(self, identity: str, root: int) -> str:
        """Where a trial's state and readings lie."""
        return self.storage.child(f"{TRIALS}/{self.key}/{identity}/{root:04d}").location

    def final_folder(self, identity: str, number: int, seed: int) -> str:
        return self.storage.child(f"{FINALS}/{self.key}/{identity}/{number:04d}-{seed}").location

    @property
    def storage(self) -> Folder:
        """Where trials and finals lie, of this sweep and maybe of others."""
        return Folder(self.config.cluster.storage_path or str(self.output))

    # From photos to results

    def execute(self) -> None:
        from dreamfleet.runtime.session import added_environment, ray_session
        from dreamfleet.tracking import open_tracker
        from dreamfleet.tuning.study import check_storage

        if self.config.tune.storage:
            check_storage(self.config.tune.storage)
        self.key = self._begin()
        spool = dreamfleet_home() / "spool"
        tracker = open_tracker(self.config.tracking, spool, self.progress.warn)
        try:
            with (
                added_environment(RAY_TUNE),
                ray_session(self.config.cluster, dashboard=False) as session,
            ):
                Run(self, session, tracker, self.key).run()
        finally:
            tracker.close()

    def _begin(self) -> str:
        """Mark the folder as ours; the sweep's name for the tracking server."""
        marker = self.output / MARKER
        if self.overwrite:
            self.former_keys = _keys_in(marker)
            _clear(self.output)
            for former in self.former_keys:
                self.storage.delete_folder(f"{TRIALS}/{former}")
                self.storage.delete_folder(f"{FINALS}/{former}")
        if marker.is_file():
            return _keys_in(marker)[0]
        if self.resume:
            self.progress.info(f"{self.output}: nothing to go on from; beginning")
        key = uuid.uuid4().hex[:12]
        # Former keys too: a database may still hold their studies when this command fails early.
        about = {"key": key, "former": self.former_keys, "what": "dreamfleet tune"}
        write_whole(marker, json.dumps(about).encode())
        return key

    def write_settings(self) -> None:
        """Beside the studies, once they have taken them: `--resume` may have changed some."""
        complete = self.config.model_copy(update={"output_dir": str(self.output)})
        write_whole(self.output / CONFIG, dump_config(complete).encode())

    @property
    def storage_url(self) -> str:
        return self.config.tune.storage or f"sqlite:///{self.output / DATABASE}"


@dataclass
class Run:
    """A command with its Ray: actors, studies, trials, finals, champions."""

    command: Command
    session: RaySession
    tracker: Tracker
    key: str
    _actors: list[Any] = field(default_factory=list)
    _tasks: dict[str, TrainTask] = field(default_factory=dict)
    _prior_keys: dict[str, str] = field(default_factory=dict)  # of all that may be tried
    _references: dict[str, Any] = field(default_factory=dict)  # Ray's, of the tasks

    @property
    def config(self) -> RunConfig:
        return self.command.config

    @property
    def packed(self) -> bool:
        return self.config.tune.placement == "packed"

    def run(self) -> None:
        import ray

        from dreamfleet.tuning.watching import Recorder

        preparation, usable = self._prepare()
        recorder = Recorder(
            self.tracker, self.key, str(self.command.output),
            lambda study, root: Folder(self.command.trial_folder(study.name, root)),
        )  # fmt: skip
        try:
            self._start_actors(preparation.device, usable)
            studies = self._open_studies(usable)
            self.command.write_settings()
            self._search(studies, recorder)
            self._note_times(SEARCH)
            self._conclude(studies, recorder, preparation)
            self._note_times(CHAMPION)
        except BaseException:
            recorder.abandon()
            raise
        finally:
            for actor in self._actors:
                with contextlib.suppress(Exception):
                    ray.kill(actor)
        preparation.cache.prune()
        shutil.rmtree(self.command.output / TUNE_FILES, ignore_errors=True)
        for emptied in (f"{FINALS}/{self.key}", FINALS):
            with contextlib.suppress(OSError):  # of a subject that failed, or elsewhere
                (self.command.output / emptied).rmdir()

    # Before

    def _prepare(self) -> tuple[Preparation, list[SubjectRequest]]:
        from dreamfleet.runtime.devices import choose_device

        command = self.command
        config = command.config
        preparation = Preparation(
            base=command.files,
            base_model=config.base_model,
            config=config,
            cache=open_cache(config.data.cache_path, config.data.cache_max_gib),
            device=choose_device(config, self.session, command.progress),
            session=self.session,
            progress=command.progress,
        )
        requests = [own for own in command.requests if own.id not in command.results]
        if not requests:
            return preparation, []
        preparation.prepare_photos(requests)
        checked = preparation.check_subjects(requests)
        usable = preparation.prepare_priors([_with_prior(own, own.config) for own in checked])
        for identity, reason in preparation.failures.items():
            command._failed(identity, reason, is_said=True)
        import ray

        plan = SamplePlan((), 0)
        for request in usable:
            task = TrainTask(
                config=next(own.config for own in requests if own.id == request.id),
                subject=preparation.subject_set(request),
                prior=preparation.prior_set(request),
                base_hash=command.files.hash,
                checkpoints="",
                device=preparation.device,
                final_samples=plan,
                preview_samples=plan,
            )
            self._prior_keys[request.id] = preparation.prior_key(
                _with_prior(request, endless(task.config))
            )
            self._tasks[request.id] = task
            self._references[request.id] = ray.put(task)
        return preparation, usable

    def _start_actors(self, device: str, usable: Sequence[SubjectRequest]) -> None:
        """Engines and judges, found by name; names are of this driver alone."""
        from dreamfleet.training.fleet import engine_count, engine_resources, engine_settings
        from dreamfleet.tuning.engine import TuneEngine

        config, tag = self.config, uuid.uuid4().hex[:8]
        judges = JudgeSource.of(config, self._judge_references(usable), device)
        share = _judge_share(judges, config, device)
        resources = engine_resources(config.cluster, device)
        if share and "GPU" not in config.cluster.resources_per_worker:
            resources["num_gpus"] = 1.0 - share if share < 1 else 1.0
        wanted = max(1, len(usable)) * config.tune.max_concurrent_trials
        self._device, self._resources = device, resources
        places = engine_count(config.cluster, self.session, wanted, device)
        each = float(resources.get("num_gpus", 0))
        _check_gpus(places, each, 0.0 if self.packed else share, self.session)
        if not self.packed:
            self._engines, self._slots_each = [""], places
            judge = self._start_judge(judges, f"judge-{tag}", share, None)
            self._judges = {"": judge}
            return
        self._slots_each = min(config.cluster.max_slots, math.ceil(wanted / places))
        # A trial's adapter is drawn from a slot of its own while its training goes on. Pictures
        # come first: they decide whether more training is wanted at all.
        settings = replace(engine_settings(config, 2 * self._slots_each), training_share=0.0)
        source = EngineSource.of(config, device)
        self._engines = [f"engine-{tag}-{number}" for number in range(places)]
        engines = [
            start_engine(TuneEngine, source, settings, self._references, name=name, **resources)
            for name in self._engines
        ]
        self._actors += engines
        self._judges = self._judges_by_node(judges, tag, share, engines)

    def _judges_by_node(
        self, judges: JudgeSource, tag: str, share: float, engines: Sequence[Any]
    ) -> dict[str, str]:
        """One judge on each machine that has engines; its name by engine."""
        import ray

        nodes = [str(node) for node in ray.get([engine.node.remote() for engine in engines])]
        each = float(self._resources.get("num_gpus", 0))
        _check_gpus(len(engines), each, share * len(set(nodes)), self.session)
        names = {
            node: self._start_judge(judges, f"judge-{tag}-{number}", share, node)
            for number, node in enumerate(dict.fromkeys(nodes))
        }
        return {engine: names[node] for engine, node in zip(self._engines, nodes, strict=True)}

    def _start_judge(
        self, judges: JudgeSource, name: str, num_gpus: float, node: str | None
    ) -> str:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {"name": name, "num_cpus": 0, "num_gpus": num_gpus}
        timeout_s = self.config.tune.judge_timeout_s
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        actor = ray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=100)(JudgeActor)
        self._actors.append(actor.options(**options).remote(judges, timeout_s))
        return name

    def _judge_references(self, usable: Sequence[SubjectRequest]) -> dict[str, Reference]:
        return {
            own.id: Reference(
                reference_photos(own.config.subject.images, own.config.data),
                own.config.subject.class_word,
                own.config.subject.token,
            )
            for own in usable
        }

    def _open_studies(self, usable: Sequence[SubjectRequest]) -> list[SubjectStudy]:
        from dreamfleet.tuning.study import Owner, SubjectStudy, delete_study, open_storage

        command = self.command
        storage = open_storage(command.storage_url)
        known = {found.study_name for found in storage.get_all_studies()}
        studies = []
        for request in usable:
            if command.overwrite and request.id in known:  # in a database of its own
                delete_study(storage, request.id, {command.key, *command.former_keys})
            task = self._tasks[request.id]
            studies.append(
                SubjectStudy(
                    storage,
                    request.id,
                    task.config,
                    self._fingerprint(task),
                    resume=command.resume,
                    owner=Owner(command.key, str(command.output)),
                )
            )
        return studies

    def _fingerprint(self, task: TrainTask) -> dict[str, Any]:
        """All that decides a trial's readings, by name."""
        from dreamfleet.training.fingerprint import run_fingerprint

        config = task.config
        tune, train = config.tune, config.train
        return {
            **run_fingerprint(
                config,
                world_size=1,
                subject_key=task.subject.content_key,
                prior_key=self._prior_keys[task.subject.id],
                base_hash=task.base_hash,
            ),
            "max_train_steps": train.max_train_steps,
            "fidelity_margin": tune.fidelity_margin,
            "space": {name: own.text() for name, own in dimensions(endless(config)).items()},
            "pictures": plain(shots(config, tune.images_at_end)),
            "rungs": [tune.num_rungs, tune.reduction_factor, tune.images_per_rung],
            "sampler": [tune.sampler == "nsga2", tune.rung_inference_steps],
            "drawing": [config.sampling.guidance_scale, config.sampling.scheduler],
            "judges": [tune.blip, tune.dino, tune.evaluators],
        }

    # Trials

    def _search(self, studies: Sequence[SubjectStudy], recorder: Recorder) -> None:
        from dreamfleet.tuning.search import TRIAL_MEMORY_BYTES, Slots, Sweep, fit
        from dreamfleet.tuning.trainables import alone_trainable, packed_trainable
        from dreamfleet.tuning.watching import COLUMNS, Watcher

        for study in studies:
            recorder.parent(study)
            recorder.settle(study)
        slots = Slots(self._slots_each, self._engines)
        with self.command.progress.board(COLUMNS) as board:
            watcher = Watcher(recorder, board, studies, lambda: (len(slots.taken), slots.total))
            sweep = Sweep(studies, slots, self._order, self._free, watcher)
            if self.packed:
                trainable: Any = packed_trainable
                bundle: dict[str, float] = {"memory": TRIAL_MEMORY_BYTES}
            else:
                from ray import tune as ray_tune

                trainable = ray_tune.with_parameters(alone_trainable, tasks=self._references)
                bundle = _bundle(self._resources)
            fit(sweep, trainable, bundle, str(self.command.output / TUNE_FILES))

    def _order(self, study: SubjectStudy, asked: Asked, job: str, engine: str) -> Order:
        from dreamfleet.tuning.engine import Sampling, Work
        from dreamfleet.tuning.trial import Order

        config, tune = study.config, study.tune
        last = study.steps[-1]
        work = Work(
            job, study.name, asked.params, config.train.seed, study.steps,
            self.command.trial_folder(study.name, asked.root),
            study.key_of(asked.params, config.train.seed),
        )  # fmt: skip
        sampling = config.sampling
        return Order(
            work,
            {
                step: tuple(
                    shots(config, tune.images_at_end if step == last else tune.images_per_rung)
                )
                for step in study.steps
            },  # fmt: skip
            Sampling(tune.rung_inference_steps, sampling.guidance_scale, sampling.scheduler),
            self._judges[engine],
            engine or None,
            self._device,
        )

    def _free(self, engine: str, job: str) -> None:
        if engine:
            import ray

            if ray.is_initialized():  # a final may outlive an interrupted command's Ray
                ray.get_actor(engine).release.remote(job)

    # After

    def _conclude(
        self, studies: Sequence[SubjectStudy], recorder: Recorder, preparation: Preparation
    ) -> None:
        from dreamfleet.tuning.champion import published_before
        from dreamfleet.tuning.finals import contenders

        alive: dict[str, list[Contender]] = {}
        for study in studies:
            request = next(own for own in self.command.requests if own.id == study.name)
            folder = self.command.folder(study.name)
            before = published_before(study, request, folder, self._ruler(study))
            if before is not None:
                self.command.results[study.name] = before
                recorder.parent(study).finish()
            elif study.host() is None:
                self.command._failed(
                    study.name,
                    f"the host (w_s = 0) could not be trained: {study.host_error()}; when that is "
                    "mended, --resume tries it again",
                )
                recorder.parent(study).finish("FAILED")
            else:
                alive[study.name] = contenders(study)
        finals = self._finals(studies, alive, recorder)
        for study in studies:
            if study.name in finals:
                self._publish(study, finals[study.name], recorder, preparation)

    def _finals(
        self,
        studies: Sequence[SubjectStudy],
        alive: Mapping[str, list[Contender]],
        recorder: Recorder,
    ) -> dict[str, Finals]:
        """How they ended; without subjects whose host was lost."""
        from dreamfleet.tuning.finals import final_seeds

        work = [
            (study, contender, seed)
            for study in studies
            for contender in alive.get(study.name, ())
            for seed in final_seeds(study.config)
        ]
        outcomes: dict[str, dict[tuple[int, int], Reading | str]] = {}
        for (study, contender, seed), outcome in zip(work, self._run_finals(work), strict=True):
            outcomes.setdefault(study.name, {})[contender.number, seed] = outcome
        self._note_times(FINALS)
        finals = {}
        for study in studies:
            if study.name not in alive:
                continue
            ended = self._decided(study, alive[study.name], outcomes[study.name])
            if ended is None:
                recorder.parent(study).finish("FAILED")
            else:
                finals[study.name] = ended
        return finals

    def _run_finals(
        self, work: Sequence[tuple[SubjectStudy, Contender, int]]
    ) -> list[Reading | str]:
        """What came of each."""
        from dreamfleet.tuning.finals import run_all

        tokens = self._tokens()
        with self.command.progress.stage("finals", len(work)) as stage:
            found: list[Reading | str] = run_all(
                work, lambda one: self._final_reading(tokens, *one), tokens.qsize(), stage.update
            )
        return found

    def _decided(
        self,
        study: SubjectStudy,
        those: Sequence[Contender],
        outcomes: Mapping[tuple[int, int], Reading | str],
    ) -> Finals | None:
        """A subject's finals without contenders whose training failed; None: the host's did."""
        from dreamfleet.tuning.finals import decided

        errors = {number: own for (number, _), own in outcomes.items() if isinstance(own, str)}
        for contender in those:
            reason = errors.get(contender.number)
            if reason is None:
                continue
            if contender.is_host:
                self.command._failed(study.name, f"the host failed in the finals: {reason}")
                return None
            self.command.progress.warn(
                f"{study.name}: trial {contender.number} is out of the finals: {reason}"
            )
        found = {key: own for key, own in outcomes.items() if not isinstance(own, str)}
        left = [own for own in those if own.number not in errors]
        return decided(found, left, study.tune.fidelity_margin)

    def _tokens(self) -> queue.SimpleQueue[str]:
        """A place on an engine each; without engines, a worker."""
        tokens: queue.SimpleQueue[str] = queue.SimpleQueue()
        for _ in range(self._slots_each):
            for engine in self._engines:
                tokens.put(engine)
        return tokens

    def _final_order(
        self, study: SubjectStudy, contender: Contender, seed: int, engine: str
    ) -> Order:
        from dreamfleet.tuning.finals import final_order

        return final_order(
            study.config,
            contender,
            seed,
            self.command.final_folder(study.name, contender.number, seed),
            subject=study.name,
            key=study.key_of(contender.params, seed, contender.steps, self._ruler(study)),
            judge=self._judges[engine],
            engine=engine or None,
            device=self._device,
        )

    def _final_reading(
        self, tokens: queue.SimpleQueue[str], study: SubjectStudy, contender: Contender, seed: int
    ) -> Reading | str:
        """One training of the finals; why it failed, where it did."""
        import ray

        from dreamfleet.tuning.finals import final_reading

        engine = tokens.get()
        order = self._final_order(study, contender, seed, engine)
        try:
            reading: Reading = self._carried_out(final_reading, order)
            return reading
        except (ray.exceptions.RayError, DreamfleetError, OSError) as error:
            return _reason(error)
        finally:
            self._free(engine, order.work.job_id)
            tokens.put(engine)

    def _carried_out(self, function: Callable[..., Any], order: Order, *arguments: Any) -> Any:
        """Here, where an engine does the work; else where a device is free."""
        if order.engine is not None:
            return function(order, *arguments)
        import ray

        task = self._references[order.work.subject]
        remote = ray.remote(max_retries=2, **self._resources)(function)
        return ray.get(remote.remote(order, *arguments, task))

    def _publish(
        self,
        study: SubjectStudy,
        finals: Finals,
        recorder: Recorder,
        preparation: Preparation,
    ) -> None:
        import ray

        from dreamfleet.tuning.champion import publish_champion
        from dreamfleet.tuning.finals import exported

        command = self.command
        request = next(own for own in command.requests if own.id == study.name)
        winner = finals.winner.contender
        seed = next(iter(finals.winner.readings))
        order = self._final_order(study, winner, seed, self._engines[0])
        order = replace(order, work=replace(order.work, job_id=f"{order.work.job_id}-export"))
        try:
            files = self._carried_out(exported, order, study.config)
            command.results[study.name] = publish_champion(
                study=study,
                finals=finals,
                seed=seed,
                exported=files,
                run=recorder.parent(study),
                request=request,
                preparation=preparation,
                files=command.files,
                folder=command.folder(study.name),
                sheets=lambda root: Folder(command.trial_folder(study.name, root)),
                ruler=self._ruler(study),
                tracking_uri=self.tracker.uri,
                progress=command.progress,
                output=command.output,
            )
        except (ray.exceptions.RayError, DreamfleetError, OSError) as error:
            if len(command.requests) == 1:
                raise
            command._failed(
                study.name, f"{_reason(error)}; its finals are kept, --resume publishes them"
            )
            recorder.parent(study).finish("FAILED")
            return
        finally:
            self._free(self._engines[0], order.work.job_id)
        command.storage.delete_folder(f"{FINALS}/{command.key}/{study.name}")

    def _ruler(self, study: SubjectStudy) -> str:
        """Of all that final scores depend on beside the adapter."""
        from dreamfleet.tuning.finals import final_shots

        config, task = study.config, self._tasks[study.name]
        parts = [
            task.base_hash, task.subject.content_key, plain(final_shots(config)),
            config.sampling.num_inference_steps, config.sampling.guidance_scale,
            config.sampling.scheduler, config.tune.blip, config.tune.dino, config.tune.evaluators,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def _note_times(self, part: str) -> None:
        """What the engines did since the part before."""
        import ray

        if not self.packed:
            return
        engines = [ray.get_actor(name) for name in self._engines]
        rows = ray.get([engine.times.remote() for engine in engines])
        known = self.command.engine_s
        for kind, total in (("training", "training_total_s"), ("drawing", "sampling_total_s")):
            before = sum(value for name, value in known.items() if name.endswith(kind))
            known[f"{part}.{kind}"] = sum(row[total] for row in rows) - before
        if part == SEARCH:
            known["search.span"] = max(row["first_to_last_step_s"] for row in rows)


def _reason(error: Exception) -> str:
    """In one line; Ray wraps what a task raised, and adds a long text."""
    return first_line(getattr(error, "cause", None) or error)


def _with_prior(request: SubjectRequest, sweep: RunConfig) -> SubjectRequest:
    """The request with a prior set, where any trial of `sweep` may need one."""
    config = request.config
    if not searches_prior(sweep):
        return request
    prior = config.prior.model_copy(update={"with_prior_preservation": True})
    return replace(request, config=config.model_copy(update={"prior": prior}))


def _judge_share(judges: JudgeSource, config: RunConfig, device: str) -> float:
    return config.tune.judge_num_gpus if device == "cuda" and not judges.spec.world else 0.0


def _check_gpus(workers: int, each: float, judge: float, session: RaySession) -> None:
    """Refuse workers that have no place, or leave judges none: they would be waited for without
    end. A cluster may grow, but not for judges alone.
    """
    wanted = workers * each + judge
    if (judge or session.local) and wanted > session.num_gpus + 1e-6:
        beside = f" and judges of {judge:g} (tune.judge_num_gpus)" if judge else ""
        raise ConfigError(
            f"{workers} workers of {each:g} GPU each (cluster.resources_per_worker){beside} take "
            f"{wanted:g} GPU, there are {session.num_gpus:g}; lower one of them, or --num-workers"
        )


def _bundle(resources: Mapping[str, Any]) -> dict[str, float]:
    """Ray's options of an actor as a placement group's bundle."""
    found = {"CPU": float(resources.get("num_cpus", 0)), "GPU": float(resources.get("num_gpus", 0))}
    found |= {name: float(value) for name, value in resources.get("resources", {}).items()}
    if kind := resources.get("accelerator_type"):
        found[f"accelerator_type:{kind}"] = 0.001  # as Ray does for actors
    return {name: value for name, value in found.items() if value}


def _check_placement(config: RunConfig) -> None:
    if config.tune.placement == "packed" and config.train.mode == "full":
        raise ConfigError(
            "train.mode = 'full' with tune.placement = 'packed': full fine-tuning changes the base "
            "itself and cannot share it; add --placement one_per_device"
        )
    if config.tune.placement == "packed":
        from dreamfleet.engine.packed_job import why_alone

        if reason := why_alone(config):
            raise ConfigError(f"{reason}; add --placement one_per_device")


def _warn_of_idle_settings(config: RunConfig, progress: Progress) -> None:
    """Say which of the settings given take no part in the search."""
    world, tune = config.base_model == EMBEDDED, config.tune
    judges = ("tune.blip", "tune.dino", "tune.judge_num_gpus")
    cases: list[IdleCase] = [
        (world, judges, "the embedded base has judges of its own"),
        (not world, ("tune.evaluators",), "real bases are judged by tune.blip and tune.dino"),
        (tune.sampler == "nsga2", ("tune.pruner",), "tune.sampler nsga2 prunes nothing"),
        (tune.placement != "packed", ("cluster.max_slots",), "trials share no engine"),
        (config.train.mode == "full", ("space.rank",), "train.mode is full: no LoRA is trained"),
    ]
    say_without_effect(cases, config, [RunConfig()], progress)


def _check_storage(config: RunConfig) -> None:
    """A database's URL is written into settings and records: no secret may be in it."""
    from dreamfleet.tracking.base import without_password

    given = config.tune.storage or ""
    shown = without_password(given)
    if shown != given:
        raise BadInputError(
            f"tune.storage = {shown} with a password: it would be written into "
            "settings and records; give it by the environment, e.g. PGPASSWORD, or ~/.pgpass"
        )


def _output_folder(config: RunConfig, requests: Sequence[SubjectRequest]) -> Path:
    default = f"runs/tune-{requests[0].id if len(requests) == 1 else 'fleet'}"
    place = config.output_dir or default
    if is_uri(place):
        raise BadInputError(
            f"output_dir = {place!r}: a study grows in a folder; give a local or shared one, and "
            "name a database by --storage where several hosts look on"
        )
    return Path(place).expanduser().absolute()


def _check_output(output: Path, resume: bool, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise BadInputError(f"output folder {output}: a file of that name is in the way")
    used = output.is_dir() and any(path.name != ".lock" for path in output.iterdir())
    if not used:
        return
    if not (output / MARKER).is_file():
        raise BadInputError(
            f"output folder {output}: holds other files than those of a sweep; give another "
            "--output-dir"
        )
    if not resume and not overwrite:
        raise BadInputError(
            f"output folder {output}: not empty; add --resume to go on, --overwrite to begin "
            "again, or give another --output-dir"
        )


def _keys_in(marker: Path) -> list[str]:
    """The sweep's key, then those of sweeps that it has overwritten."""
    if not marker.is_file():
        return []
    about = json.loads(marker.read_text(encoding="utf-8"))
    return [str(about["key"]), *about.get("former", ())]


def _clear(output: Path) -> None:
    """Delete what a sweep writes, and nothing else."""
    for name in WRITTEN:
        target = output / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    for place in output.iterdir():  # subjects of a sweep over several
        if place.is_dir() and (place / CHAMPION).is_dir():
            shutil.rmtree(place)
