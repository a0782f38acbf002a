"""The searches in a folder, read without disturbing those that are running."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from evomerge.errors import StudyError
from evomerge.study.record import read_result, recorded, storage_of
from evomerge.study.stages import stage_names
from evomerge.study.standings import best_of
from evomerge.study.storage import DATABASE


@dataclass(frozen=True)
class Run:
    """One search's folder.

    Attributes:
        folder: the run's folder.
        state: ``running``, ``stopped`` before its end, ``finished``, or ``damaged``.
        evaluations: candidates on record; None where the record is elsewhere and the search has not ended.
        best: the highest search score; None where nothing was scored.
        verdict: of a finished search; of a damaged one, what is wrong.
        storage: the database that holds the record, without its password; empty where that is study.db.
    """

    folder: Path
    state: Literal["running", "stopped", "finished", "damaged"]
    evaluations: int | None
    best: float | None
    verdict: str
    storage: str = ""


def runs(folder: Path) -> list[Run]:
    """Returns the searches in `folder` and in the folders directly in it, by name; one with stages is one search.

    Raises:
        StudyError: it is not a folder that can be read.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError as fault:
        raise StudyError(f"{folder}: cannot be listed ({fault.strerror}); expected a folder of runs") from None
    return [run for path in (folder, *inside) if (run := _run(path)) is not None]


def _run(folder: Path) -> Run | None:
    """Returns the search in a folder; None where there is none."""
    if (folder / DATABASE).is_file() or storage_of(folder):
        return _search(folder)
    names = stage_names(folder) or []
    stages = [run for name in names if (run := _run(folder / name)) is not None]
    if not stages:
        return None
    evaluations = (
        None if any(run.evaluations is None for run in stages) else sum(run.evaluations or 0 for run in stages)
    )
    best, storage = stages[-1].best, stages[-1].storage
    states = {run.state: run for run in stages}
    for state in ("damaged", "running"):
        if state in states:
            return Run(folder, state, evaluations, best, states[state].verdict, storage)
    if len(stages) == len(names) and set(states) == {"finished"}:
        return Run(folder, "finished", evaluations, best, stages[-1].verdict, storage)
    return Run(folder, "stopped", evaluations, best, "", storage)


def _search(folder: Path) -> Run:
    result, storage = _result(folder), storage_of(folder)
    # A record in another database may need a password: of such a run, only its folder is read.
    done, best = (result.evaluations, result.best) if result else (None, None)
    if not storage:
        try:
            trials = recorded(folder).trials
        except StudyError as fault:
            return Run(folder, "damaged", 0, None, str(fault))
        done = sum(trial.kind == "candidate" for trial in trials)
        leader = best_of(trials)
        best = leader.objective if leader else None
    if _is_locked(folder):
        return Run(folder, "running", done, best, "", storage)
    # A search with more evaluations than its result says is being extended.
    if result and result.evaluations == done:
        return Run(folder, "finished", done, best, result.verdict, storage)
    return Run(folder, "stopped", done, best, "", storage)


class _Result(NamedTuple):
    """What a list of runs shows of a result.json."""

    evaluations: int
    best: float
    verdict: str


def _result(folder: Path) -> _Result | None:
    """Returns a run's result; None where there is none, or something else under its name."""
    try:
        found = read_result(folder)
        return _Result(int(found["evaluations"]), float(found["winner"]["search"]), str(found["verdict"]))
    except (ValueError, LookupError, TypeError):
        return None


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
