"""What became of the searches in a folder, read without disturbing those that are running."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import StudyError
from evomerge.study.record import RESULT, recorded_trials
from evomerge.study.storage import DATABASE


@dataclass(frozen=True)
class Run:
    """One search's folder.

    Attributes:
        folder: where it is.
        state: ``running``, ``stopped`` before its end, ``finished``, or ``damaged``.
        evaluations: candidates on record.
        best: the highest search score; None where nothing was scored.
        verdict: of a finished search; of a damaged one, what is wrong.
    """

    folder: Path
    state: Literal["running", "stopped", "finished", "damaged"]
    evaluations: int
    best: float | None
    verdict: str


def runs(folder: Path) -> list[Run]:
    """Returns the searches in `folder` and in the folders directly in it, by name.

    Raises:
        StudyError: it is not a folder that can be read.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError as fault:
        raise StudyError(f"{folder}: cannot be listed ({fault.strerror}); expected a folder of runs") from None
    return [_run(path) for path in (folder, *inside) if (path / DATABASE).is_file()]


def _run(folder: Path) -> Run:
    try:
        trials = recorded_trials(folder)
    except StudyError as fault:
        return Run(folder, "damaged", 0, None, str(fault))
    done = sum(trial.kind == "candidate" for trial in trials)
    best = max((trial.objective for trial in trials if trial.objective is not None), default=None)
    if _is_locked(folder):
        return Run(folder, "running", done, best, "")
    result = _result(folder)
    # One with more evaluations than its result tells of was begun again, to be extended.
    if result.get("evaluations") == done:
        return Run(folder, "finished", done, best, str(result.get("verdict", "")))
    return Run(folder, "stopped", done, best, "")


def _result(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_locked(folder: Path) -> bool:
    """Whether a search is running there: it holds a lock on its folder."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
