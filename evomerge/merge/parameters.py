"""A recipe's parameters against what its merge method declares: names, kinds and ranges, holes included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from evomerge.document import Location, suggestion
from evomerge.methods import KNOWN_PARAMETERS, MergeMethod, Parameter, Parameters
from evomerge.recipe import Hole, Number, Recipe, Value, is_choice, resolve

Levels = Sequence[Mapping[str, Value]]
"""Parameter sections in the order of precedence: the first that gives a value decides."""


def parameter_faults(recipe: Recipe, method: MergeMethod) -> list[str]:
    """Returns a line for every parameter that `method` cannot take; none is read from a model.

    A parameter of another method is let pass, as it is in many published recipes, and so is one that resembles
    none; but not where it is searched.
    """
    declared = {parameter.name: parameter for parameter in method.parameters}
    faults = []
    for location, section in _sections(recipe):
        for name, value in section.items():
            place = (*location, name)
            if name not in declared:
                if name not in KNOWN_PARAMETERS and get_close_matches(name, KNOWN_PARAMETERS):
                    near = suggestion(name, declared)
                    faults.append(recipe.fault(place, f'{method.name} has no parameter "{name}"{near}'))
                elif any(isinstance(leaf, Hole) for _, leaf, _ in _leaves(value, place)):
                    message = f"{method.name} does not use {name}, so there is nothing to search; take it out"
                    faults.append(recipe.fault(place, message))
                continue
            for leaf_place, leaf, in_list in _leaves(value, place):
                fault = _leaf_fault(leaf, declared[name], in_list)
                if fault:
                    faults.append(recipe.fault(leaf_place, fault))
    return faults


def resolved(
    method: MergeMethod,
    shared: Levels,
    models: Sequence[Levels],
    name: str,
    model_names: Sequence[str],
    t: float,
) -> tuple[Parameters, list[tuple[int | None, str]]]:
    """Returns every value that `method` takes for one tensor, and what is missing.

    Args:
        method: the merge method.
        shared: the sections that give values for the whole merge.
        models: for each model, the sections that give values for it.
        name: the output tensor's name, which filters of shared values match.
        model_names: for each model, its own tensor's name, which filters of its values match.
        t: relative depth in [0, 1].

    Returns:
        The parameters, and (model's index or None, parameter) for each that is required and not given.
    """
    missing: list[tuple[int | None, str]] = []

    def value(parameter: Parameter, levels: Levels, tensor: str, model: int | None) -> Number:
        for section in levels:
            if parameter.name in section:
                found = resolve(section[parameter.name], tensor, t)
                if found is not None:
                    return bool(found) if parameter.kind == "bool" else found
        if parameter.default is None:
            missing.append((model, parameter.name))
            return 0.0
        return parameter.default

    parameters = Parameters(
        shared={p.name: value(p, shared, name, None) for p in method.parameters if not p.per_model},
        models=tuple(
            {p.name: value(p, levels, tensor, i) for p in method.parameters if p.per_model}
            for i, (levels, tensor) in enumerate(zip(models, model_names, strict=True))
        ),
    )
    return parameters, missing


def hole_starts(recipe: Recipe, method: MergeMethod, num_models: int) -> dict[Location, float]:
    """Returns where each hole's search starts by what its parameter declares: at the parents' mean."""
    declared = {parameter.name: parameter for parameter in method.parameters}
    starts = {}
    for location in recipe.holes():
        names = [part for part in location if isinstance(part, str) and part in declared]
        start = declared[names[-1]].start if names else None
        if start is not None:
            starts[location] = 1 / num_models if start == "share" else start
    return starts


def _sections(recipe: Recipe) -> Iterator[tuple[Location, Mapping[str, Value]]]:
    """Yields every ``parameters`` section with its place."""
    yield ("parameters",), recipe.parameters
    for place, module in recipe.modules_by_place().items():
        yield (*place, "parameters"), module.parameters
        for i, entry in enumerate(module.models or ()):
            yield (*place, "models", i, "parameters"), entry.parameters
        for i, part in enumerate(module.slices or ()):
            yield (*place, "slices", i, "parameters"), part.parameters
            for j, source in enumerate(part.sources):
                yield (*place, "slices", i, "sources", j, "parameters"), source.parameters


def _leaves(value: Value, location: Location, in_list: bool = False) -> Iterator[tuple[Location, Number | Hole, bool]]:
    """Yields every number and hole of a value with its place, and whether it is a point of a gradient."""
    if is_choice(value):
        for i, rule in enumerate(value):
            yield from _leaves(rule.value, (*location, i, "value"))
    elif isinstance(value, tuple):
        for i, point in enumerate(value):
            if isinstance(point, bool | int | float | Hole):
                yield (*location, i), point, True
    else:
        yield location, value, in_list


def _leaf_fault(leaf: Number | Hole, parameter: Parameter, in_list: bool) -> str | None:
    """Returns what is wrong with one number or hole, or None."""
    if in_list and parameter.kind == "int":
        return f"{parameter.name} is {parameter.expected}, which cannot change with depth; give one value"
    if not isinstance(leaf, Hole):
        return parameter.fault(leaf)
    low, high = leaf.search
    if parameter.kind != "float":
        return f"{parameter.name} is {parameter.expected}, which cannot be searched; give a value"
    if in_list and leaf.layers is not None:
        return "layers stands inside a list along the depth already; take the list or layers"
    if low < parameter.low or high > parameter.high:
        return f"search is [{low:g}, {high:g}], but {parameter.name} is {parameter.expected}; stay inside"
    return None
