"""`Subsets`: the search items that each generation is scored on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from evomerge.recipe import ItemSubsets, SearchSettings
from evomerge.search.outcome import ItemKey


class Subsets:
    """A fresh random subset of the search items for each generation, growing until it has all.

    Tasks share a subset in proportion to their weights in the objective, whose noise is then smallest; each has at
    least one item, and none more than it has.

    Args:
        sizes: how many search items each task has.
        weights: each task's share in the objective.
        subsets: how the subsets grow.
        seed: seeds them, together with the generation.

    Attributes:
        settings: how the subsets grow.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], subsets: ItemSubsets, seed: int) -> None:
        self._sizes = dict(sizes)
        self._weights = weights
        self._total = sum(sizes.values())
        self.settings = subsets
        self._seed = seed

    @classmethod
    def of(cls, settings: SearchSettings, sizes: Mapping[str, int], weights: Mapping[str, float]) -> Subsets | None:
        """Returns the subsets that a search asks for; None where every candidate is scored on all items."""
        subsets = settings.subsets(sum(sizes.values()))
        return cls(sizes, weights, subsets, settings.seed) if subsets else None

    def count(self, generation: int) -> int:
        """Returns how many items a generation is scored on."""
        start, growth = max(self.settings.start, len(self._sizes)), self.settings.growth
        # The logarithms first: the power may be too large for a number.
        if start >= self._total or math.log(start) + generation * math.log(growth) >= math.log(self._total):
            return self._total
        return min(math.ceil(start * growth**generation), self._total)

    def __call__(self, generation: int) -> tuple[ItemKey, ...] | None:
        """Returns the items that a generation is scored on, task by task; None for all."""
        count = self.count(generation)
        if count == self._total:
            return None
        shares = dict.fromkeys(self._sizes, 1)
        for _ in range(count - len(shares)):
            open_ = [task for task, size in self._sizes.items() if shares[task] < size]
            shares[min(open_, key=lambda task: shares[task] / self._weights[task])] += 1
        rng = np.random.default_rng([self._seed, generation])
        return tuple(
            (task, int(index))
            for task, size in self._sizes.items()
            for index in sorted(rng.permutation(size)[: shares[task]])
        )
