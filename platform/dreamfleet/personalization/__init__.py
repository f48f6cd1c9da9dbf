"""`dreamfleet.personalize`: from a folder of photos to a measured, recorded adapter.

    validate (no Ray) → subject sets (Ray Data) → prior sets (Ray Data) → training (Ray Train, or a
    fleet of engines) → OUT → first metrics, report, model card, MLflow

Everything that can be refused is refused before Ray starts. What comes after the training is
repeated by `--resume` when it was cut short; nothing finished is lost.
"""

from dreamfleet.personalization.command import personalize, prepare_subjects
from dreamfleet.personalization.results import PersonalizeResult, PreparedSubjects, SubjectResult

__all__ = [
    "PersonalizeResult",
    "PreparedSubjects",
    "SubjectResult",
    "personalize",
    "prepare_subjects",
]
