"""Searching a recipe's holes: spaces of genomes, and optimizers by ask and tell. Knows no torch and no models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.recipe import Recipe, SearchSettings
from evomerge.search.cma_es import CmaEs
from evomerge.search.genetic import Genetic
from evomerge.search.optimizer import Drawing, Generational, Optimizer, Proposal
from evomerge.search.outcome import Outcome, State
from evomerge.search.random_search import RandomSearch
from evomerge.search.space import DEFAULT_SIGMA, Dimension, Genome, NumberSpace, Space
from evomerge.search.stack_space import IndicatorSpace, Layer, Stack, StackSpace
from evomerge.search.tpe import Tpe

OptimizerMaker = Callable[[Any, SearchSettings], Optimizer[Any]]

_OF_NUMBERS: Mapping[str, OptimizerMaker] = {"cma-es": CmaEs, "random": RandomSearch, "tpe": Tpe}
_OF_STACKS: Mapping[str, OptimizerMaker] = {"genetic": Genetic, "random": RandomSearch}

OPTIMIZERS: Mapping[str, OptimizerMaker] = {**_OF_NUMBERS, **_OF_STACKS}
"""Every optimizer by the name that recipes use."""


def optimizers_for(recipe: Recipe) -> Mapping[str, OptimizerMaker]:
    """Returns the optimizers for a recipe's holes, by name: for numbers, or for stacks of layers in any order."""
    hole = recipe.stack_hole
    return _OF_STACKS if hole is not None and hole.search.encoding == "order" else _OF_NUMBERS


__all__ = [
    "DEFAULT_SIGMA",
    "OPTIMIZERS",
    "Dimension",
    "Drawing",
    "Generational",
    "Genome",
    "IndicatorSpace",
    "Layer",
    "NumberSpace",
    "Optimizer",
    "Outcome",
    "Proposal",
    "Space",
    "Stack",
    "StackSpace",
    "State",
    "optimizers_for",
]
