"""Searching a recipe's holes: spaces of genomes, and optimizers by ask and tell. Knows no torch and no models."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from evomerge.plugins import Table
from evomerge.recipe import Recipe, SearchSettings
from evomerge.search.cma_es import CmaEs
from evomerge.search.genetic import Genetic
from evomerge.search.optimizer import Drawing, Generational, Optimizer, Proposal
from evomerge.search.outcome import ItemKey, Outcome, State
from evomerge.search.random_search import RandomSearch
from evomerge.search.space import DEFAULT_SIGMA, Cube, Dimension, Genome, NumberSpace, Space
from evomerge.search.stack_space import IndicatorSpace, Layer, Stack, StackSpace
from evomerge.search.subsets import Subsets
from evomerge.search.tpe import Tpe

OptimizerMaker = Callable[[Any, SearchSettings], Optimizer[Any]]

"""(space, settings) to an optimizer of that space."""

OF_NUMBERS: Table[OptimizerMaker] = Table(
    "evomerge.optimizers", "optimizer", {"cma-es": CmaEs, "random": RandomSearch, "tpe": Tpe}, valid=callable
)
"""The optimizers of numbers, whose space is a `Cube`, by the name that recipes use."""

OF_STACKS: Table[OptimizerMaker] = Table(
    "evomerge.stack_optimizers", "optimizer of stacks", {"genetic": Genetic, "random": RandomSearch}, valid=callable
)
"""The optimizers of stacks of layers, whose space is a `StackSpace`."""

OPTIMIZERS: Mapping[str, OptimizerMaker] = ChainMap(OF_NUMBERS, OF_STACKS)  # type: ignore[arg-type]
"""Every optimizer."""


def optimizers_for(recipe: Recipe) -> Table[OptimizerMaker]:
    """Returns the optimizers for a recipe's holes, by name: for numbers, or for stacks of layers in any order."""
    hole = recipe.stack_hole
    return OF_STACKS if hole is not None and hole.search.encoding == "order" else OF_NUMBERS


__all__ = [
    "DEFAULT_SIGMA",
    "OF_NUMBERS",
    "OF_STACKS",
    "OPTIMIZERS",
    "Cube",
    "Dimension",
    "Drawing",
    "Generational",
    "Genome",
    "IndicatorSpace",
    "ItemKey",
    "Layer",
    "NumberSpace",
    "Optimizer",
    "Outcome",
    "Proposal",
    "Space",
    "Stack",
    "StackSpace",
    "State",
    "Subsets",
    "optimizers_for",
]
