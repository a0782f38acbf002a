"""Random search: independent, uniform candidates; the baseline that an optimizer has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.recipe import SearchSettings
from evomerge.search.optimizer import Result
from evomerge.search.space import Genome, SearchSpace


class RandomSearch:
    """Uniform genomes, one a generation.

    Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization",
    https://jmlr.org/papers/v13/bergstra12a.html.

    Args:
        space: what is searched.
        settings: `seed` is used.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings) -> None:
        self._size = len(space)
        self._rng = np.random.default_rng(settings.seed)

    def ask(self) -> list[Genome]:
        """Returns one genome."""
        return [tuple(float(gene) for gene in self._rng.random(self._size))]

    def tell(self, results: Sequence[Result]) -> None:
        """Takes the result and learns nothing from it."""
