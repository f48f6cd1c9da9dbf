"""`dreamfleet.personalize`: from a folder of photos to a measured, recorded adapter.

    validate (no Ray) → subject sets (Ray Data) → prior sets (Ray Data) → training (Ray Train, or a fleet of engines)
    → OUT → report, model card, MLflow

Everything that can be refused is refused before Ray starts. Everything after the training is repeated by `--resume`
when it was cut short; nothing finished is lost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamfleet.config import RunConfig, dump_config, environment
from dreamfleet.data.cache import default_cache
from dreamfleet.data.names import safe_id
from dreamfleet.data.preparation import Preparation
from dreamfleet.data.subjects import SubjectRequest, requested_subjects
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError, TrainingError
from dreamfleet.runtime.locks import exclusive_run
from dreamfleet.runtime.progress import Progress, SilentProgress, Stage
from dreamfleet.runtime.storage import is_uri
from dreamfleet.training.output import OutputFolder

if TYPE_CHECKING:
    from dreamfleet.bases import Base
    from dreamfleet.runtime.session import RaySession
    from dreamfleet.training.task import TrainEvent, TrainOutcome, TrainTask
