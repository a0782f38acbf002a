"""CMA-ES: the covariance matrix adaptation evolution strategy, pycma's, by ask and tell.

Hansen 2016, "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772; restarts with a
population twice as large: Auger and Hansen 2005, "A Restart CMA Evolution Strategy With Increasing Population
Size".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from evomerge.recipe import SearchSettings
from evomerge.search.optimizer import Result
from evomerge.search.space import Genome, SearchSpace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns where matplotlib, which only its plots need, is missing
    import cma

SMALLEST_STEP = 1e-4
"""A run whose steps are smaller than this part of every range has converged."""

LARGEST_POPULATION = 8
"""Restarts double the population, up to this many times its first size: evaluations are too dear for more."""

DEFAULT_SIGMA = 1 / 6
"""The first step, as a fraction of each range: three steps from the middle reach both ends."""


def default_population(dimensions: int) -> int:
    """Returns the population for a number of dimensions: 4 + floor(3 ln n), Hansen 2016, table 1."""
    return 4 + math.floor(3 * math.log(dimensions))


class CmaEs:
    """CMA-ES in the unit cube, started at the space's start.

    Every random number comes from an own generator, so nothing that draws from numpy's global one can change
    the search. Where a run has converged, a new one starts at the best genome so far with twice the
    population. A failed candidate ranks behind all others of its generation.

    Args:
        space: what is searched.
        settings: `seed`, `sigma` and `population` are used.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings) -> None:
        self._size = len(space)
        self._rng = np.random.default_rng(settings.seed)
        self._sigma = settings.sigma or DEFAULT_SIGMA
        self._population = settings.population or default_population(self._size)
        self._most = LARGEST_POPULATION * self._population
        self._best: Result | None = None
        self._strategy = self._started(tuple(space.start))

    def _started(self, mean: Genome) -> cma.CMAEvolutionStrategy:
        # pycma does not take one dimension: a second one, on which nothing depends, goes along.
        mean = mean if self._size > 1 else (*mean, 0.5)
        options = {
            "bounds": [0, 1],
            "popsize": self._population,
            "randn": lambda *shape: self._rng.standard_normal(shape),
            "seed": math.nan,  # pycma's "leave the global generator alone"
            "verbose": -9,
            "verb_log": 0,
            "maxiter": math.inf,
            # Accuracies come in steps: equal scores are no sign that a run is over, but a tiny step size is.
            "tolx": SMALLEST_STEP,
            "tolfun": 0,
            "tolfunhist": 0,
            "tolfunrel": 0,
            "tolflatfitness": math.inf,
            "tolstagnation": math.inf,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cma.CMAEvolutionStrategy(mean, self._sigma, options)

    def ask(self) -> list[Genome]:
        """Returns one generation, `population` genomes."""
        self._points = self._strategy.ask()
        return [tuple(float(gene) for gene in point[: self._size]) for point in self._points]

    def tell(self, results: Sequence[Result]) -> None:
        """Takes one generation's results; moves the distribution, or starts anew where it has converged."""
        scores = [result.score for result in results if result.score is not None]
        if not scores:
            return  # a generation of failures says nothing about where to go
        # pycma minimizes, and only ranks count: a failure goes behind the worst.
        worst = 1 - min(scores)
        asked = [tuple(point[: self._size].tolist()) for point in self._points]
        points = [
            point if genome == result.genome else np.array([*result.genome, *point[self._size :]])
            for point, genome, result in zip(self._points, asked, results, strict=True)
        ]
        self._strategy.tell(points, [worst if result.score is None else -result.score for result in results])
        for result in results:
            if result.score is not None and (
                self._best is None or self._best.score is None or result.score > self._best.score
            ):
                self._best = result
        if self._strategy.stop() and self._best is not None:
            self._population = min(2 * self._population, self._most)
            self._strategy = self._started(self._best.genome)
