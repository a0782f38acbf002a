"""Opening the models that a recipe names, for search, check, apply and eval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.architecture import Architecture, LanguagePart, check_values
from evomerge.checkpoint import Checkpoint, open_checkpoint
from evomerge.errors import ArchitectureError, CheckpointError, EvomergeError, RecipeError
from evomerge.merge.component import language_parts
from evomerge.merge.heads import with_own_heads
from evomerge.merge.parts import checked_method
from evomerge.merge.plan import Plan
from evomerge.merge.planner import plan
from evomerge.recipe import Recipe
from evomerge.tokenizer import aligned


def open_recipe(recipe: Recipe | Path) -> Plan:
    """Returns the plan of a recipe without holes.

    Args:
        recipe: the recipe, or its file.

    Raises:
        RecipeError: with a line for every fault, models that cannot be read among them.
        ArchitectureError: a model's layers cannot be found.
    """
    recipe = Recipe.load(recipe) if isinstance(recipe, Path) else recipe
    faults = [
        recipe.fault(location, "the recipe has a hole; run evomerge search, and apply its best.yaml")
        for location in recipe.holes()
    ]
    checkpoints: dict[str, Checkpoint] = {}
    try:
        checked_method(recipe)
    except RecipeError as fault:
        faults += fault.faults
    try:
        checkpoints = open_models(recipe)
    except EvomergeError as fault:
        faults += str(fault).splitlines()
    if faults:
        raise RecipeError(faults)
    return plan(recipe, checkpoints)


def open_models(recipe: Recipe, made: Mapping[str, Checkpoint] | None = None) -> dict[str, Checkpoint]:
    """Returns every model that the recipe names, opened, by its name there; no weights are loaded.

    They are opened once for all candidates of a search. Each has a head of its own where one of them has. Where the
    recipe names the result's vocabulary, each is seen with that vocabulary. Where it merges a component, only that
    component of each is seen, and what else the larger model has is one more checkpoint.

    Args:
        recipe: the recipe.
        made: models that are open already, by their names in the recipe.

    Raises:
        RecipeError: with a line for every model that cannot be opened, whose config.json has a wrong value, or whose
            layers cannot be found.
    """
    opened: dict[str, Checkpoint] = {}
    faults: list[str] = []
    kind = LanguagePart if recipe.component else Architecture
    for reference in recipe.references():
        try:
            opened[reference] = (made or {}).get(reference) or open_checkpoint(reference, recipe.folders)
            check_values(opened[reference].config)
            kind.of(opened[reference].config, opened[reference].tensors)
        except CheckpointError as fault:
            faults += recipe.model_faults(reference, fault)
        except ArchitectureError as fault:
            faults += recipe.model_faults(reference, ArchitectureError(f"{reference}: {fault}"))
    if faults:
        raise RecipeError(faults)
    if recipe.component is None:
        headed = with_own_heads(opened)
        return aligned(recipe, headed) if recipe.vocabulary() is not None else headed
    if recipe.vocabulary() is not None:
        message = "a component keeps the vocabulary of the larger model; remove the tokenizer from the recipe"
        key = "tokenizer" if recipe.tokenizer_source is None else "tokenizer_source"
        raise RecipeError([recipe.fault((key,), message)])
    parts = language_parts(recipe, opened)
    return parts | with_own_heads({name: parts[name] for name in opened})
