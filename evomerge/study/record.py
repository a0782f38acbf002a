"""The record of a search: an Optuna study, one transaction an evaluation.

A trial is one evaluation of a merge: trial 0 is the parents' mean, the others are candidates in the order in which
their outcomes were told to the optimizer; and, after a search on subsets of the items, those that are scored on all of
them. Parents and holdout scores are attributes of the study. A kill between two transactions loses at most the
evaluation in progress.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from evomerge.checkpoint import read_object, replace_file, unfinished
from evomerge.errors import CheckpointError, StudyError
from evomerge.search import Outcome, Proposal, State
from evomerge.study.storage import DATABASE, Storage
from evomerge.study.trial import Trial

RESULT = "result.json"
ELSEWHERE = "storage.url"
"""The file that names the database where a run's record is, when that is not study.db; without the password."""

FORMAT = 2
"""The version of what a record holds."""

_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PARTIAL: TrialState.PRUNED, State.FAILED: TrialState.FAIL}


class Record:
    """An open record, locked until `close` or the end of the process.

    Two locks keep a second search away: one on the run's folder, one on the study where its database is elsewhere.

    Args:
        folder: the run's folder; made if it does not exist.
        storage: the URL of the database that holds the record; study.db in the folder by default.
        name: the study's name in such a database; the folder's name by default.

    Attributes:
        title: the run's folder, or the study in its database, in messages.

    Raises:
        StudyError: another process is searching there, or the database cannot be used.
    """

    def __init__(self, folder: Path, storage: str | None = None, name: str | None = None) -> None:
        self.folder = folder
        self._place = Storage(folder, storage, name)
        self.title = self._place.title
        self._locks: list[sqlalchemy.Connection | int] = []
        try:
            self._lock_folder()
            self._check_place()
            self._open()
        except BaseException:
            self.close()
            raise

    def _lock_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # On the folder itself: the system drops the lock when the process dies, and no lock file is left behind.
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            self._locks.append(descriptor)
        except OSError as fault:
            raise StudyError(
                f"{self.folder}: cannot be used as a run's folder ({fault.strerror}); use another --run-dir"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            reason = "another evomerge is searching here; wait for it"
            if not isinstance(fault, BlockingIOError):
                reason = f"its file system cannot lock it ({fault.strerror})"
            raise StudyError(f"{self.folder}: {reason}, or use another --run-dir") from None

    def _check_place(self) -> None:
        """Refuses a database other than the one that holds the run's record."""
        known = storage_of(self.folder)
        if known and known != self._place.label:
            raise StudyError(
                f"{self.folder}: its record is in {known}; resume with --storage and the URL of that database"
                f" (if it has moved, put its new URL, without the password, into {self.folder / ELSEWHERE})"
            )
        if not self._place.own and (self.folder / DATABASE).exists():
            raise StudyError(
                f"{self.folder}: its record is in {DATABASE}; resume without --storage, or use another --run-dir"
            )

    def _open(self) -> None:
        place, path = self._place, self.folder / DATABASE
        try:
            for left in self.folder.glob(unfinished(Path("*")).name):
                if left.is_file():  # `apply` writes models in folders of such names
                    left.unlink()
            if place.own and not path.exists():
                # Making the tables takes many transactions: a database is complete before it has its name.
                place.open(unfinished(path)).engine.dispose()
                os.replace(unfinished(path), path)
        except Exception as fault:
            raise StudyError(
                f"{self._place.label}: cannot be made ({place.reason(fault)}); use another --run-dir"
            ) from None
        with _reading(place):
            self._storage = place.open()
            lock = None if place.own else place.lock(self._storage)
        if lock is not None:
            self._locks.append(lock)
        elif not place.own:
            # An SQLite file is locked as a whole, for all its studies.
            held, other = (place.label, "file") if place.path else (place.title, "--run-dir")
            raise StudyError(f"{held}: another evomerge is searching here; wait for it, or use another {other}")
        self._load()

    def _load(self) -> None:
        """Reads the study; makes it if there is none."""
        with _reading(self._place):
            _check_integrity(self._place, self._storage)
            if self._place.study not in optuna.get_all_study_names(self._storage):
                if storage_of(self.folder):
                    raise StudyError(
                        f"{self._place.title}: not found, but {self.folder / ELSEWHERE} says that the record is in this"
                        " database; if the folder was renamed, give it its old name; to start a new search, use another"
                        " --run-dir"
                    )
                optuna.create_study(storage=self._storage, study_name=self._place.study, direction="maximize")
            self._study, self._attributes, self._trials, _ = _read(self._place, self._storage)
        if not self._attributes:
            self.set_attribute("format", FORMAT)

    def bind(self) -> None:
        """Notes in the run's folder where its record is, if that is not study.db.

        Raises:
            StudyError: the note cannot be written.
        """
        if not self._place.own:
            write_atomically(self.folder / ELSEWHERE, self._place.label + "\n")

    def clear(self) -> None:
        """Empties the record.

        Raises:
            StudyError: it cannot be written.
        """
        (self.folder / ELSEWHERE).unlink(missing_ok=True)  # which would require the study
        self._written(lambda: optuna.delete_study(study_name=self._place.study, storage=self._storage))
        self._load()

    def close(self) -> None:
        """Closes the database and unlocks the study and the folder."""
        if hasattr(self, "_storage"):
            self._storage.engine.dispose()
        while self._locks:
            lock = self._locks.pop()
            if isinstance(lock, int):
                os.close(lock)
            else:
                lock.close()

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
        """Whether any model has been scored; until then, the record does not bind the search to its settings."""
        found = [self._attributes[name] for name in self._attributes if name.startswith("baseline:")]
        return any(data["items"] for data in found) or any(trial.outcome.items for trial in self._trials)

    def add(self, trial: Trial, parameters: Mapping[str, tuple[float, BaseDistribution]]) -> None:
        """Records one more trial, durably, in one transaction.

        Args:
            trial: the trial.
            parameters: the candidate's numbers by name, each with its range, for Optuna's tools.

        Raises:
            StudyError: it cannot be written, for instance because the disk is full.
        """
        proposal = trial.proposal
        asked = {"id": proposal.id, "generation": proposal.generation, "genome": proposal.genome} if proposal else {}
        means = {f"score of {task}": mean for task, mean in trial.outcome.means.items()}
        frozen = optuna.trial.create_trial(
            state=_STATES[trial.outcome.state],
            value=trial.objective,
            params={name: value for name, (value, _) in parameters.items()},
            distributions={name: distribution for name, (_, distribution) in parameters.items()},
            user_attrs={"kind": trial.kind, **means, "recipe": trial.recipe, **asked, **trial.outcome.as_data()},
        )
        frozen.datetime_complete = datetime.now()
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=sum(trial.outcome.seconds.values()))
        self._written(lambda: self._study.add_trial(frozen))
        self._trials.append(trial)

    def attribute(self, name: str) -> Any:
        """Returns an attribute of the study, or None."""
        return self._attributes.get(name)

    def set_attribute(self, name: str, value: Any) -> None:
        """Records an attribute, durably.

        Raises:
            StudyError: it cannot be written, for instance because the disk is full.
        """
        self._written(lambda: self._study.set_user_attr(name, value))
        self._attributes[name] = value

    def _written(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as fault:
            remedy = "make room where the disk is full" if self._place.path else "make sure that the server is running"
            raise StudyError(
                f"{self._place.label}: cannot be written ({self._place.reason(fault)}); all evaluations before this"
                f" one are safe: {remedy}, and run the same command again to resume"
            ) from None


class Recorded(NamedTuple):
    """What a record holds: the database's label, the study's attributes, its trials, and the same as Optuna's."""

    label: str
    attributes: dict[str, Any]
    trials: list[Trial]
    frozen: list[optuna.trial.FrozenTrial]


def recorded(folder: Path, storage: str | None = None, name: str | None = None) -> Recorded:
    """Returns what is on record of a run, which may be in use by a search.

    Args:
        folder: the run's folder.
        storage: as for `Record`.
        name: as for `Record`.

    Raises:
        StudyError: the database cannot be read.
    """
    place = Storage(folder, storage, name)
    with _reading(place):
        if place.path and not place.path.is_file():  # which opening would create
            raise StudyError(f"{place.label}: not found; expected the record of a search")
        opened = place.open()
        try:
            _check_integrity(place, opened)
            if place.study not in optuna.get_all_study_names(opened):
                return Recorded(place.label, {}, [], [])
            return Recorded(place.label, *_read(place, opened)[1:])
        finally:
            opened.engine.dispose()


def storage_of(folder: Path) -> str:
    """Returns the database that holds a run's record, without its password; empty if that is study.db."""
    try:
        return (folder / ELSEWHERE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file of a run whole or not at all.

    Raises:
        StudyError: it cannot be written.
    """
    try:
        replace_file(path, content)
    except OSError as fault:
        raise StudyError(
            f"{path}: cannot be written ({fault.strerror}); the record is safe: make room where the disk is full, and"
            " run the same command again to resume"
        ) from None


def read_result(folder: Path) -> Mapping[str, Any]:
    """Returns what a run's result.json holds; nothing where there is none, or something else under its name."""
    try:
        return read_object(folder / RESULT)
    except CheckpointError:
        return {}


@contextlib.contextmanager
def _reading(place: Storage) -> Iterator[None]:
    """Turns any error into a `StudyError`.

    A damaged page shows in as many ways as there are things to read: text that is not JSON, missing rows.
    """
    try:
        yield
    except StudyError:
        raise
    except Exception as fault:
        remedy = "restore it from a copy, or search again in another folder"
        if place.path is None:
            remedy = "check the URL, and that the server is running"
        raise StudyError(
            f"{place.label}: cannot be opened as the record of a search ({place.reason(fault)}); {remedy}"
        ) from None


def _check_integrity(place: Storage, storage: optuna.storages.RDBStorage) -> None:
    if place.path:
        with storage.engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
        if found != "ok":
            raise ValueError(f"damaged: {found}")


def _read(
    place: Storage, storage: optuna.storages.RDBStorage
) -> tuple[optuna.Study, dict[str, Any], list[Trial], list[optuna.trial.FrozenTrial]]:
    """Returns a record's study and everything in it.

    Raises:
        StudyError: the study is not a record of this version.
    """
    study = optuna.load_study(study_name=place.study, storage=storage)
    attributes, trials = dict(study.user_attrs), study.get_trials(deepcopy=False)
    if (attributes or trials) and attributes.get("format") != FORMAT:
        raise StudyError(
            f"{place.title}: holds no search that this version of evomerge can read; use the version that wrote it,"
            " or search again in another folder"
        )
    own = [frozen for frozen in trials if "kind" in frozen.user_attrs]
    return study, attributes, [_trial(number, frozen.user_attrs) for number, frozen in enumerate(own)], own


def _trial(number: int, data: Mapping[str, Any]) -> Trial:
    kind = data["kind"]
    proposal = None if kind == "mean" else Proposal(data["id"], data["genome"], data["generation"])
    return Trial(number, proposal, data["recipe"], Outcome.from_data(data), final=kind == "final")
