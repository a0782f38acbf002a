"""CMA-ES: the covariance matrix adaptation evolution strategy, pycma's, by ask and tell.

Hansen 2016, "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772; restarts with a
population twice as large: Auger and Hansen 2005, "A Restart CMA Evolution Strategy With Increasing Population
Size".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import SearchSettings
from evomerge.search.optimizer import Generational
from evomerge.search.space import DEFAULT_SIGMA, Cube, Genome

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns where matplotlib, which only its plots need, is missing
    import cma

SMALLEST_STEP = 1e-4
"""A run whose steps are smaller than this part of every range has converged."""

LARGEST_POPULATION = 8
"""Restarts double the population, up to this many times its first size: more would cost too many evaluations."""


def default_population(dimensions: int) -> int:
    """Returns the population for a number of dimensions: 4 + floor(3 ln n), Hansen 2016, table 1."""
    return 4 + math.floor(3 * math.log(dimensions))


class CmaEs(Generational[Genome]):
    """CMA-ES in the unit cube, started at the space's start.

    All random numbers come from a generator of its own, so nothing that draws from numpy's global one can change the
    search. A run that has converged is restarted with twice the population: at the best
    genome so far, or where subsets of items make scores noisy, at the mean of its distribution. A failed
    candidate ranks behind all others of its generation.

    Args:
        space: what is searched.
        settings: `seed`, `sigma`, `population` and `items` are used.
    """

    def __init__(self, space: Cube, settings: SearchSettings) -> None:
        super().__init__()
        self._size = len(space)
        self._rng = np.random.default_rng(settings.seed)
        self._sigma = settings.sigma or DEFAULT_SIGMA
        self._population = settings.population or default_population(self._size)
        self._noisy = settings.items != "all"
        self._largest = LARGEST_POPULATION * self._population
        self._best: tuple[float, Genome] | None = None
        self._strategy = self._started(tuple(space.start.tolist()))
        self._points: list[NDArray[np.float64]] = []

    def _started(self, mean: Genome) -> cma.CMAEvolutionStrategy:
        # pycma requires two dimensions: a second one that nothing depends on is added.
        mean = mean if self._size > 1 else (*mean, 0.5)
        options = {
            "bounds": [0, 1],
            "popsize": self._population,
            "randn": lambda *shape: self._rng.standard_normal(shape),
            "seed": math.nan,  # pycma's "leave the global generator alone"
            "verbose": -9,
            "verb_log": 0,
            "maxiter": math.inf,
            # Accuracies come in steps: equal scores do not mean that a run is over, a tiny step size does.
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

    def _next(self) -> list[Genome]:
        self._points = self._strategy.ask()
        return [tuple(point[: self._size].tolist()) for point in self._points]

    def _learn_generation(self, told: Mapping[int, tuple[Genome, float | None]]) -> None:
        """Moves the distribution, and restarts where it has converged."""
        generation = list(told.values())
        scored = [(score, genome) for genome, score in generation if score is not None]
        if not scored:
            return  # a generation of failures does not say where to go
        # pycma minimizes, and only ranks count: a failure ranks behind the worst.
        worst = 1 - min(score for score, _ in scored)
        # What was told counts, not what was drawn; a dimension that was added keeps its value.
        points = [
            np.array([*genome, *point[self._size :]])
            for point, (genome, _) in zip(self._points, generation, strict=True)
        ]
        self._strategy.tell(points, [worst if score is None else -score for _, score in generation])
        best = max(scored, key=lambda pair: pair[0])
        if self._best is None or best[0] > self._best[0]:
            self._best = best
        if self._strategy.stop():
            self._population = min(2 * self._population, self._largest)
            self._strategy = self._started(self.favourite() if self._noisy else self._best[1])

    def favourite(self) -> Genome:
        """Returns the mean of the distribution, which is better than any of its candidates by noisy scores."""
        return tuple(self._strategy.result.xfavorite[: self._size].tolist())
