"""Bootstrap intervals, paired by item: every model is measured on the same resampled items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95

Items = Mapping[str, Sequence[float]]
"""For each task, one number an item."""


def resampled_objectives(
    models: Sequence[Items],
    objective: Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.float64]],
    seed: int,
) -> NDArray[np.float64]:
    """Returns each model's objective on resampled items: float64, shape (models, `RESAMPLES`).

    Items are drawn with replacement within each task; resample k holds the same items for every model, so
    that differences between models have the precision of a paired comparison.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6 and 13; paired by item: Koehn 2004,
    "Statistical Significance Tests for Machine Translation Evaluation", https://aclanthology.org/W04-3250.

    Args:
        models: each model's items; all have the same tasks and numbers of items.
        objective: maps task means, each of shape (`RESAMPLES`,), to objectives of that shape.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    means: list[dict[str, NDArray[np.float64]]] = [{} for _ in models]
    for task in models[0]:
        values = np.array([list(model[task]) for model in models], dtype=np.float64)
        size = values.shape[1]
        # How often each item is drawn says all: a draw's mean is a product, and no index matrix is needed.
        counts = rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
        for mean, row in zip(means, values @ counts.T.astype(np.float64) / size, strict=True):
            mean[task] = row
    return np.stack([objective(mean) for mean in means])


def interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the percentile interval of level `LEVEL` of bootstrap samples."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
