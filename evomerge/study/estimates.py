"""`Estimator`: the objective on all search items, of the scores on some."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import ItemSubsets
from evomerge.search import Outcome
from evomerge.study.objective import Objective
from evomerge.study.standings import coordinates, squared_distances, typical

MOST_EARLIER = 400
"""Predictions are made of this many of the latest evaluations."""

ROUNDS = 10
"""In which the hardness of items and the quality of candidates are fitted in turn."""

PRIOR = 2.0
"""What is known of all candidates counts as much as this many candidates at no distance."""

NEAR = 0.2
"""Squared distance at which a candidate's weight falls off, in units of the median one of the latest candidates."""

_Floats = NDArray[np.float64]


class Estimator:
    """Estimates objectives by the difference estimator: mean prediction plus the mean residual of the scored items.

    Whatever the prediction, the estimate is right on average over random subsets; the better the prediction, the
    smaller the noise. It is made of earlier generations alone, so that it does not depend on the order in which a
    generation's candidates are scored. Cochran 1977, "Sampling Techniques", §7.

    Args:
        objective: what is maximized.
        sizes: how many search items each task has.
        subsets: says how items are predicted.
    """

    def __init__(self, objective: Objective, sizes: Mapping[str, int], subsets: ItemSubsets) -> None:
        self._objective = objective
        ends = np.cumsum(list(sizes.values())).tolist()
        self._parts = {task: slice(end - size, end) for (task, size), end in zip(sizes.items(), ends, strict=True)}
        self._size = sum(sizes.values())
        self._near = subsets.estimator == "neighbors"
        self._rows: list[tuple[int, Any, _Floats]] = []  # generation, genome, score of each item
        self._fitted = -1  # the generation that the fit below serves
        self._earlier: list[tuple[int, Any, _Floats]] = []
        self._hardness = np.zeros(0)
        self._variances: dict[str, float] = {}

    def learn(self, outcome: Outcome, generation: int, genome: Any = None) -> None:
        """Takes scores that later generations are predicted by.

        Args:
            outcome: the scores.
            generation: whose candidate it is; -1 for models that were scored before all candidates.
            genome: the candidate, as JSON data; None for other models.
        """
        if outcome.items:
            self._rows.append((generation, genome, self._flat(outcome)))

    def estimate(self, outcome: Outcome, generation: int, genome: Any) -> tuple[float, float]:
        """Returns the objective of a candidate of `generation` on all items, and its standard error.

        Args:
            outcome: scores on some items of each task.
            generation: the candidate's.
            genome: the candidate, as JSON data.
        """
        if self._fitted != generation:
            self._fit(generation)
        scores = self._flat(outcome)
        predicted = self._predicted(genome)
        means: dict[str, float] = {}
        variance = 0.0
        for task, part in self._parts.items():
            own = scores[part]
            count = int(np.isfinite(own).sum())
            means[task] = float(predicted[part].mean() + np.nanmean(own - predicted[part]))
            # The share of items that are not scored: with all, nothing is left to chance.
            rest = 1 - count / len(own)
            variance += (self._objective.slopes[task] ** 2) * self._variances[task] / count * rest
        return self._objective(means), math.sqrt(variance)

    def _flat(self, outcome: Outcome) -> _Floats:
        values = [score for task in self._parts for score in outcome.items[task]]
        return np.array(values, dtype=np.float64)

    def _fit(self, generation: int) -> None:
        """Fits how hard each item is, and how noisy each task, to the generations before one."""
        self._fitted = generation
        self._earlier = [one for one in self._rows if one[0] < generation][-MOST_EARLIER:]
        if not self._earlier:  # every model to merge has failed
            self._hardness = np.zeros(self._size)
            self._variances = dict.fromkeys(self._parts, 1.0)
            return
        scores = np.stack([row for _, _, row in self._earlier])
        seen = np.isfinite(scores)
        filled = np.where(seen, scores, 0.0)
        self._hardness = np.zeros(self._size)
        for task, part in self._parts.items():
            values, there = filled[:, part], seen[:, part]
            counts = there.sum(0)
            quality = np.zeros(len(values))
            level = values.sum() / there.sum()
            for _ in range(ROUNDS):
                item = ((values - quality[:, None] * there).sum(0) + level) / (counts + 1)
                quality = ((values - item * there).sum(1)) / there.sum(1)
                quality -= quality.mean()
            self._hardness[part] = item
            rest = values - (item + quality[:, None]) * there
            # What was fitted leaves less: a number for each candidate, and most of one for each item.
            free = there.sum() - len(values) - (counts / (counts + 1)).sum()
            self._variances[task] = float(np.square(rest).sum() / max(free, 1.0))

        if self._near:
            self._variances.update(self._spread_near())

    def _predicted(self, genome: Any) -> _Floats:
        """Returns what a candidate is predicted to score on each item."""
        alike = self._alike()
        if not self._near or not alike:
            return self._hardness
        points = coordinates([genome, *(other for other, _ in alike)])
        weights = np.exp(-squared_distances(points[:1], points[1:]) / (2 * _scale(points[1:])))
        found: _Floats = self._hardness + self._shifts(weights)[0]
        return found

    def _alike(self) -> list[tuple[Any, _Floats]]:
        return [(genome, row) for _, genome, row in self._earlier if genome is not None]

    def _shifts(self, weights: _Floats) -> _Floats:
        """Returns what to add to the hardness of items, shape (candidates, items), by the weights of earlier ones."""
        rest = np.stack([row for _, row in self._alike()]) - self._hardness
        seen = np.isfinite(rest)
        found: _Floats = (weights @ np.where(seen, rest, 0.0)) / (weights @ seen + PRIOR)
        return found

    def _spread_near(self) -> dict[str, float]:
        """Returns the variance of what is left of each task's scores when each earlier candidate is predicted."""
        alike = self._alike()
        if len(alike) < 2:
            return {}
        points = coordinates([genome for genome, _ in alike])
        weights = np.exp(-squared_distances(points, points) / (2 * _scale(points)))
        np.fill_diagonal(weights, 0.0)  # by the others alone
        rest = np.stack([row for _, row in alike]) - self._hardness - self._shifts(weights)
        found = {}
        for task, part in self._parts.items():
            own = rest[:, part]
            own = own - np.nanmean(own, axis=1, keepdims=True)
            free = np.isfinite(own).sum() - len(own)
            if free > 0:
                found[task] = float(np.nansum(np.square(own)) / free)
        return found


def _scale(points: _Floats) -> float:
    """Returns the squared distance at which weights fall off."""
    latest = points[-30:]
    return NEAR * typical(squared_distances(latest, latest))
