"""Local files in place of data sets on the Hub, for machines without a network.

A mapping says which: ``{"openai/gsm8k:test": "gsm8k_test.jsonl"}``. After the data set come its split, its
configuration, or both, in any order; the entry that says most wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.document import suggestion
from evomerge.errors import TaskError
from evomerge.tasks.data import SUFFIXES, is_local
from evomerge.tasks.spec import DataSpec

if TYPE_CHECKING:
    from evomerge.tasks.task import Task

LocalFiles = Mapping[str, Path | str]
"""Files by the data sets on the Hub in whose place they are read."""


def label(spec: DataSpec) -> str:
    """Returns a data set on the Hub as the key of a mapping says it."""
    return ":".join(part for part in (spec.path, spec.name, spec.split) if part)


def replacement(spec: DataSpec, files: LocalFiles) -> str | None:
    """Returns the key of the file that is read in place of a data set; None if none is.

    Raises:
        TaskError: the file is not one that can be read.
    """
    parts = {spec.name, spec.split}
    found = [key for key in files if key.split(":")[0] == spec.path and parts.issuperset(key.split(":")[1:])]
    if is_local(spec.path) or "[" in str(spec.split) or not found:
        return None  # A slice, such as test[:50], is of the data set's rows, which a file need not have.
    key = max(found, key=lambda one: one.count(":"))
    if not is_local(str(files[key])):
        raise TaskError([f"{files[key]}: given for {key}, is not a data file; expected {', '.join(SUFFIXES)}"])
    return key


def check_used(files: LocalFiles, tasks: Sequence[Task]) -> None:
    """Checks that every file is read by a task.

    Raises:
        TaskError: one is not, so it names another data set, or one wrongly.
    """
    known = sorted({name for task in tasks for name in task.data_sets})
    read = f"the tasks read {', '.join(known)}" if known else "the tasks read no data set on the Hub"
    faults = [
        f"{key}: no task reads this data set{suggestion(key, known)}; {read}"
        for key in files
        if not any(key in task.replaced for task in tasks)
    ]
    if faults:
        raise TaskError(faults)
