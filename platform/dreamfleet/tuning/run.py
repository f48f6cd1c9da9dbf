"""A sweep with its Ray: actors, studies, trials, finals, champions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import queue
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
from ray import tune as ray_tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet.config import RunConfig
from dreamfleet.data.cache import open_cache
from dreamfleet.data.preparation import Preparation
from dreamfleet.data.subjects import SubjectRequest
from dreamfleet.errors import ConfigError, DreamfleetError, first_line
from dreamfleet.evaluation.references import reference_photos
from dreamfleet.runtime import room
from dreamfleet.runtime.devices import choose_device
from dreamfleet.runtime.engine_actor import EngineSource, start_engine
from dreamfleet.runtime.room import bundle, waiting_text
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.fingerprint import run_fingerprint
from dreamfleet.training.fleet import engine_count, engine_resources, engine_settings
from dreamfleet.training.task import SamplePlan, TrainTask
from dreamfleet.tuning.champion import publish_champion, published_before
from dreamfleet.tuning.command import CHAMPION, FINALS, TUNE_FILES
from dreamfleet.tuning.engine import Sampling, TuneEngine, Work
from dreamfleet.tuning.finals import (
    Contender,
    Finals,
    contenders,
    decided,
    exported,
    final_order,
    final_reading,
    final_seeds,
    final_shots,
    run_all,
)
from dreamfleet.tuning.judge import JudgeActor, JudgeSource, Reference
from dreamfleet.tuning.pictures import plain, shots
from dreamfleet.tuning.search import TRIAL_MEMORY_BYTES, Slots, Sweep, fit
from dreamfleet.tuning.space import dimensions, endless, searches_prior
from dreamfleet.tuning.study import Asked, Owner, SubjectStudy, delete_study, open_storage
from dreamfleet.tuning.trainables import alone_trainable, packed_trainable
from dreamfleet.tuning.trial import Order, Reading
from dreamfleet.tuning.watching import COLUMNS, Recorder, Watcher

if TYPE_CHECKING:
    from dreamfleet.runtime.session import RaySession
    from dreamfleet.tracking import Tracker
    from dreamfleet.tuning.command import Command

SEARCH = "search"  # part of the work, with the finals and the champion


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
            command.subject_failed(identity, reason, is_said=True)
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
        source = EngineSource.of(config, device, for_scores=True)
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
        nodes = [str(node) for node in self._answers([own.node.remote() for own in engines])]
        each = float(self._resources.get("num_gpus", 0))
        _check_gpus(len(engines), each, share * len(set(nodes)), self.session)
        names = {
            node: self._start_judge(judges, f"judge-{tag}-{number}", share, node)
            for number, node in enumerate(dict.fromkeys(nodes))
        }
        return {engine: names[node] for engine, node in zip(self._engines, nodes, strict=True)}

    def _answers(self, calls: Sequence[Any]) -> list[Any]:
        """Of engines just started; where a cluster has no room for them, the waiting is said."""
        _, late = ray.wait(list(calls), num_returns=len(calls), timeout=room.TELL_AFTER_S)
        if late:
            each = bundle(self._resources)
            self.command.progress.warn(waiting_text(len(late), len(calls), "engines", each))
        answers: list[Any] = ray.get(list(calls))
        return answers

    def _start_judge(
        self, judges: JudgeSource, name: str, num_gpus: float, node: str | None
    ) -> str:
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
            "weights of the judges": self._judges_key,
        }

    @functools.cached_property
    def _judges_key(self) -> str:
        """Of the judges and those weights of theirs that lie here, which may be large: hashed once,
        and not loaded.
        """
        return JudgeSource.of(self.config, {}, "cpu").spec.fingerprint()

    # Trials

    def _search(self, studies: Sequence[SubjectStudy], recorder: Recorder) -> None:
        for study in studies:
            recorder.parent(study)
            recorder.settle(study)
        slots = Slots(self._slots_each, self._engines)
        with self.command.progress.board(COLUMNS) as board:
            watcher = Watcher(recorder, board, studies, lambda: (len(slots.taken), slots.total))
            sweep = Sweep(studies, slots, self._order, self._free, watcher)
            if self.packed:
                trainable: Any = packed_trainable
                each: dict[str, float] = {"memory": TRIAL_MEMORY_BYTES}
            else:
                trainable = ray_tune.with_parameters(alone_trainable, tasks=self._references)
                each = bundle(self._resources)
            fit(sweep, trainable, each, str(self.command.output / TUNE_FILES))

    def _order(self, study: SubjectStudy, asked: Asked, job: str, engine: str) -> Order:
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
        if engine and ray.is_initialized():  # a final may outlive an interrupted command's Ray
            ray.get_actor(engine).release.remote(job)

    # After

    def _conclude(
        self, studies: Sequence[SubjectStudy], recorder: Recorder, preparation: Preparation
    ) -> None:
        alive: dict[str, list[Contender]] = {}
        for study in studies:
            request = next(own for own in self.command.requests if own.id == study.name)
            folder = self.command.folder(study.name)
            before = published_before(study, request, folder, self._ruler(study))
            if before is not None:
                self.command.results[study.name] = before
                recorder.parent(study).finish()
            elif study.host() is None:
                self.command.subject_failed(
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
        errors = {number: own for (number, _), own in outcomes.items() if isinstance(own, str)}
        for contender in those:
            reason = errors.get(contender.number)
            if reason is None:
                continue
            if contender.is_host:
                self.command.subject_failed(study.name, f"the host failed in the finals: {reason}")
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
            command.subject_failed(
                study.name, f"{_reason(error)}; its finals are kept, --resume publishes them"
            )
            recorder.parent(study).finish("FAILED")
            return
        finally:
            self._free(self._engines[0], order.work.job_id)
        command.storage.delete_folder(f"{FINALS}/{command.key}/{study.name}")

    def _ruler(self, study: SubjectStudy) -> str:
        """Of all that final scores depend on beside the adapter."""
        config, task = study.config, self._tasks[study.name]
        parts = [
            task.base_hash, task.subject.content_key, plain(final_shots(config)),
            config.sampling.num_inference_steps, config.sampling.guidance_scale,
            config.sampling.scheduler, self._judges_key,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]

    def _note_times(self, part: str) -> None:
        """What the engines did since the part before."""
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
