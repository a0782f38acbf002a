"""The parts of a recipe: layers of the result that are merged in the same way, and the parameters for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.document import Location
from evomerge.errors import RecipeError
from evomerge.merge.parameters import Levels, parameter_faults
from evomerge.merge.side_files import chat_template_faults
from evomerge.methods import METHODS, MergeMethod
from evomerge.recipe import Recipe, Value


@dataclass(frozen=True)
class Member:
    """One listed model of a part: which layer is its first, its own parameters, where it stands."""

    model: str
    first: int
    parameters: Mapping[str, Value]
    location: Location


@dataclass(frozen=True)
class Part:
    """Layers of the result that are merged in the same way: a slice, or a recipe's `models` as one.

    Attributes:
        inputs: what is merged, the base not among them where the method takes one.
        base: the base at its layers; None where the method takes none.
        num_layers: how many layers it makes.
        levels: the sections that give values for the whole part.
        location: where it stands in the recipe.
        module: where its module stands in the recipe.
        ranged: whether its models give the layers that they contribute.
    """

    inputs: tuple[Member, ...]
    base: Member | None
    num_layers: int
    levels: Levels
    location: Location
    module: Location
    ranged: bool

    @property
    def members(self) -> tuple[Member, ...]:
        """What is merged, then the base, if there is one."""
        return self.inputs if self.base is None else (*self.inputs, self.base)


def checked_method(recipe: Recipe) -> MergeMethod:
    """Returns the recipe's merge method; its parameters, its base and its number of models are checked.

    Raises:
        RecipeError: with a line for every fault; nothing is read from any model.
    """
    fault = METHODS.fault(recipe.merge_method)
    if fault:
        raise RecipeError([recipe.fault(("merge_method",), fault)])
    chosen = METHODS[recipe.merge_method]
    faults = [*parameter_faults(recipe, chosen), *chat_template_faults(recipe)]
    for part in parts_of(recipe, chosen, depth=0):
        if part.base is None and chosen.base in ("required", "endpoint"):
            faults.append(recipe.fault(part.module, f'{chosen.name} needs a base model; add "base_model"'))
        fewest, most = chosen.models
        if not fewest <= len(part.inputs) <= (most or len(part.inputs)):
            upto = "" if most == fewest else " or more" if most is None else f" to {most}"
            wanted = f"{fewest}{upto} model{'' if fewest == most == 1 else 's'}"
            beside = " beside its base" if part.base else ""
            message = f"{chosen.name} merges {wanted}{beside}, found {len(part.inputs)}"
            faults.append(recipe.fault(part.location, message))
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)))
    return chosen


def parents(recipe: Recipe) -> tuple[str, ...]:
    """Returns the models that the recipe merges, once each, in its order.

    A base belongs to them where it is listed, or where it is one end of the merge, as in slerp.
    """
    listed = recipe.parents()
    if recipe.base_model and checked_method(recipe).base == "endpoint":
        listed = tuple(dict.fromkeys((recipe.base_model, *listed)))
    return listed


def parts_of(recipe: Recipe, chosen: MergeMethod, depth: int) -> list[Part]:
    """Returns the parts of every module; `depth` is the number of layers where models are merged whole."""
    parts = []
    for location, module in recipe.modules_by_place().items():
        levels = (module.parameters, recipe.parameters)
        if module.models is not None:
            here, base = (*location, "models"), recipe.base_model
            members = [Member(entry.model, 0, entry.parameters, (*here, i)) for i, entry in enumerate(module.models)]
            if base and _merges_its_base(chosen, members, base, levels):
                members.append(Member(base, 0, {}, ("base_model",)))
            at_base, inputs = _split_base(chosen, members, base, ("base_model",))
            parts.append(Part(inputs, at_base, depth, levels, here, location, ranged=False))
        for i, part in enumerate(module.slices or ()):
            here = (*location, "slices", i)
            members = [
                Member(source.model, source.layer_range[0], source.parameters, (*here, "sources", j))
                for j, source in enumerate(part.sources)
            ]
            at_base, inputs = _split_base(chosen, members, part.base_model or recipe.base_model, here)
            own = (part.parameters, *levels)
            parts.append(Part(inputs, at_base, part.num_layers, own, here, location, ranged=True))
    return parts


def _merges_its_base(chosen: MergeMethod, members: Sequence[Member], base: str, levels: Levels) -> bool:
    """Returns whether a method without a base merges `base`, which is not listed, as one more model.

    As in mergekit, it does; but not where it would then have too many, or no value that it needs for each.
    """
    if chosen.base != "unused" or base in [member.model for member in members]:
        return False
    most = chosen.models[1]
    needed = [parameter.name for parameter in chosen.parameters if parameter.per_model and parameter.default is None]
    return (most is None or len(members) < most) and all(any(name in level for level in levels) for name in needed)


def _split_base(
    chosen: MergeMethod, members: Sequence[Member], base: str | None, location: Location
) -> tuple[Member | None, tuple[Member, ...]]:
    """Returns the base, where the method takes one and there is one, and what is merged with it."""
    if chosen.base == "unused" or base is None:
        return None, tuple(members)
    listed = [member for member in members if member.model == base]
    at_base = listed[0] if listed else Member(base, members[0].first, {}, location)
    return at_base, tuple(member for member in members if member is not at_base)
