"""Recipes: mergekit's YAML as input and output, with holes ``{search: [low, high]}`` for a search to fill."""

from evomerge.recipe.document import Component, DType, Recipe, SearchSettings, TaskEntry
from evomerge.recipe.sources import LayerSource, ModelEntry, Module, Slice
from evomerge.recipe.tokens import ModelToken, TokenEntry, TokenizerSection, ZeroToken
from evomerge.recipe.values import Filtered, Hole, Number, Value, gradient, is_choice, resolve

__all__ = [
    "Component",
    "DType",
    "Filtered",
    "Hole",
    "LayerSource",
    "ModelEntry",
    "ModelToken",
    "Module",
    "Number",
    "Recipe",
    "SearchSettings",
    "Slice",
    "TaskEntry",
    "TokenEntry",
    "TokenizerSection",
    "Value",
    "ZeroToken",
    "gradient",
    "is_choice",
    "resolve",
]
