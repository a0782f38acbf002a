"""Two models on the same items: difference, bootstrap, sign test, and how many items it would take to tell them apart.

And the optimism of a search score, which is measured on the items that chose the winner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evomerge.search import Outcome
from evomerge.study.intervals import LEVEL, Items, bootstrapped_sums, difference_interval, limits, sum_interval

POWER = 0.8
"""The probability with which a difference should be found significant."""


@dataclass(frozen=True)
class Comparison:
    """One model compared with another, paired by item.

    Attributes:
        model: the other model's name.
        difference: the first model's weighted sum of task means minus the other's.
        interval: its 95% interval, see `evomerge.study.intervals`.
        bootstrap_interval: its 95% interval by the percentile bootstrap over items.
        bootstrap_better: the share of the bootstrap's resamples in which the first model is better, from 0 to 1.
        gained: items on which the first model scores higher.
        lost: items on which it scores lower.
        same: items on which both score the same.
        p: the two-sided p-value of the sign test on these counts; where items are right or wrong, that is the exact
            McNemar test.
        tasks: how much each task contributes to the difference; they sum to it.
        items_needed: about how many items it takes to find a difference of this size significant with 80% power; None
            where it is not positive.
    """

    model: str
    difference: float
    interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]
    bootstrap_better: float
    gained: int
    lost: int
    same: int
    p: float
    tasks: Mapping[str, float]
    items_needed: int | None

    @property
    def items(self) -> int:
        """How many items were compared."""
        return self.gained + self.lost + self.same

    @property
    def counts(self) -> str:
        """The items gained and lost, with the p-value of the sign test, in words."""
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{self.gained:,} items gained, {self.lost:,} lost, {self.same:,} the same (sign test: {p})"


def compare(first: Items, second: Items, weights: Mapping[str, float], model: str) -> Comparison:
    """Returns how the first of two models compares with the second, item by item.

    Args:
        first: one model's items.
        second: the other's; the same tasks and numbers of items.
        weights: each task's factor, above 0.
        model: the other's name.
    """
    gaps = {task: np.subtract(first[task], second[task]) for task in weights}
    every = np.concatenate(list(gaps.values()))
    gained, lost = int((every > 0).sum()), int((every < 0).sum())
    tasks = {task: weights[task] * float(gap.mean()) for task, gap in gaps.items()}
    difference = sum(tasks.values())
    sums = bootstrapped_sums([(weights[task], gap) for task, gap in gaps.items()])
    return Comparison(
        model=model,
        difference=difference,
        interval=difference_interval(first, second, weights),
        bootstrap_interval=limits(sums),
        bootstrap_better=float((sums > 0).mean()),
        gained=gained,
        lost=lost,
        same=len(every) - gained - lost,
        p=sign_test(gained, lost),
        tasks=tasks,
        items_needed=_items_needed(difference, gaps, weights),
    )


def sign_test(gained: int, lost: int) -> float:
    """Returns the two-sided p-value of the exact sign test; on right and wrong items, of McNemar's.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 153-157.
    """
    changed = gained + lost
    tail = sum(math.comb(changed, count) for count in range(min(gained, lost) + 1))
    return float(min(1.0, tail / 2 ** (changed - 1))) if changed else 1.0


def _items_needed(
    difference: float, gaps: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float]
) -> int | None:
    """Returns `Comparison.items_needed`; several tasks keep their proportions.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43,
    207-211; for graded scores, the same with their variance.
    """
    if difference <= 0:
        return None
    normal = NormalDist()
    apart = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    variance = sum(weights[task] ** 2 * float(gap.var()) / len(gap) for task, gap in gaps.items())
    items = sum(map(len, gaps.values()))
    return max(math.ceil(items * variance * (apart / difference) ** 2), len(gaps))


@dataclass(frozen=True)
class Optimism:
    """How much a winner's search score overstates it, as it was chosen by that score.

    The items of the two splits may differ in difficulty. Models that the search did not choose show by how much.

    Attributes:
        drop: the winner's search score minus its holdout score.
        others_drop: the mean of the same of the models that it is compared with.
        estimate: `drop` minus `others_drop`.
        interval: the estimate's 95% interval.
    """

    drop: float
    others_drop: float
    estimate: float
    interval: tuple[float, float]


def optimism(
    winner: tuple[Outcome, Outcome], others: Sequence[tuple[Outcome, Outcome]], weights: Mapping[str, float]
) -> Optimism:
    """Returns the optimism of a winner's search score.

    Args:
        winner: its outcomes on the search items and on the holdout.
        others: those of the models that it is compared with, at least one.
        weights: each task's factor, above 0.
    """
    parts: list[tuple[float, NDArray[np.float64]]] = []
    drops = np.zeros(1 + len(others))
    for sign, outcomes in zip((1, -1), zip(winner, *others, strict=True), strict=True):
        for task, scores in paired(outcomes).items():
            if task in weights:
                drops += sign * weights[task] * scores.mean(axis=1)
                # Less the others item by item, so that what is hard for all models cancels out.
                parts.append((sign * weights[task], scores[0] - scores[1:].mean(axis=0)))
    own, rest = float(drops[0]), float(drops[1:].mean())
    return Optimism(own, rest, own - rest, sum_interval(parts))


def paired(outcomes: Sequence[Outcome]) -> dict[str, NDArray[np.float64]]:
    """Returns each task's scores on the items that all outcomes have: float64, shape (outcomes, items)."""
    found = {}
    for task in outcomes[0].items:
        scores = np.array([outcome.items[task] for outcome in outcomes], dtype=np.float64)  # None becomes NaN
        found[task] = scores[:, np.isfinite(scores).all(axis=0)]
    return found
