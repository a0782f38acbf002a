"""What the models of a search wrote on the holdout: completions.json in the run's folder, for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.checkpoint import read_object
from evomerge.errors import CheckpointError
from evomerge.study.record import write_atomically

COMPLETIONS = "completions.json"

Completions = Mapping[str, Mapping[str, Sequence[str]]]
"""By model and task, one text an item."""


def keep_completions(folder: Path, model: str, texts: Mapping[str, Sequence[str]]) -> None:
    """Adds a model's completions to those in the run's folder.

    Args:
        folder: the run's folder.
        model: the model's name, or ``trial N``.
        texts: for each task, one text an item.

    Raises:
        StudyError: they cannot be written.
    """
    found = {**completions(folder), model: texts}
    write_atomically(folder / COMPLETIONS, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def completions(folder: Path) -> Completions:
    """Returns the completions in a run's folder; none where there is no such file, or it is not readable."""
    try:
        return read_object(folder / COMPLETIONS)
    except CheckpointError:
        return {}
