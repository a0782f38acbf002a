"""Recipes: mergekit's YAML as input and output, with holes ``{search: [low, high]}`` for a search to fill."""

from evomerge.recipe.document import (
    DType,
    LayerSource,
    ModelEntry,
    Recipe,
    SearchSettings,
    Slice,
    TaskEntry,
)
from evomerge.recipe.values import Filtered, Hole, Number, Value, gradient, is_choice, resolve

__all__ = [
    "DType",
    "Filtered",
    "Hole",
    "LayerSource",
    "ModelEntry",
    "Number",
    "Recipe",
    "SearchSettings",
    "Slice",
    "TaskEntry",
    "Value",
    "gradient",
    "is_choice",
    "resolve",
]
