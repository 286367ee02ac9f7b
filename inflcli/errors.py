"""One exception class per kind of failure, each with an exit code and a hint.

The CLI's edge (`inflcli.cli`) turns them into one line on stderr. Nothing below the CLI prints
or exits.
"""

from __future__ import annotations


class InflcliError(Exception):
    """Base of every error that a user can mend.

    `message` says what is wrong and names the file, module or option; `hint` says what to do.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(InflcliError):
    """An option, a query, a text file or a model that cannot be used as given."""

    exit_code = 2


class MissingArtifact(InflcliError):
    """A stage's input is not there, or is not complete."""

    exit_code = 3


class StaleArtifact(InflcliError):
    """An artifact was made from something else than what it is now used with."""

    exit_code = 3


class CorruptArtifact(InflcliError):
    """An artifact or a model file is damaged, or of another schema."""

    exit_code = 4


class NumericalFault(CorruptArtifact):
    """NaN or infinity in weights, statistics or scores; the message names the module."""


class OutOfResources(InflcliError):
    """Memory, device memory or disk space ran out."""

    exit_code = 5
