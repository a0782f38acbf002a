"""Recipes: mergekit's YAML as input and output, with holes ``{search: [low, high]}`` for a search to fill."""

from evomerge.recipe.document import Recipe, SearchSettings
from evomerge.recipe.items import ItemSubsets
from evomerge.recipe.sources import LayerSource, Slice
from evomerge.recipe.stacks import Mutations, StackHole, StackSearch
from evomerge.recipe.staged import BEST, StagedRecipe, is_run, load, recipe_file
from evomerge.recipe.tokens import ModelToken, TokenEntry, TokenizerSection, ZeroToken
from evomerge.recipe.values import Filtered, Hole, Number, Value, gradient, is_choice, resolve

__all__ = [
    "BEST",
    "Filtered",
    "Hole",
    "ItemSubsets",
    "LayerSource",
    "ModelToken",
    "Mutations",
    "Number",
    "Recipe",
    "SearchSettings",
    "Slice",
    "StackHole",
    "StackSearch",
    "StagedRecipe",
    "TokenEntry",
    "TokenizerSection",
    "Value",
    "ZeroToken",
    "gradient",
    "is_choice",
    "is_run",
    "load",
    "recipe_file",
    "resolve",
]
