"""What can go wrong, by kind.

Every error that evomerge raises on purpose is an `EvomergeError`. Its text names the thing, what was
expected, what was found, and what to do; the command line prints that text and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence


class EvomergeError(Exception):
    """An error whose text a user can act on; the base of every kind below."""


class DocumentError(EvomergeError):
    """A YAML document has faults; its text has one line for each of them.

    Attributes:
        faults: every fault found, each as ``file:line: what was expected, found, and what to do``.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class RecipeError(DocumentError):
    """A recipe has faults."""


class TaskError(DocumentError):
    """A task file, or the data that it names, has faults."""


class CheckpointError(EvomergeError):
    """A checkpoint cannot be read or written: a missing, truncated, unsafe or inconsistent file."""


class ArchitectureError(EvomergeError):
    """Checkpoints do not fit together, or their layers cannot be found."""


class MergeError(EvomergeError):
    """A merge method was given tensors or parameters that it cannot merge."""


class EvaluationError(EvomergeError):
    """A candidate could not be scored, for instance because its logits are not finite."""


class PluginError(EvomergeError):
    """Another package's merge method, metric or optimizer cannot be used."""


class StudyError(EvomergeError):
    """A run's folder cannot be used: it is locked, damaged, or holds another search."""


class PublishError(EvomergeError):
    """A model cannot be published: a file is missing or damaged, its licence is not known, or the Hub refuses."""
