"""Which module of a recipe a tensor belongs to, where the recipe merges a model's modules in ways of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from evomerge.document import Location
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

# mergekit's names for modules, where the tensors' names do not have them. The projector lies inside the tower in
# some models, and so comes first.
_NAMED = {
    "multi_modal_projector": re.compile(r"(.*\.)?(multi_modal_projector|mm_projector|visual\.\w*merger\w*)\..*"),
    "vision_tower": re.compile(r"(.*\.)?(vision_tower|vision_model|visual)\..*"),
}


def owners(
    recipe: Recipe, names: Iterable[str], in_layers: Callable[[str], bool]
) -> tuple[dict[str, Location], Location]:
    """Returns the location of each tensor's module in the recipe, and that of the module with the layers.

    A module owns the tensors whose names contain its name (``encoder`` in ``encoder.block.0...``). The others, such as
    embeddings and the head, belong to the module whose name is in none; else to the one with the layers.

    Args:
        recipe: the recipe.
        names: every tensor's name.
        in_layers: whether a tensor belongs to a layer of the language model.

    Raises:
        RecipeError: with a line for every module that owns no tensor, or that has slices but no layers.
    """
    modules = recipe.modules_by_place()
    first, *others = modules
    if not others:
        return dict.fromkeys(names, first), first
    known = {name: _NAMED.get(name) or re.compile(rf"(.*\.)?{re.escape(name)}\..*") for name in recipe.modules or ()}
    patterns = {("modules", name): known[name] for name in [*(n for n in _NAMED if n in known), *known]}
    owned: dict[str, Location | None] = {
        name: next((module for module, pattern in patterns.items() if pattern.fullmatch(name)), None) for name in names
    }
    empty = [module for module in modules if module not in owned.values()]
    main = empty[0] if empty else next((owned[name] for name in owned if in_layers(name) and owned[name]), first)
    faults = [recipe.fault(module, f'module "{module[-1]}" has no tensors; remove it') for module in empty[1:]]
    faults += [
        recipe.fault(location, "only the module with the language model's layers can be made of slices; use models")
        for location, module in modules.items()
        if location != main and module.slices
    ]
    if main is None or not any(in_layers(name) and owned[name] in (main, None) for name in owned):
        faults.append(recipe.fault(("modules",), "none of the modules is the language model; add its text_decoder"))
    if faults or main is None:
        raise RecipeError(faults)
    return {name: owner or main for name, owner in owned.items()}, main
