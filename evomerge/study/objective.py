"""`Objective`: what a search maximizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.search import Outcome, State


@dataclass(frozen=True)
class Objective:
    """Combines the scores of several tasks into one number, higher is better.

    Attributes:
        weights: each task's share.
        ranges: each task's lowest and highest score of a parent, if scores are normalized to them.
    """

    weights: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]] | None

    def __call__(self, means: Mapping[str, float]) -> float:
        """Returns the weighted mean of the tasks' means."""
        total = 0.0
        for name, weight in self.weights.items():
            low, width = self._range(name)
            total += weight * ((means[name] - low) / width)
        return total / sum(self.weights.values())

    def value(self, outcome: Outcome) -> float | None:
        """Returns the objective of an outcome; None if it failed."""
        return None if outcome.state is State.FAILED else self(outcome.means)

    @property
    def slopes(self) -> dict[str, float]:
        """The derivative of the objective by each task's mean."""
        whole = sum(self.weights.values())
        return {name: weight / whole / self._range(name)[1] for name, weight in self.weights.items()}

    def _range(self, name: str) -> tuple[float, float]:
        """Returns the score of a task that counts as 0, and its distance to the score that counts as 1."""
        low, high = (0.0, 1.0) if self.ranges is None else self.ranges[name]
        # Parents with equal scores give no range to normalize to: only the distance to them counts.
        return low, (high - low) or 1.0


def ranges_of(tasks: Sequence[str], models: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Returns each task's lowest and highest mean among models, at least one."""
    return {task: (min(means[task] for means in models), max(means[task] for means in models)) for task in tasks}
