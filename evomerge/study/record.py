"""The record of a search: an Optuna study in the run's folder, one transaction an evaluation.

A trial is one merge: trial 0 is the parents' mean, the others are candidates in the order in which the optimizer
asked for them. Parents and holdout scores are the study's attributes. A kill between two transactions loses at
most the evaluation that was under way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from evomerge.checkpoint import UNFINISHED
from evomerge.errors import StudyError
from evomerge.evaluation import task_means
from evomerge.search import Genome, SearchSpace

DATABASE = "study.db"
RESULT = "result.json"
STUDY = "evomerge"


@dataclass(frozen=True)
class Outcome:
    """What came of one evaluation.

    Attributes:
        items: for each task, one number an item; None where it failed.
        seconds: for ``build``, ``evaluate`` and ``other`` (all else since the evaluation before).
        error: why it failed; None where it did not.
    """

    items: Mapping[str, tuple[float, ...]] | None
    seconds: Mapping[str, float]
    error: str | None = None

    @property
    def means(self) -> dict[str, float] | None:
        """The mean over the items of each task; None where the evaluation failed."""
        return None if self.items is None else task_means(self.items)

    def as_data(self) -> dict[str, Any]:
        """Returns the outcome as plain data; `from_data` gives it back, every number to the last bit."""
        items = {name: list(values) for name, values in self.items.items()} if self.items else None
        return {"items": items, "seconds": dict(self.seconds), "error": self.error}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Outcome:
        """Returns the outcome that `as_data` made `data` of."""
        items = data["items"]
        kept = {name: tuple(values) for name, values in items.items()} if items is not None else None
        return cls(kept, data["seconds"], data["error"])


@dataclass(frozen=True)
class Trial:
    """One merge that was evaluated.

    Attributes:
        number: counts from 0, in the order of evaluation.
        kind: ``mean`` of the parents, or ``candidate``.
        genome: the candidate's; empty for the mean.
        recipe: its recipe as YAML.
        objective: higher is better; None where it failed.
        outcome: what came of it.
    """

    number: int
    kind: Literal["mean", "candidate"]
    genome: Genome
    recipe: str
    objective: float | None
    outcome: Outcome


class Record:
    """An open record; its folder is locked until `close`, or until the process ends in whatever way.

    Args:
        folder: the run's folder; made where it does not exist.

    Raises:
        StudyError: another process is searching there, or the database cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The system drops a lock on the folder itself when the process dies, and no lock file is left behind.
            self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as fault:
            raise StudyError(
                f"{folder}: cannot be used as a run's folder ({fault.strerror}); use another --run-dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            os.close(self._lock)
            reason = "another evomerge is searching here; wait for it"
            if not isinstance(fault, BlockingIOError):
                reason = f"its file system cannot lock it ({fault.strerror})"
            raise StudyError(f"{folder}: {reason}, or use another --run-dir") from None
        self._open()

    def _open(self) -> None:
        path = self.folder / DATABASE
        fresh = partial(path)
        try:
            for left in self.folder.glob(partial(Path("*")).name):
                left.unlink()
            if not path.exists():
                # Making the tables takes many transactions: under its name there is a whole database or none.
                made = _storage(fresh)
                optuna.create_study(storage=made, study_name=STUDY, direction="maximize")
                made.engine.dispose()
                os.replace(fresh, path)
        except Exception as fault:
            self.close()
            raise StudyError(f"{path}: cannot be made ({_reason(fault)}); use another --run-dir") from None
        try:
            self._storage, self._study, self._attributes, self._trials = _read(path)
        except StudyError:
            self.close()
            raise

    def clear(self) -> None:
        """Begins the record anew, with nothing in it.

        Raises:
            StudyError: it cannot be written.
        """
        self._storage.engine.dispose()
        self._written((self.folder / DATABASE).unlink)
        self._open()

    def close(self) -> None:
        """Closes the database and unlocks the folder."""
        if hasattr(self, "_storage"):
            self._storage.engine.dispose()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every merge that was evaluated, in order."""
        return tuple(self._trials)

    @property
    def scored(self) -> bool:
        """Whether any model has been scored; before that, the record binds a search to nothing."""
        found = [self._attributes[name] for name in self._attributes if name.startswith("baseline:")]
        return any(entry["items"] for entry in found) or any(trial.outcome.items for trial in self._trials)

    def add(self, trial: Trial, space: SearchSpace) -> None:
        """Puts one more trial on record, durably, in one transaction.

        Raises:
            StudyError: it cannot be written, for instance because the disk is full.
        """
        dimensions = space.dimensions if trial.kind == "candidate" else []
        seconds = trial.outcome.seconds
        now = datetime.now()
        frozen = optuna.trial.create_trial(
            state=TrialState.FAIL if trial.objective is None else TrialState.COMPLETE,
            value=trial.objective,
            params=space.numbers(trial.genome) if dimensions else {},
            distributions={d.name: FloatDistribution(d.low, d.high, log=d.log) for d in dimensions},
            user_attrs={
                "kind": trial.kind,
                "genome": list(trial.genome),
                "recipe": trial.recipe,
                **trial.outcome.as_data(),
            },
        )
        frozen.datetime_start = datetime.fromtimestamp(now.timestamp() - sum(seconds.values()))
        frozen.datetime_complete = now
        self._written(lambda: self._study.add_trial(frozen))
        self._trials.append(trial)

    def attribute(self, name: str) -> Any:
        """Returns an attribute of the study, or None."""
        return self._attributes.get(name)

    def set_attribute(self, name: str, value: Any) -> None:
        """Puts an attribute on record, durably.

        Raises:
            StudyError: it cannot be written, for instance because the disk is full.
        """
        self._written(lambda: self._study.set_user_attr(name, value))
        self._attributes[name] = value

    def _written(self, write: Any) -> None:
        try:
            write()
        except Exception as fault:
            raise StudyError(
                f"{self.folder / DATABASE}: cannot be written ({_reason(fault)}); all evaluations before this one are"
                " safe: make room where the disk is full, and run the same command again to resume"
            ) from None


def recorded_trials(folder: Path) -> tuple[Trial, ...]:
    """Returns the trials on record in a run's folder, which may be in use by a search.

    Raises:
        StudyError: the database cannot be read.
    """
    storage, _, _, trials = _read(folder / DATABASE)
    storage.engine.dispose()
    return tuple(trials)


def partial(path: Path) -> Path:
    """Returns where a file is written before it has its name; one that a kill left behind is deleted by this name."""
    return path.with_name(f".{path.name}.{UNFINISHED}")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all: into a temporary file beside it, then one rename.

    Raises:
        StudyError: it cannot be written.
    """
    fresh = partial(path)
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as fault:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise StudyError(
            f"{path}: cannot be written ({fault.strerror}); the record is safe: make room where the disk is full, and"
            " run the same command again to resume"
        ) from None


def _storage(path: Path) -> optuna.storages.RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.storages.RDBStorage(f"sqlite:///{path.as_posix().replace('{', '{{').replace('}', '}}')}")


def _read(path: Path) -> tuple[optuna.storages.RDBStorage, optuna.Study, dict[str, Any], list[Trial]]:
    """Returns a database, open, and all that is in it.

    Raises:
        StudyError: it is no record of a search, or it is damaged.
    """
    storage = None
    try:
        storage = _storage(path)
        with storage.engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
        if found != "ok":
            raise ValueError(f"damaged: {found}")
        study = optuna.load_study(study_name=STUDY, storage=storage)
        own = [frozen for frozen in study.get_trials(deepcopy=False) if "kind" in frozen.user_attrs]
        return storage, study, dict(study.user_attrs), [_trial(number, frozen) for number, frozen in enumerate(own)]
    # A damaged page shows in as many ways as there are things to read: text that is no JSON, rows that are not there.
    except Exception as fault:
        if storage is not None:
            storage.engine.dispose()
        raise StudyError(
            f"{path}: cannot be opened as the record of a search ({_reason(fault)}); restore it from a copy, or use"
            " another --run-dir"
        ) from None


def _trial(number: int, frozen: optuna.trial.FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    return Trial(
        number=number,
        kind=attributes["kind"],
        genome=tuple(attributes["genome"]),
        recipe=attributes["recipe"],
        objective=frozen.value if frozen.state == TrialState.COMPLETE else None,
        outcome=Outcome.from_data(attributes),
    )


def _reason(fault: BaseException) -> str:
    """Returns the first line of what is behind a fault, or its kind where it says nothing."""
    cause = fault.__cause__ or fault
    return (str(cause).splitlines() or [type(cause).__name__])[0]
