"""A recipe's parameters against what its merge method declares: names, kinds and ranges, holes included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from evomerge.document import Location, suggestion
from evomerge.methods import KNOWN_PARAMETERS, MergeMethod, Parameter, Parameters
from evomerge.recipe import Hole, Number, Recipe, Value, resolve

Levels = Sequence[Mapping[str, Value]]
"""Parameter sections in the order of precedence: the first that gives a value decides."""


def parameter_faults(recipe: Recipe, method: MergeMethod) -> list[str]:
    """Returns a line for every parameter that `method` cannot take; none is read from a model.

    A parameter of another method is accepted, as many published recipes have one, and so is a name that resembles
    none; but not where it is searched.
    """
    declared = {parameter.name: parameter for parameter in method.parameters}
    faults = []
    for location, leaf in recipe.leaves():
        end = _name_end(location)
        if end is None or location[-1] == "filter":
            continue
        name = str(location[end - 1])
        if name in declared:
            fault = _leaf_fault(leaf, declared[name], in_list=isinstance(location[-1], int))
            faults += [recipe.fault(location, fault)] if fault else []
        elif name not in KNOWN_PARAMETERS and get_close_matches(name, KNOWN_PARAMETERS):
            near = suggestion(name, declared)
            faults.append(recipe.fault(location[:end], f'{method.name} has no parameter "{name}"{near}'))
        elif isinstance(leaf, Hole):
            message = f"{method.name} does not use {name}, so there is nothing to search; remove it"
            faults.append(recipe.fault(location[:end], message))
    return list(dict.fromkeys(faults))


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
        end = _name_end(location)
        parameter = declared.get(str(location[end - 1])) if end else None
        if parameter is not None and parameter.start is not None:
            starts[location] = 1 / num_models if parameter.start == "share" else parameter.start
    return starts


def _name_end(location: Location) -> int | None:
    """Returns how much of the location of a value leads to its parameter, the name included; None for other values."""
    first = 2 if location[0] == "modules" else 0  # A module may be called "parameters".
    return location.index("parameters", first) + 2 if "parameters" in location[first:] else None


def _leaf_fault(leaf: Number | Hole, parameter: Parameter, *, in_list: bool) -> str | None:
    """Returns what is wrong with one number or hole, or None."""
    if in_list and parameter.kind == "int":
        return f"{parameter.name} is {parameter.expected}, which cannot change with depth; give one value"
    if not isinstance(leaf, Hole):
        return parameter.fault(leaf)
    low, high = leaf.search
    if parameter.kind != "float":
        return f"{parameter.name} is {parameter.expected}, which cannot be searched; give a value"
    if in_list and leaf.layers is not None:
        return "layers is not allowed inside a list along the depth; use the list or layers"
    if low < parameter.low or high > parameter.high:
        return f"search is [{low:g}, {high:g}], but {parameter.name} is {parameter.expected}; stay inside"
    return None
