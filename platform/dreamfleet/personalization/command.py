"""One `personalize` call, from its plan to its results."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig, dreamfleet_home, dump_config
from dreamfleet.data.cache import open_cache
from dreamfleet.data.preparation import Preparation
from dreamfleet.data.subjects import SubjectRequest, requested_subjects
from dreamfleet.personalization.finishing import Finisher
from dreamfleet.personalization.planning import (
    check_resume,
    complete_requests,
    output_root,
    shares_one_subject,
    warn_of_idle_settings,
    warn_of_prompts,
)
from dreamfleet.personalization.results import (
    PersonalizeResult,
    PreparedSubjects,
    Status,
    SubjectResult,
)
from dreamfleet.runtime.jobs import check_job_places
from dreamfleet.runtime.locks import exclusive_run
from dreamfleet.runtime.progress import Progress, SilentProgress
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.output import CONFIG, OutputFolder, working_path
from dreamfleet.training.sample_prompts import sample_prompts
from dreamfleet.training.task import SamplePlan, TrainTask
from dreamfleet.training.worker import earlier_outcome

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.runtime.session import RaySession
    from dreamfleet.tracking import Tracker

PREVIEW_IMAGES = 2


def personalize(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PersonalizeResult:
    """Train an adapter for each subject that `config` names.

    Args:
        config: the whole recipe; None values are filled with the base model's own.
        resume: go on with the runs in the output folder (one that is not there yet is begun).
        overwrite: begin again in a used output folder of an earlier run.
        progress: where bars and lines go; default: nowhere.

    Returns:
        One result per subject. With several subjects one that fails is a result; with one subject
        it is raised.

    Raises:
        BadInputError: something given cannot be used; named, before Ray starts where possible.
        TrainingError: the only subject's training ended without an adapter.
        KeyboardInterrupt: interrupted; checkpoints are written, `resume` goes on.
    """
    started = time.monotonic()
    run = Command.planned(
        config, resume=resume, overwrite=overwrite, progress=progress or SilentProgress()
    )
    with sigterm_as_interrupt(), exclusive_run(working_path(run.output)):
        results = run.execute()
    return PersonalizeResult(results, time.monotonic() - started)


def prepare_subjects(config: RunConfig, *, progress: Progress | None = None) -> PreparedSubjects:
    """Validate, crop, encode and cache photos (and the prior set, if asked for) without training.

    With `config.output_dir` the training squares are written there, below each subject's id.

    Raises:
        BadInputError: as `personalize`.
    """
    from dreamfleet.runtime.session import ray_session

    say = progress or SilentProgress()
    check_job_places(config, writes_output=False)
    requests, files, resolved = complete_requests(config)
    with ray_session(resolved.cluster, dashboard=False) as session:
        preparation = _preparation(files, resolved, session, say)
        preparation.prepare_photos(requests)
        usable = preparation.check_subjects(requests, announce=False)
        usable = preparation.prepare_priors(usable)
        subjects = [preparation.subject_set(request) for request in usable]
        preparation.cache.prune()
    if config.output_dir:
        for subject in subjects:
            subject.write_pictures(Folder(config.output_dir).child(subject.id))
    return PreparedSubjects(subjects, preparation.failures)


def _preparation(
    files: BaseFiles, resolved: RunConfig, session: RaySession | None, progress: Progress
) -> Preparation:
    from dreamfleet.runtime.devices import choose_device

    return Preparation(
        base=files,
        base_model=resolved.base_model,
        config=resolved,
        cache=open_cache(resolved.data.cache_path, resolved.data.cache_max_gib),
        device=choose_device(resolved, session, progress),
        session=session,
        progress=progress,
    )


@dataclass
class Command:
    """One `personalize` call."""

    requests: list[SubjectRequest]
    files: BaseFiles
    config: RunConfig
    output: Folder
    folders: dict[str, OutputFolder]
    resume: bool
    overwrite: bool
    progress: Progress

    @classmethod
    def planned(
        cls, config: RunConfig, *, resume: bool, overwrite: bool, progress: Progress
    ) -> Command:
        """Check all that can be checked without Ray; nothing is written.

        Raises:
            BadInputError: naming what cannot be used.
        """
        check_resume(resume, overwrite)
        check_job_places(config)
        requested = requested_subjects(config)
        output = output_root(config, requested)
        alone = len(requested) == 1
        folders = {
            request.id: OutputFolder.of(
                output if alone else output.child(request.id),
                config.cluster.storage_path,
                request.id,
            )
            for request in requested
        }
        for folder in folders.values():
            folder.check(resume=resume, overwrite=overwrite)
        # After the folders: it imports torch, and a used folder should not take that long to say.
        requests, files, resolved = complete_requests(config, requested)
        engines = not shares_one_subject(resolved, len(requests))
        warn_of_idle_settings(config, files, progress, engines=engines)
        warn_of_prompts(requests, files, progress)
        return cls(requests, files, resolved, output, folders, resume, overwrite, progress)

    def execute(self) -> list[SubjectResult]:
        from dreamfleet.runtime.session import ray_address, ray_session

        fresh = [folder for folder in self.folders.values() if not folder.is_used()]
        with (
            ThreadPoolExecutor(1, thread_name_prefix="tracker") as pool,
            contextlib.ExitStack() as opened,
        ):
            tracker = pool.submit(self._tracker)  # a new MLflow database takes seconds, as Ray does
            address = ray_address(self.config.cluster)
            self.progress.info(f"joining Ray at {address}" if address else "starting Ray")
            try:
                for request in self.requests:
                    if request.found is not None:
                        self._mark(request)
                session = opened.enter_context(ray_session(self.config.cluster))
                preparation, usable = self._prepare(session)
            except BaseException:
                for folder in fresh:
                    folder.withdraw()
                tracker.result().close()
                raise
            for request in usable:
                self._begin(request)
            return self._train_and_finish(preparation, usable, tracker.result())

    def _prepare(self, session: RaySession) -> tuple[Preparation, list[SubjectRequest]]:
        preparation = _preparation(self.files, self.config, session, self.progress)
        preparation.prepare_photos(self.requests)
        usable = preparation.prepare_priors(preparation.check_subjects(self.requests))
        return preparation, usable

    def _train_and_finish(
        self, preparation: Preparation, usable: list[SubjectRequest], tracker: Tracker
    ) -> list[SubjectResult]:
        finisher = Finisher(self, preparation, tracker)
        try:
            self._train(usable, preparation, finisher)
        except BaseException:
            finisher.abandon()
            raise
        finally:
            finisher.close()
        preparation.cache.prune()
        for identity, reason in preparation.failures.items():
            finisher.results[identity] = self.result(identity, "failed", message=reason)
        results = [finisher.results[request.id] for request in self.requests]
        if len(results) > 1:
            self._summarise(results)
        return results

    def _train(
        self,
        requests: Sequence[SubjectRequest],
        preparation: Preparation,
        finisher: Finisher,
    ) -> None:
        session, num_workers = preparation.session, self.config.cluster.num_workers
        assert session is not None  # training workers live in Ray
        if shares_one_subject(self.config, len(self.requests)):
            on_gpus = preparation.device == "cuda"
            there, kind = (session.num_gpus, "GPUs") if on_gpus else (session.num_cpus, "CPUs")
            if not session.local and there < num_workers:
                self.progress.warn(
                    f"the cluster has {there:g} {kind} now, and num_workers is {num_workers}: "
                    "training waits until there are more"
                )
            for request in requests:
                self._train_with_ray(request, preparation, session, finisher)
            return
        from dreamfleet.training.fleet import FleetJob, train_fleet

        jobs = [FleetJob(request.id, _builder(self, request, preparation)) for request in requests]
        with finisher.watching(requests) as on_event:
            summary = train_fleet(
                jobs,
                self.config,
                session,
                preparation.device,
                on_event,
                finisher.finish,
                self.progress.warn,
            )
        self.progress.info(summary.text())

    def _train_with_ray(
        self,
        request: SubjectRequest,
        preparation: Preparation,
        session: RaySession,
        finisher: Finisher,
    ) -> None:
        """One subject on all workers; among several subjects its failure is a result."""
        from dreamfleet.training.fleet import failed
        from dreamfleet.training.ray_train import train_with_ray

        try:
            task = self.task(request, preparation)
            outcome = earlier_outcome(task, self.config.cluster.num_workers)
            if outcome is None:
                with finisher.watching([request]) as on_event:
                    outcome = train_with_ray(task, session, on_event, self.progress.warn)
        except Exception as error:
            if len(self.requests) == 1:
                raise
            outcome = failed(request.id, error)
        finisher.finish(outcome)

    def task(self, request: SubjectRequest, preparation: Preparation) -> TrainTask:
        """All that a worker needs to train one subject."""
        config = request.config
        images = config.sampling.num_validation_images
        prompts = tuple(sample_prompts(config))
        return TrainTask(
            config=config,
            subject=preparation.subject_set(request),
            prior=preparation.prior_set(request),
            base_hash=self.files.hash,
            checkpoints=self.folders[request.id].checkpoints.location,
            device=preparation.device,
            final_samples=SamplePlan(prompts, images, config.train.seed),
            preview_samples=SamplePlan(
                prompts[:2], min(PREVIEW_IMAGES, max(images, 1)), config.train.seed
            ),
        )

    def request(self, identity: str) -> SubjectRequest:
        return next(request for request in self.requests if request.id == identity)

    def result(self, identity: str, status: Status, **values: Any) -> SubjectResult:
        request = self.request(identity)
        return SubjectResult(
            identity,
            request.display_name,
            status,
            output_dir=self.folders[identity].path,
            location=self.folders[identity].place.location if self.folders[identity].remote else "",
            **values,
        )

    def _mark(self, request: SubjectRequest) -> None:
        """Take the folder; what an earlier run left in it stays until this one can train."""
        folder = self.folders[request.id]
        if self.resume and not folder.is_used():
            self.progress.info(f"{folder.place.location}: nothing to go on from; beginning")
        folder.begin(overwrite=False, info={**folder.info(), "subject": request.id})

    def _begin(self, request: SubjectRequest) -> None:
        """Of a run that goes on the settings stay until its adapter is out: others than it began
        with may yet be refused, and those are what its user is told to go on with.
        """
        folder = self.folders[request.id]
        if self.overwrite:
            folder.begin(overwrite=True, info={"subject": request.id})
        if not folder.place.exists(CONFIG):
            folder.write_text(CONFIG, dump_config(folder.complete(request.config)))

    def _tracker(self) -> Tracker:
        from dreamfleet.tracking import open_tracker

        return open_tracker(self.config.tracking, dreamfleet_home() / "spool", self.progress.warn)

    def _summarise(self, results: Sequence[SubjectResult]) -> None:
        for result in results:
            state = result.status if not result.message else f"{result.status}: {result.message}"
            self.progress.info(f"{result.display_name:<24} {state}  {result.file()}")


def _builder(
    command: Command, request: SubjectRequest, preparation: Preparation
) -> Callable[[], TrainTask]:
    return lambda: command.task(request, preparation)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill (a stopped job, a drained pod) ends like Ctrl-C: with checkpoints."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
