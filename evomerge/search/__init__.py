"""Searching a recipe's holes: the space, and the optimizers by ask and tell. Knows no torch and no models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evomerge.recipe import SearchSettings
from evomerge.search.cma_es import CmaEs
from evomerge.search.optimizer import Optimizer, Result
from evomerge.search.random_search import RandomSearch
from evomerge.search.space import Dimension, Genome, SearchSpace
from evomerge.search.tpe import Tpe

OPTIMIZERS: Mapping[str, Callable[[SearchSpace, SearchSettings], Optimizer]] = {
    "cma-es": CmaEs,
    "random": RandomSearch,
    "tpe": Tpe,
}
"""Every optimizer by the name that recipes use."""

__all__ = ["OPTIMIZERS", "Dimension", "Genome", "Optimizer", "Result", "SearchSpace"]
