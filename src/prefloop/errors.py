"""Every error a user can meet.

PrefloopError
├── SettingsError     a setting is unknown, mistyped or does not fit the others   (exit code 2)
├── DataError         a file or a row is missing, malformed or unusable           (exit code 1)
│   └── NothingUsableError  every row of a data set was dropped
├── LabelRefusedError a label cannot be taken; `reason` says why in a word         (exit code 1)
├── ModelError        a model or tokenizer cannot be loaded or does not fit       (exit code 1)
├── RunError          a run folder is missing, incomplete or does not match       (exit code 1)
└── TrainingError     training cannot go on: non-finite numbers, nothing to learn (exit code 1)

Interrupted           the person stopped the run; what was saved is complete     (exit code 130)

A message is one sentence or two: what was given and where, what is allowed, what to do.
"""

from typing import Literal


class PrefloopError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class SettingsError(PrefloopError, ValueError):
    """A setting is unknown, mistyped or contradicts another."""

    exit_code = 2


class DataError(PrefloopError, ValueError):
    """A data file or one of its rows cannot be used."""


class NothingUsableError(DataError):
    """Every row of a data set was dropped; the message says for which reasons."""


class LabelRefusedError(PrefloopError, ValueError):
    """A label cannot be taken.

    `reason` is "id_reused" (the same submission id with other content), "pair_complete" (others have said enough),
    "unknown_task" (no such task for this person) or "nothing_to_undo".
    """

    def __init__(self, message: str, reason: Literal["id_reused", "pair_complete", "unknown_task", "nothing_to_undo"]):
        super().__init__(message)
        self.reason = reason


class ModelError(PrefloopError, ValueError):
    """A model or tokenizer cannot be loaded or does not fit its task."""


class RunError(PrefloopError, ValueError):
    """A run folder is missing, incomplete or belongs to other settings."""


class TrainingError(PrefloopError, ArithmeticError):
    """Training cannot go on."""


class Interrupted(PrefloopError):  # noqa: N818 - not a failure
    """The person pressed Ctrl-C (or the system asked to stop) and the state was saved."""

    exit_code = 130
