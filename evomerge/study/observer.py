"""`Observer`: what is told of the progress of a search."""

from __future__ import annotations

from evomerge.search import Outcome
from evomerge.study.trial import Trial


class Observer:
    """Is notified of the progress of a search; a subclass overrides what it wants to know."""

    def loading(self, done: int, total: int) -> None:
        """`done` of `total` bytes of weights are read."""

    def evaluating(self, what: str, stage: str) -> None:
        """The evaluation of `what` (a model or candidate) is at `stage`: ``build``, or a task's name."""

    def baseline(self, name: str, outcome: Outcome, objective: float | None) -> None:
        """A parent, or the base, was scored; its objective is None until all parents are, or if it failed."""

    def trial(self, trial: Trial, fresh: bool) -> None:
        """A merge is on record: just evaluated if `fresh`, otherwise read back."""

    def best(self, trial: Trial) -> None:
        """`trial` is the best merge so far; its objective is its standing among the others."""

    def holdout(self, name: str, done: int, total: int) -> None:
        """The model `name` is being scored on the holdout, after `done` of `total`."""

    def note(self, text: str) -> None:
        """The user should know `text`."""
