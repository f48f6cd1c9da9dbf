"""Subject sets and prior sets of a whole command, on one Ray: each prepared once, kept in the
cache.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreamfleet.config import RunConfig
from dreamfleet.data.cache import Cache
from dreamfleet.data.prior_set import (
    PriorRequest,
    PriorSet,
    generated_prior_set,
    kept_prior_set,
    own_prior_set,
    prior_request,
)
from dreamfleet.data.subject_set import PhotoSettings, PhotoStore, SubjectSet
from dreamfleet.data.subjects import SubjectRequest, fill_prompt
from dreamfleet.errors import DreamfleetError, SubjectSetError

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles
    from dreamfleet.runtime.progress import Progress
    from dreamfleet.runtime.session import RaySession


@dataclass
class Preparation:
    """Prepares what the subjects of one command need.

    `session` None runs everything in this process (tests, small tools).
    """

    base: BaseFiles
    base_model: str  # a name or absolute path that any worker can load
    config: RunConfig  # what the subjects have in common, with the base's defaults filled in
    cache: Cache
    device: str
    session: RaySession | None
    progress: Progress
    failures: dict[str, str] = field(default_factory=dict)  # subject id -> why it cannot be trained
    timings: dict[str, float] = field(default_factory=dict)  # stage -> seconds

    def __post_init__(self) -> None:
        # Neighbours in a list often share their class.
        self._last_prior: tuple[str, PriorSet] | None = None
        self._all_made = False
        data = self.config.data
        self._store = PhotoStore(
            self.cache,
            PhotoSettings(
                resolution=data.resolution or self.base.resolution,
                crop=data.crop,
                max_pixels=data.max_pixels,
                base_model=self.base_model,
                vae_hash=self.base.vae_hash,
                device=self.device,
            ),
        )

    def prepare_photos(self, requests: Sequence[SubjectRequest]) -> None:
        """Validate and encode all photos of all subjects in one Ray Data run."""
        places = [request.found for request in requests if request.found is not None]
        with self._timed("photos"):
            self._store.prepare(places, self.session, self.progress)

    def subject_set(self, request: SubjectRequest) -> SubjectSet:
        """The subject set of one request; SubjectSetError when none of its photos can be used."""
        return self._store.assemble(request)

    def check_subjects(
        self, requests: Sequence[SubjectRequest], *, announce: bool = True
    ) -> list[SubjectRequest]:
        """Say what was found of each subject (with `announce`); returns those that can be trained.

        Raises:
            SubjectSetError: of one subject, or when none of several can be used.
        """
        usable = []
        for request in requests:
            try:
                subject = self.subject_set(request)
            except SubjectSetError as error:
                if len(requests) == 1:
                    raise
                self._fail(request, error)
                continue
            usable.append(request)
            for line in subject.summary() if announce else ():
                self.progress.info(line)
            for warning in subject.warnings:
                self.progress.warn(warning)
        if not usable:
            raise SubjectSetError("none of the subjects can be used, see above")
        return usable

    def prior_set(self, request: SubjectRequest) -> PriorSet | None:
        """The prior set that the request's own settings ask for, made now if it does not exist.

        Raises:
            SubjectSetError: it cannot be made; or it was, and has gone from the cache since
                `prepare_priors`: training has the room now that making it would wait for.
        """
        own = request.config
        if not own.prior.with_prior_preservation or own.prior.form != "images":
            return None
        wanted = None if own.prior.class_data_dir else self._prior_request(own)
        key = wanted.key if wanted else _own_key(own)
        if self._last_prior is None or self._last_prior[0] != key:
            if wanted is None:
                found = own_prior_set(own, self._store, self.session, self.progress)
            elif self._all_made:
                found = kept_prior_set(wanted, self.cache)
            else:
                found = generated_prior_set(wanted, self.cache, self.session, self.progress)
            self._last_prior = key, found
        return self._last_prior[1]

    def prior_key(self, request: SubjectRequest) -> str:
        """Of that prior set, which is not made for it; empty where none is asked for."""
        own = request.config
        if own.prior.with_prior_preservation and own.prior.form == "images":
            if not own.prior.class_data_dir:
                return self._prior_request(own).key
        found = self.prior_set(request)
        return found.key if found else ""

    def _prior_request(self, config: RunConfig) -> PriorRequest:
        resolution = config.data.resolution or self.base.resolution
        return prior_request(config, self.base_model, self.base.hash, resolution, self.device)

    def prepare_priors(self, requests: Sequence[SubjectRequest]) -> list[SubjectRequest]:
        """Make every prior set that is asked for; returns the requests whose prior set exists."""
        usable = []
        for request in requests:
            try:
                with self._timed("prior set"):
                    self.prior_set(request)
                usable.append(request)
            except DreamfleetError as error:
                if len(requests) == 1:
                    raise
                self._fail(request, error)
        self._all_made = True
        return usable

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        spent = time.monotonic() - started
        if spent > 0.5:  # less: nothing was made
            self.timings[stage] = self.timings.get(stage, 0.0) + spent

    def _fail(self, request: SubjectRequest, error: DreamfleetError) -> None:
        self.failures[request.id] = str(error)
        self.progress.warn(f"{request.display_name}: {error}")


def _own_key(config: RunConfig) -> str:
    """What decides a set of the user's own class pictures; their captions may name the subject."""
    prior, words = config.prior, "{token} {class} " + config.subject.class_prompt
    return f"{prior.class_data_dir} {prior.num_class_images} {fill_prompt(words, config)}"
