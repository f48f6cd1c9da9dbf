"""Everything that can be refused without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from dreamfleet.config import RunConfig
from dreamfleet.data.subjects import SubjectRequest, fill_prompt, requested_subjects
from dreamfleet.errors import BadInputError
from dreamfleet.runtime.progress import Progress
from dreamfleet.runtime.storage import Folder

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles

IdleCase = tuple[bool, Sequence[str], str]  # whether, which settings, why


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise BadInputError for two flags that exclude each other."""
    if resume and overwrite:
        raise BadInputError(
            "--resume and --overwrite: one goes on, the other begins again; give one of them"
        )


def complete_requests(
    config: RunConfig, requests: Sequence[SubjectRequest] | None = None
) -> tuple[list[SubjectRequest], BaseFiles, RunConfig]:
    """Subjects with complete configurations, the base's files, and what the subjects have in
    common. `requests`: what `requested_subjects` gave, where it was asked already.
    """
    requests = requested_subjects(config) if requests is None else requests
    _check_class_data(config)
    from dreamfleet.bases import inspect_base, resolved_config
    from dreamfleet.runtime.devices import check_local_device

    check_local_device(config)
    _check_tracking(config)

    pinned = _pinned_base(config)
    files = inspect_base(str(pinned["base_model"]))
    own = [
        replace(request, config=resolved_config(request.config.model_copy(update=pinned), files))
        for request in requests
    ]
    common = resolved_config(config.model_copy(update=pinned), files)
    return own, files, common


def _check_tracking(config: RunConfig) -> None:
    from dreamfleet.tracking.base import check_uri, without_password

    if not config.tracking.enabled:
        return
    check_uri(config.tracking.uri)
    given = config.tracking.uri or ""
    if without_password(given) != given:
        raise BadInputError(
            f"tracking.uri = {without_password(given)!r} with a password: it would be written "
            "beside the adapter and into its run; set MLFLOW_TRACKING_URI to the whole address "
            "instead, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def _check_class_data(config: RunConfig) -> None:
    if config.prior.with_prior_preservation and config.prior.class_data_dir:
        from dreamfleet.data.prior_set import find_class_pictures

        find_class_pictures(config)


def with_pinned_base(config: RunConfig) -> RunConfig:
    """`config` with base model, revision and variant in one name that any process can load."""
    return config.model_copy(update=_pinned_base(config))


def _pinned_base(config: RunConfig) -> dict[str, str | None]:
    """A local folder by its absolute path: workers have other working directories."""
    name, folder = config.base_model, Path(config.base_model).expanduser()
    if name != "embedded" and folder.is_dir():
        name = str(folder.absolute())
    source = config.model_copy(update={"base_model": name}).base_source
    return {"base_model": source, "revision": None, "variant": None}


def output_root(config: RunConfig, requests: Sequence[SubjectRequest]) -> Folder:
    """Where the results of all subjects go."""
    default = f"runs/{requests[0].id if len(requests) == 1 else 'fleet'}"
    return Folder(config.output_dir or default)


def shares_one_subject(config: RunConfig, num_subjects: int) -> bool:
    """Whether all workers train one subject (Ray Train), rather than engines many."""
    parallel = config.cluster.parallel
    return parallel == "data" or (parallel == "auto" and num_subjects == 1)


def warn_of_idle_settings(
    config: RunConfig, files: BaseFiles, progress: Progress, *, engines: bool = True
) -> None:
    """Say which of the settings given take no part in what is trained.

    Args:
        engines: whether engines train, rather than Ray Train's workers.
        config: as it was given. Where it is what an earlier run has written, the base's own values
            are filled in, and count as not given.
    """
    from dreamfleet.bases import resolved_config

    train, prior, sude = config.train, config.prior, config.sude
    lora = ("train.rank", "train.lora_alpha", "train.lora_layers")
    images = (
        "prior.num_class_images", "prior.class_data_dir", "prior.num_inference_steps",
        "prior.guidance_scale", "prior.sample_batch_size",
    )  # fmt: skip
    push = ("sude.preset", "sude.teacher", "sude.weighting", "sude.truncation_point")
    has_prior = prior.with_prior_preservation
    cases: list[IdleCase] = [
        (train.mode == "full", lora, "train.mode is full: no LoRA is trained"),
        (
            train.lr_scheduler == "constant",
            ("train.lr_warmup_steps",),
            "train.lr_scheduler is constant; constant_with_warmup has one",
        ),
        (not train.use_ema, ("train.ema_decay",), "train.use_ema is off"),
        (
            not has_prior,
            ("prior.form", "prior.weight", *images),
            "prior.with_prior_preservation is off",
        ),
        (
            has_prior and prior.form == "teacher",
            images,
            "prior.form is teacher: no prior set is drawn",
        ),
        (sude.weight == 0, push, "sude.weight is 0"),
        (
            not engines,
            ("data.teacher_cache_gib",),
            "sweeps and runs of many subjects keep predictions",
        ),
    ]
    usual = (RunConfig(), resolved_config(RunConfig(), files))
    say_without_effect(cases, config, usual, progress)


def say_without_effect(
    cases: Sequence[IdleCase], config: RunConfig, usual: Sequence[RunConfig], progress: Progress
) -> None:
    """Name the settings of `cases` that take no part and differ from all `usual` ones."""
    for is_idle, names, reason in cases:
        given = []
        for name in names if is_idle else ():
            value = attrgetter(name)
            if value(config) not in [value(other) for other in usual]:
                given.append(name)
        if given:
            progress.warn(f"without effect: {', '.join(given)} ({reason})")


def warn_of_prompts(
    requests: Sequence[SubjectRequest], files: BaseFiles, progress: Progress
) -> None:
    from dreamfleet.data.tokens import prompt_warnings, token_warnings

    tokenizer = files.tokenizer()
    said: set[str] = set()
    for request in requests:
        subject = request.config.subject
        captions = (
            [photo.caption for photo in request.found.photos if photo.caption]
            if request.found
            else []
        )
        prompts = [request.prompt, fill_prompt(subject.class_prompt, request.config)]
        prompts += [fill_prompt(caption, request.config) for caption in captions]
        warnings = token_warnings(tokenizer, subject.token, subject.class_word)
        for warning in [*warnings, *prompt_warnings(tokenizer, prompts)]:
            if warning not in said:
                said.add(warning)
                progress.warn(warning)
