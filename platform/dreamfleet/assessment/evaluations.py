"""One adapter against its own subject set, by a protocol that fits any adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.assessment.common import (
    EMBEDDED,
    WORLD_ONLY,
    Assessment,
    AssessmentResult,
    JudgeNames,
    adapter_arm,
    checkpoints_of,
    local_output,
    mean_history,
    units_of,
)
from dreamfleet.config import RunConfig, load_config
from dreamfleet.errors import AdapterFileError, BadInputError, SubjectSetError
from dreamfleet.evaluation.cards import ADAPTER_JSON, read_adapter_json
from dreamfleet.evaluation.drawing import Arm
from dreamfleet.evaluation.protocols import Ask, asks_for, images_per_prompt, prompts_hash
from dreamfleet.evaluation.references import reference_photos
from dreamfleet.evaluation.scores import summarise_scores
from dreamfleet.personalization.command import sigterm_as_interrupt
from dreamfleet.personalization.planning import with_pinned_base
from dreamfleet.runtime.locks import exclusive_run
from dreamfleet.runtime.progress import Progress, SilentProgress
from dreamfleet.runtime.storage import is_uri

if TYPE_CHECKING:
    from dreamfleet.bases import BaseFiles

DRAWN_ONLY = (
    "The embedded base knows a small drawn world; nothing here says anything about photographs."
)
LEADS = {
    "dreambench": "DreamBench’s 25 prompts (arXiv 2208.12242): other places, outfits, looks.",
    "attributes": "Five states or materials of the class, which the photos need not show.",
    "applications": "DreamBooth’s applications: elsewhere, other views, styles, materials, "
    "crossings.",
}


def evaluate(
    adapter: str | Path,
    protocol: str,
    overrides: Mapping[str, Any],
    *,
    num_images: int | None = None,
    judges: JudgeNames | None = None,
    progress: Progress | None = None,
) -> AssessmentResult:
    """Score an adapter and the bare base on the protocol's prompts, from the same noise.

    Args:
        adapter: output folder of `personalize`; or a LoRA file, with class word and photos given.
        protocol: attributes, dreambench or applications.
        overrides: configuration by dotted key over the adapter's own, `output_dir` among it.
        num_images: pictures per prompt; default: the protocol's.
        judges: checkpoints; default: those of the published metrics.
        progress: where bars and lines go; default: nowhere.

    Raises:
        BadInputError: adapter, photos or protocol cannot be used.
    """
    say = progress or SilentProgress()
    if is_uri(str(adapter)):
        raise AdapterFileError(
            f"adapter {adapter}: a folder on this machine, or a shared one, is evaluated; copy the "
            "adapter there (its checkpoints are not needed)"
        )
    place = Path(adapter).expanduser()
    config, files, steps = _complete(place, protocol, overrides)
    names = judges or JudgeNames()
    asks = [
        *asks_for(protocol, config.subject.class_word, world=config.base_model == EMBEDDED),
        Ask(config.subject.class_prompt, "class"),
    ]
    subject_id = config.subject.id or _name_of(place)
    output = local_output(config)
    arm = adapter_arm(place, "adapter", steps, config.train.seed)
    count = num_images or images_per_prompt(protocol)
    assessment = Assessment(
        config=config,
        files=files,
        output_dir=output,
        judges=names.spec(config.base_model),
        references={subject_id: _photos(config)},
        name=f"evaluate {subject_id} {protocol}",
        kind="evaluate",
        heading=subject_id,
        kicker=protocol,
        lead=LEADS[protocol],
        warnings=(WORLD_ONLY,) if _unknown_to_world(config, protocol) else (),
        notes=(
            "References are all photos that the adapter was made from.",
            *((DRAWN_ONLY,) if config.base_model == EMBEDDED else ()),
        ),
        facts={"adapter": str(place), "prompts": prompts_hash(protocol)[:16],
               "pictures per prompt": str(count)},
        history=mean_history([checkpoints_of(place, config, subject_id)]),
    )  # fmt: skip
    from dreamfleet.runtime.session import ray_session

    output.mkdir(parents=True, exist_ok=True)
    with (
        sigterm_as_interrupt(),
        exclusive_run(output),
        ray_session(config.cluster, dashboard=False) as session,
    ):
        units = [
            unit
            for one in (Arm(), arm)
            for unit in units_of(one, asks, config, subject_id, count, [protocol])
        ]
        drawn = assessment.draw(units, session, say)
        return assessment.publish(drawn, summarise_scores(drawn.rows), say)


def _complete(
    place: Path, protocol: str, overrides: Mapping[str, Any]
) -> tuple[RunConfig, BaseFiles, int]:
    """The adapter's configuration without gaps, its base, and its training steps."""
    from dreamfleet.bases import inspect_base, resolved_config

    if not place.exists():
        raise AdapterFileError(
            f"adapter {place}: does not exist; give the output folder of `dreamfleet personalize`"
        )
    beside = place if place.is_dir() else place.parent
    recipe = beside / "config.yaml"
    config = with_pinned_base(load_config(recipe if recipe.is_file() else None, overrides))
    if not config.subject.class_word or not config.subject.images:
        raise BadInputError(
            f"adapter {place}: no config.yaml beside it that says whom it shows; give --class-word "
            "and --images (the photos)"
        )
    if "output_dir" not in overrides:
        config.output_dir = f"runs/{_name_of(beside)}-{protocol}"
    files = inspect_base(config.base_model)
    info = read_adapter_json(beside) if (beside / ADAPTER_JSON).is_file() else None
    return resolved_config(config, files), files, info.steps if info else 0


def _name_of(place: Path) -> str:
    """A folder's name, `.` included, or a file's without its ending."""
    whole = Path(os.path.abspath(place))
    return whole.name if place.is_dir() else whole.stem


def _photos(config: RunConfig) -> tuple[bytes, ...]:
    """What the adapter was made from."""
    try:
        return reference_photos(config.subject.images, config.data)
    except SubjectSetError as error:
        raise SubjectSetError(f"{error}; --images says where they are now") from error


def _unknown_to_world(config: RunConfig, protocol: str) -> bool:
    """A class or prompts of photographs on the embedded base."""
    from dreamfleet.world import CLASSES

    known = config.subject.class_word.strip().lower() in CLASSES
    return config.base_model == EMBEDDED and (not known or protocol == "dreambench")
