"""`Objective`: what a search maximizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from evomerge.search import Outcome, State


class Scale(NamedTuple):
    """How a task's scores are standardized.

    Attributes:
        centre: the score that counts as 0.
        unit: the difference that counts as 1, above 0.
    """

    centre: float = 0.0
    unit: float = 1.0


@dataclass(frozen=True)
class Objective:
    """Combines the scores of several tasks into one number, higher is better.

    Attributes:
        weights: each task's share, above 0; they need not sum to one.
        scales: how each task is standardized; a task without a scale counts as it is.
    """

    weights: Mapping[str, float]
    scales: Mapping[str, Scale] = field(default_factory=dict)

    def __call__(self, means: Mapping[str, float]) -> float:
        """Returns the weighted mean of the tasks' means, standardized where they have scales.

        Args:
            means: each task's mean over the items that were scored: all, or a subset.
        """
        total = 0.0
        for name, weight in self.weights.items():
            centre, unit = self._scale(name)
            total += weight * ((means[name] - centre) / unit)
        return total / sum(self.weights.values())

    def value(self, outcome: Outcome) -> float | None:
        """Returns the objective of an outcome; None if it failed."""
        return None if outcome.state is State.FAILED else self(outcome.means)

    @property
    def slopes(self) -> dict[str, float]:
        """The derivative of the objective by each task's mean."""
        whole = sum(self.weights.values())
        return {name: weight / whole / self._scale(name).unit for name, weight in self.weights.items()}

    def _scale(self, name: str) -> Scale:
        return self.scales.get(name, Scale())


def scales_of(tasks: Sequence[str], models: Sequence[Outcome]) -> dict[str, Scale]:
    """Returns the scale of each task: the mean and the standard deviation of the scores of all models on all items.

    A standardized score is a z-score. The variance of all scores is the variance between the models plus the variance
    between the items, and the second part does not vanish where the models score alike. It also makes the sampling
    errors of tasks with equally many items similar, whatever their units, so that the noise of one does not decide the
    search. The range of the parents does neither: in simulated searches whose second task offers no gain, dividing by
    it lowered the winner's accuracy on the first task from 0.81 to 0.67, the range together with two standard errors
    of the mean to 0.74, and this scale not at all. With two accuracies, it finds what their plain mean finds.

    Scores between 0 and 1 count as if there were two items more with 0 and two with 1 (Agresti and Coull 1998,
    "Approximate is better than exact for interval estimation of binomial proportions", The American Statistician 52,
    119-126): models that solve no item yet do not have a spread of 0.

    Args:
        tasks: the names of the tasks.
        models: the outcomes of the models to merge, their base and their mean on the search items; all or some items,
            at least one scored model.
    """
    return {task: _scale([score for model in models for score in model.scored.get(task, ())]) for task in tasks}


def _scale(scores: Sequence[float]) -> Scale:
    # Exact sums: the order in which models are read from a record must not change a bit.
    size = len(scores)
    centre = math.fsum(scores) / size
    squares = [(score - centre) ** 2 for score in scores]
    if all(0 <= score <= 1 for score in scores):
        squares += 2 * [centre**2, (1 - centre) ** 2]
    return Scale(centre, math.sqrt(math.fsum(squares) / len(squares)) or 1.0)
