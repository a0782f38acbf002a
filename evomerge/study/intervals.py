"""95% intervals of objectives and of their differences, paired by item, correct also if all items have the same score.

Each task has its own interval: Wilson's if every item scores 0 or 1, so that 0 of 300 does not count as certainly 0;
otherwise the bootstrap's. An objective is a weighted sum of the tasks' means; its interval combines theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95

Items = Mapping[str, Sequence[float]]
"""For each task, one number an item."""

_Values = NDArray[np.float64]
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_CHUNK = 1 << 20
"""Numbers drawn at once."""


def interval(model: Items, weights: Mapping[str, float]) -> tuple[float, float]:
    """Returns the interval of the weighted sum of a model's task means.

    Args:
        model: its items.
        weights: each task's factor, above 0.
    """
    return _joined((weights[task], _mean_limits(_array(model[task]))) for task in weights)


def difference_interval(first: Items, second: Items, weights: Mapping[str, float]) -> tuple[float, float]:
    """Returns the interval of the first model's weighted sum minus the second's, paired by item.

    Args:
        first: one model's items.
        second: the other's; the same tasks and numbers of items.
        weights: each task's factor, above 0.
    """
    return _joined((weights[task], _paired_limits(_array(first[task]), _array(second[task]))) for task in weights)


def sum_interval(parts: Sequence[tuple[float, NDArray[np.float64]]]) -> tuple[float, float]:
    """Returns the interval of a weighted sum of means.

    Args:
        parts: for each mean its factor, which may be negative, and one number an item.
    """
    return _joined((1.0, _mean_limits(factor * values)) for factor, values in parts)


def _joined(parts: Iterable[tuple[float, tuple[float, float, float]]]) -> tuple[float, float]:
    """Returns the limits of a weighted sum of independent means, each with its estimate and limits.

    Zou and Donner 2008, "Construction of confidence limits about effect measures: a general approach",
    Statistics in Medicine 27, 1693-1702: distances from estimate to limit add as standard errors do.
    """
    total, below, above = 0.0, 0.0, 0.0
    for weight, (estimate, low, high) in parts:
        total += weight * estimate
        below = math.hypot(below, weight * (estimate - low))
        above = math.hypot(above, weight * (high - estimate))
    return total - below, total + above


def _mean_limits(values: _Values) -> tuple[float, float, float]:
    """Returns the mean and its limits.

    Where all are 0 or 1: Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22, 209-212.
    """
    if not _binary(values):
        return _bootstrapped(values)
    size, mean = len(values), float(values.mean())
    centre, shrink = mean + _Z**2 / (2 * size), 1 + _Z**2 / size
    half = _Z * math.sqrt(mean * (1 - mean) / size + (_Z / (2 * size)) ** 2)
    return mean, min(max((centre - half) / shrink, 0.0), mean), max(min((centre + half) / shrink, 1.0), mean)


def _paired_limits(first: _Values, second: _Values) -> tuple[float, float, float]:
    """Returns the mean of the items' differences and its limits.

    Where all are 0 or 1: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statistics in Medicine 17, 2635-2650, method 10.
    """
    if not (_binary(first) and _binary(second)):
        return _bootstrapped(first - second)
    (p1, low1, high1), (p2, low2, high2) = _mean_limits(first), _mean_limits(second)
    size = len(first)
    both, neither = float((first * second).sum()), float(((1 - first) * (1 - second)).sum())
    excess = both * neither - float((first > second).sum()) * float((first < second).sum())
    # The correction for continuity: a correlation that rests on less than half an item counts as zero.
    excess = min(excess, max(excess - size / 2, 0.0))
    phi = excess / ((size**2 * math.sqrt(p1 * (1 - p1) * p2 * (1 - p2))) or math.inf)
    difference = p1 - p2

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    return (
        difference,
        difference - distance(p1 - low1, high2 - p2),
        difference + distance(high1 - p1, p2 - low2),
    )


def _bootstrapped(values: _Values) -> tuple[float, float, float]:
    """Returns the mean and the limits of the percentile bootstrap.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; of paired differences: Koehn 2004,
    "Statistical Significance Tests for Machine Translation Evaluation", https://aclanthology.org/W04-3250.
    """
    mean = float(values.mean())
    low, high = limits(bootstrapped_sums([(1.0, values)]))
    return mean, min(low, mean), max(high, mean)


def bootstrapped_sums(parts: Sequence[tuple[float, _Values]]) -> _Values:
    """Returns the weighted sum of means in each of the bootstrap's resamples: shape (`RESAMPLES`,).

    Args:
        parts: for each mean its factor, and one number an item.
    """
    rng = np.random.default_rng(0)
    sums = np.zeros(RESAMPLES)
    for factor, values in parts:
        rows = max(1, _CHUNK // len(values))
        for start in range(0, RESAMPLES, rows):
            end = min(start + rows, RESAMPLES)
            sums[start:end] += factor * rng.choice(values, (end - start, len(values))).mean(axis=1)
    return sums


def limits(draws: _Values) -> tuple[float, float]:
    """Returns the ends between which the middle 95% of the draws lie."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _binary(values: _Values) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _array(values: Sequence[float]) -> _Values:
    return np.asarray(values, dtype=np.float64)
