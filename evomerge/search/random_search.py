"""Random search: independent, uniform candidates; the baseline for every optimizer."""

from __future__ import annotations

import numpy as np

from evomerge.recipe import SearchSettings
from evomerge.search.optimizer import BLOCK, Drawing, Proposal
from evomerge.search.outcome import Outcome
from evomerge.search.space import G, Space


class RandomSearch(Drawing[G]):
    """Random genomes of any space, ten to a generation.

    Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization",
    https://jmlr.org/papers/v13/bergstra12a.html.

    Args:
        space: what is searched.
        settings: `seed` is used.
    """

    def __init__(self, space: Space[G], settings: SearchSettings) -> None:
        super().__init__()
        self._space = space
        self._rng = np.random.default_rng(settings.seed)

    def _draw(self) -> tuple[G, int]:
        return self._space.sample(self._rng), self._count // BLOCK

    def _learn(self, proposal: Proposal[G], outcome: Outcome) -> None:
        """Learns nothing."""
