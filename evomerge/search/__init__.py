"""Searching a recipe's holes: spaces of genomes, and optimizers by ask and tell. Knows no torch and no models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evomerge.recipe import SearchSettings
from evomerge.search.cma_es import CmaEs
from evomerge.search.optimizer import Drawing, Optimizer, Proposal
from evomerge.search.outcome import Outcome, State
from evomerge.search.random_search import RandomSearch
from evomerge.search.space import Dimension, Genome, NumberSpace, Space
from evomerge.search.tpe import Tpe

OPTIMIZERS: Mapping[str, Callable[[NumberSpace, SearchSettings], Optimizer[Genome]]] = {
    "cma-es": CmaEs,
    "random": RandomSearch,
    "tpe": Tpe,
}
"""Every optimizer by the name that recipes use."""

__all__ = [
    "OPTIMIZERS",
    "Dimension",
    "Drawing",
    "Genome",
    "NumberSpace",
    "Optimizer",
    "Outcome",
    "Proposal",
    "Space",
    "State",
]
