"""What a recipe's holes span, given its models: numbers or stacks of layers; and the plan of the start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.architecture import Architecture, Fold, fold_of
from evomerge.checkpoint import Checkpoint
from evomerge.document import Location
from evomerge.errors import ArchitectureError, EvomergeError, RecipeError
from evomerge.merge import Plan, Planner, checked_method, hole_starts, parents, plan
from evomerge.recipe import LayerSource, Recipe, SearchSettings, Slice
from evomerge.runtime import StackLayer, by_reference
from evomerge.search import DEFAULT_SIGMA, IndicatorSpace, NumberSpace, Proposal, Space, StackSpace


def space_of(
    recipe: Recipe, settings: SearchSettings, checkpoints: Mapping[str, Checkpoint]
) -> NumberSpace | StackSpace | IndicatorSpace:
    """Returns what is searched.

    Args:
        recipe: a recipe with holes.
        settings: how they are searched.
        checkpoints: its models, opened.

    Raises:
        RecipeError: a hole does not fit the models.
        ArchitectureError: a model's layers cannot be found, or scales cannot be folded into them.
    """
    hole = recipe.stack_hole
    if hole is None:
        return _numbers(recipe, checkpoints)
    pool = [checkpoints[name] for name in hole.search.models]
    depths = [Architecture.of(one.config, one.tensors).num_layers for one in pool]
    fold = _fold(recipe, hole.search.models, checkpoints) if hole.search.scale is not None else None
    if hole.search.encoding == "order":
        return StackSpace(recipe, depths, fold)
    return IndicatorSpace(recipe, depths, fold, sigma=settings.sigma or DEFAULT_SIGMA)


def first_plan(space: NumberSpace | StackSpace | IndicatorSpace, checkpoints: Mapping[str, Checkpoint]) -> Plan:
    """Returns the plan of the space's start: of stacks, the first model as it is.

    Raises:
        RecipeError: the models do not fit together.
        ArchitectureError: the layers of one cannot be stacked on those of another.
    """
    if isinstance(space, NumberSpace):
        return plan(space.decode([float(gene) for gene in space.start]), checkpoints)
    stacks = space.stacks if isinstance(space, IndicatorSpace) else space
    first, *others = stacks.parents
    for other in others:
        for lower, upper in ((first, other), (other, first)):
            joined = stacks.repaired((*lower[: len(lower) // 2], *upper[len(upper) // 2 :]))
            plan(stacks.decode(joined), checkpoints)
    return plan(stacks.decode(first), checkpoints)


def whole_stack(recipe: Recipe, model: str, checkpoint: Checkpoint) -> Recipe:
    """Returns the recipe of all layers of `model`, in the form that a search for stacks gives its candidates."""
    depth = Architecture.of(checkpoint.config, checkpoint.tensors).num_layers
    layers = Slice(sources=(LayerSource(model=model, layer_range=(0, depth)),))
    return recipe.fill({("slices",): (layers,)}).merge_only()


def sharing_order(
    space: Space[Any], proposals: Iterable[Proposal[Any]], planner: Planner
) -> list[tuple[Proposal[Any], Plan | None]]:
    """Returns stacks in an order in which those with the same first layers follow each other.

    Args:
        space: what the proposals' genomes stand for.
        proposals: the stacks.
        planner: plans them.

    Returns:
        Each proposal with its plan; None where it has none that can be run, which its evaluation will report.
    """
    found: list[tuple[list[StackLayer], Proposal[Any], Plan | None]] = []
    for proposal in proposals:
        made, layers = None, None
        with contextlib.suppress(EvomergeError):
            made = planner.plan(space.decode(proposal.genome).merge_only())
            layers = by_reference(made)
        found.append((layers or [], proposal, made if layers else None))
    found.sort(key=lambda one: (one[0], one[1].id))
    return [(proposal, made) for _, proposal, made in found]


def _fold(recipe: Recipe, models: tuple[str, ...], checkpoints: Mapping[str, Checkpoint]) -> Fold:
    """Returns how scales are folded into the layers of all models of the search."""
    faults: list[str] = []
    folds: list[Fold] = []
    where = ("slices", "search", "scale")
    for name in models:
        try:
            folds.append(fold_of(checkpoints[name].config, checkpoints[name].tensors))
        except ArchitectureError as fault:
            faults.append(recipe.fault(where, f"{name}: {fault}"))
    if len(set(folds)) > 1:
        faults.append(recipe.fault(where, "the models' layers have different weights to fold scales into; remove it"))
    if faults:
        raise RecipeError(faults)
    return folds[0]


def _numbers(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> NumberSpace:
    holes = recipe.number_holes()
    names = parents(recipe)
    depth = Architecture.of(checkpoints[names[0]].config, checkpoints[names[0]].tensors).num_layers
    depths: dict[Location, int] = {}
    faults = []
    for location, hole in holes.items():
        if hole.layers is None:
            continue
        own = _depth_at(recipe, location, depth)
        if own is None:
            message = "layers spreads over slices of different lengths; put it into the slices, or interpolate"
            if not hole.interpolate:
                faults.append(recipe.fault(location, message))
        elif hole.layers > own:
            message = f"layers is {hole.layers}, but there are {own} layers; use {own} or fewer"
            faults.append(recipe.fault(location, message))
        depths[location] = own or 0
    if faults:
        raise RecipeError(faults)
    return NumberSpace(recipe, depths=depths, starts=hole_starts(recipe, checked_method(recipe), len(names)))


def _depth_at(recipe: Recipe, location: Location, depth: int) -> int | None:
    """Returns how many layers the value at `location` covers; None if its slices differ."""
    modules = recipe.modules_by_place()
    inside = [place for place in modules if location[: len(place)] == place] or list(modules)
    found = {modules[place].depth_at(location[len(place) :], depth) for place in inside}
    return found.pop() if len(found) == 1 else None
