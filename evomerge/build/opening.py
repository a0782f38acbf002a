"""Opening the models that a recipe names: the one place where search, check, apply and eval get them from."""

from __future__ import annotations

from evomerge.build.component import language_parts
from evomerge.build.heads import with_own_heads
from evomerge.checkpoint import Checkpoint, open_checkpoint
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe


def open_models(recipe: Recipe) -> dict[str, Checkpoint]:
    """Returns every model that the recipe names, opened, by its name there; no weights are loaded.

    They are opened once and serve every candidate of a search. Each has a head of its own where one of them has.
    Where the recipe merges a component, each is seen through it, and what the larger model has besides is one more.

    Raises:
        RecipeError: with a line for every model that cannot be opened.
        ArchitectureError: a model has no such component.
    """
    opened: dict[str, Checkpoint] = {}
    faults: list[str] = []
    for reference in recipe.references():
        try:
            opened[reference] = open_checkpoint(reference)
        except CheckpointError as fault:
            faults += str(fault).splitlines()
    if faults:
        raise RecipeError(faults)
    if recipe.component is None:
        return with_own_heads(opened)
    parts = language_parts(recipe, opened)
    return parts | with_own_heads({name: parts[name] for name in opened})
