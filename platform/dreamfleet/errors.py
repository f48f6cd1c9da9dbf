"""Every error a user can meet, in one tree.

    DreamfleetError            exit code 1 unless a subclass says otherwise
    ├── BadInputError          exit code 2: a flag, file, photo or key is wrong; names the thing
    │   ├── ConfigError        a configuration key: which, what was given, what is accepted
    │   ├── SubjectSetError    a photo or a subject folder
    │   ├── BaseModelError     a base model that is missing, incomplete or of an unsupported family
    │   ├── AdapterFileError   an adapter file that is not safe, not whole or not for this base
    │   └── ResumeError        a run that cannot be continued as asked
    ├── TrainingError          training ended without an adapter (NaN loss, worker lost too often)
    └── CapacityError          an engine has no room for more now; wait, or ask for less

A message says what was given, what was expected, and what to do.
`assert` is for our own bugs; these classes are for what a user can cause or mend.
"""

from __future__ import annotations


class DreamfleetError(Exception):
    """Base class; `exit_code` is what the command line returns for it."""

    exit_code = 1


class BadInputError(DreamfleetError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ConfigError(BadInputError):
    """A configuration key or flag has a wrong name or value."""


class SubjectSetError(BadInputError):
    """A photo or subject folder cannot be used."""


class BaseModelError(BadInputError):
    """A base model cannot be loaded."""


class AdapterFileError(BadInputError):
    """An adapter file or folder cannot be used."""


class ResumeError(BadInputError):
    """A run cannot be continued as asked."""


class TrainingError(DreamfleetError):
    """Training ended without an adapter."""


class CapacityError(DreamfleetError):
    """An engine has no free slot or place now."""


def first_line(error: object) -> str:
    """What an error says, cut to one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """The last line of what an error says, where its cause stands after a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
