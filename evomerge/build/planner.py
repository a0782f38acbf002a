"""`plan`: a recipe and its checkpoints in, one job for each tensor of the result out.

Recipes over whole models and recipes of slices become parts, layers that are merged alike; every fault of a recipe
and of how its models fit together is found here, from headers and configs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from evomerge.architecture import Architecture, config_of_stack, differences
from evomerge.build.component import advice, completed
from evomerge.build.modules import owners
from evomerge.build.parameters import Levels, parameter_faults, resolved
from evomerge.build.plan import DTYPES, Job, Plan
from evomerge.build.side_files import chat_template_faults
from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.document import Location, suggestion
from evomerge.errors import RecipeError
from evomerge.methods import METHODS, MergeMethod, method
from evomerge.recipe import Recipe, Value


@dataclass(frozen=True)
class _Source:
    """One listed model of a part: which layer is its first, its own parameters, where it stands."""

    model: str
    first: int
    parameters: Mapping[str, Value]
    location: Location


@dataclass(frozen=True)
class _Part:
    """Layers of the result that are merged alike: a slice, or a recipe's `models` as one.

    Attributes:
        inputs: what is merged, the base not among them where the method takes one.
        base: the base at its layers; None where the method takes none.
        num_layers: how many layers it makes.
        levels: the sections that give values for the whole part.
        location: where it stands in the recipe.
        module: the place of its module.
        ranged: whether its sources say their layers.
    """

    inputs: tuple[_Source, ...]
    base: _Source | None
    num_layers: int
    levels: Levels
    location: Location
    module: Location
    ranged: bool


def checked_method(recipe: Recipe) -> MergeMethod:
    """Returns the recipe's merge method; its parameters, its base and its number of models are checked.

    Raises:
        RecipeError: with a line for every fault; nothing is read from any model.
    """
    if recipe.merge_method not in METHODS:
        near = suggestion(recipe.merge_method, METHODS)
        message = f'there is no method "{recipe.merge_method}"{near}'
        raise RecipeError([recipe.fault(("merge_method",), message)])
    chosen = method(recipe.merge_method)
    faults = [*parameter_faults(recipe, chosen), *chat_template_faults(recipe)]
    for part in _parts(recipe, chosen, depth=0):
        if part.base is None and chosen.base in ("required", "endpoint"):
            message = f'{chosen.name} merges against a base model; add "base_model"'
            faults.append(recipe.fault(part.module, message))
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


def plan(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Plan:
    """Returns how the recipe's model is made.

    Args:
        recipe: a recipe without holes.
        checkpoints: every model that it names, opened.

    Raises:
        RecipeError: with a line for every fault: parameters, layer ranges, models that do not fit together.
        ArchitectureError: a model's layers cannot be found.
    """
    chosen = checked_method(recipe)
    donor = checkpoints[_donor(recipe)]
    architectures = {
        name: Architecture.of(checkpoints[name].config, checkpoints[name].tensors) for name in recipe.references()
    }
    architecture = architectures[_donor(recipe)]
    module_of, main = owners(recipe, donor.tensors, lambda name: architecture.layer_of(name) is not None)
    _refuse_strangers(recipe, checkpoints)
    depth = architectures[recipe.modules_by_place()[main].listed()[0]].num_layers
    parts = _parts(recipe, chosen, depth)
    _check_ranges(recipe, parts, architectures)
    jobs = _Planner(recipe, chosen, checkpoints, architectures, module_of).jobs(parts, main)
    config = dict(donor.config)
    stacked = [part for part in parts if part.module == main and part.ranged]
    if stacked:
        origins = [
            (checkpoints[part.inputs[0].model].config, part.inputs[0].first + offset)
            for part in stacked
            for offset in range(part.num_layers)
        ]
        config = config_of_stack(donor.config, origins)
    dtype = recipe.out_dtype or recipe.dtype
    if dtype:
        # Both spellings: transformers reads "dtype", and "torch_dtype" before version 4.56.
        config = {**{k: v for k, v in config.items() if k != "torch_dtype"}, "dtype": dtype}
    made = Plan(recipe, chosen, checkpoints, donor, config, jobs)
    return completed(made) if recipe.component else made


def _donor(recipe: Recipe) -> str:
    """Returns the model that gives the config: the larger one, where one component of it is merged."""
    return recipe.component.language_of if recipe.component else recipe.base_model or recipe.references()[0]


def _parts(recipe: Recipe, chosen: MergeMethod, depth: int) -> list[_Part]:
    """Returns the parts of every module; `depth` is the number of layers where models are merged whole."""
    parts = []
    for place, module in recipe.modules_by_place().items():
        levels = (module.parameters, recipe.parameters)
        sources = [
            _Source(entry.model, 0, entry.parameters, (*place, "models", i))
            for i, entry in enumerate(module.models or ())
        ]
        if module.models is not None:
            base = recipe.base_model
            if base and _merges_its_base(chosen, [*sources], base, levels):
                sources.append(_Source(base, 0, {}, ("base_model",)))
            at_base, inputs = _parted(chosen, sources, base, ("base_model",))
            parts.append(_Part(inputs, at_base, depth, levels, (*place, "models"), place, ranged=False))
        for i, part in enumerate(module.slices or ()):
            here = (*place, "slices", i)
            sources = [
                _Source(source.model, source.layer_range[0], source.parameters, (*here, "sources", j))
                for j, source in enumerate(part.sources)
            ]
            at_base, inputs = _parted(chosen, sources, part.base_model or recipe.base_model, here)
            parts.append(_Part(inputs, at_base, part.num_layers, (part.parameters, *levels), here, place, ranged=True))
    return parts


def _merges_its_base(chosen: MergeMethod, sources: Sequence[_Source], base: str, levels: Levels) -> bool:
    """Returns whether a method without a base has `base`, which is not listed, as one more model.

    As in mergekit, it has; but not where it then has too many, or no value that it needs for each.
    """
    if chosen.base != "unused" or base in [source.model for source in sources]:
        return False
    most = chosen.models[1]
    needed = [parameter.name for parameter in chosen.parameters if parameter.per_model and parameter.default is None]
    return (most is None or len(sources) < most) and all(any(name in level for level in levels) for name in needed)


def _parted(
    chosen: MergeMethod, sources: Sequence[_Source], base: str | None, place: Location
) -> tuple[_Source | None, tuple[_Source, ...]]:
    """Returns the base, where the method takes one and there is one, and what is merged with it."""
    if chosen.base == "unused" or base is None:
        return None, tuple(sources)
    listed = [source for source in sources if source.model == base]
    at_base = listed[0] if listed else _Source(base, sources[0].first, {}, place)
    return at_base, tuple(source for source in sources if source is not at_base)


def _refuse_strangers(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raises a RecipeError where models that are merged whole do not have the same tensors and shapes."""
    whole = {
        entry.model: (*place, "models", i, "model")
        for place, module in recipe.modules_by_place().items()
        for i, entry in enumerate(module.models or ())
    }
    if not whole:
        return
    named = {recipe.base_model: ("base_model",), **whole} if recipe.base_model else whole
    if recipe.component:
        named = {recipe.component.language_of: ("component", "language_of"), **named}
    first, *others = named
    faults = []
    for other in others:
        found = differences(checkpoints[first], checkpoints[other])
        if found:
            told = "; ".join(found) + advice(recipe, checkpoints[first], checkpoints[other])
            faults.append(recipe.fault(named[other], f"{other} does not fit {first}: {told}"))
    if faults:
        raise RecipeError(faults)


def _check_ranges(recipe: Recipe, parts: Sequence[_Part], architectures: Mapping[str, Architecture]) -> None:
    faults = []
    for part in parts:
        for source in part.inputs + ((part.base,) if part.base else ()):
            depth, end = architectures[source.model].num_layers, source.first + part.num_layers
            if end > depth:
                place = (*source.location, "layer_range") if part.ranged else source.location
                message = f"the range ends at {end}, but {source.model} has {depth} layers; end at {depth} or less"
                faults.append(recipe.fault(place, message))
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)))


class _Planner:
    """Makes the jobs of a plan and collects what is wrong with them, so that all is told at once."""

    MOST_FAULTS = 8

    def __init__(
        self,
        recipe: Recipe,
        chosen: MergeMethod,
        checkpoints: Mapping[str, Checkpoint],
        architectures: Mapping[str, Architecture],
        module_of: Mapping[str, Location],
    ) -> None:
        self.recipe = recipe
        self.method = chosen
        self.checkpoints = checkpoints
        self.architectures = architectures
        self.module_of = module_of
        self.dtype = DTYPES.get(recipe.out_dtype or recipe.dtype or "")
        self.faults: dict[str, None] = {}

    def jobs(self, parts: Sequence[_Part], main: Location) -> tuple[Job, ...]:
        """Returns a job for each tensor: before the layers, the layers from first to last, after them.

        Args:
            parts: of all modules.
            main: the module with the layers.
        """
        tied = self.architectures[_donor(self.recipe)].tied
        stack = [part for part in parts if part.module == main]
        beside = [part for part in parts if part.module != main]
        jobs = []
        for part, position in [(part, "before") for part in [*beside, stack[0]]]:
            jobs += [self.outside(name, part) for name in self.names(part, position) if name not in tied]
        layer = 0
        for part in stack:
            for offset in range(part.num_layers):
                jobs += self.layer(part, offset, layer)
                layer += 1
        for part, position in [(part, "after") for part in [stack[-1], *beside]]:
            jobs += [self.outside(name, part, layer) for name in self.names(part, position) if name not in tied]
        if self.faults:
            lines = list(self.faults)
            more = [f"... and {len(lines) - self.MOST_FAULTS} more like these"]
            raise RecipeError(lines[: self.MOST_FAULTS] + (more if len(lines) > self.MOST_FAULTS else []))
        return tuple(jobs)

    def names(self, part: _Part, position: str) -> list[str]:
        """Returns the names of the tensors at `position` that belong to the part's module."""
        first = part.inputs[0].model
        architecture = self.architectures[first]
        return [
            name
            for name in self.checkpoints[first].tensors
            if architecture.position(name) == position and self.module_of.get(name, part.module) == part.module
        ]

    def outside(self, name: str, part: _Part, depth: int | None = None) -> Job:
        """Returns the job of a tensor outside the layers; of one after them where the result has `depth` of them."""
        places = [(source.model, name) for source in part.inputs]
        architecture = self.architectures[part.inputs[0].model]
        own = name if depth is None else architecture.at_depth(name, depth)
        return self.job(own, part, places, (part.base.model, name) if part.base else None, 0.0)

    def layer(self, part: _Part, offset: int, layer: int) -> list[Job]:
        first = part.inputs[0]
        architecture = self.architectures[first.model]
        t = offset / (part.num_layers - 1) if part.num_layers > 1 else 1.0

        def place(source: _Source, name: str) -> tuple[str, str]:
            # The name is the first model's, which may be deeper than this one.
            return source.model, architecture.renamed(name, source.first + offset)

        return [
            self.job(
                architecture.renamed(name, layer),
                part,
                [place(source, name) for source in part.inputs],
                place(part.base, name) if part.base else None,
                t,
            )
            for name in self.checkpoints[first.model].tensors
            if architecture.layer_of(name) == first.first + offset
        ]

    def job(
        self,
        name: str,
        part: _Part,
        inputs: Sequence[tuple[str, str]],
        base: tuple[str, str] | None,
        t: float,
    ) -> Job:
        model, own_name = inputs[0]
        like = self.checkpoints[model].tensors[own_name]
        widest = like.dtype
        for i, (other, tensor) in enumerate([*inputs, base] if base else inputs):
            place = part.inputs[i].location if i < len(part.inputs) else part.location
            found = self.checkpoints[other].tensors.get(tensor)
            if found is None:
                self.fault(place, f"{other} has no tensor {tensor}, which {model} has")
            elif found.shape != like.shape:
                shapes = f"{list(found.shape)}, but {list(like.shape)} in {model}"
                rows_alone = found.shape[1:] == like.shape[1:] and self.architectures[model].layer_of(own_name) is None
                advice = "say which vocabulary to take (tokenizer: {source: union})"
                if not rows_alone:
                    advice = "merge models of one architecture"
                self.fault(place, f"{other}: {tensor} has shape {shapes}; {advice}")
            else:
                widest = torch.promote_types(widest, found.dtype)
        floating = like.dtype.is_floating_point
        info = TensorInfo(name, (self.dtype or widest) if floating else like.dtype, like.shape)
        if not floating:
            return Job(info, tuple(inputs[:1]), None, None)
        parameters, missing = resolved(
            self.method,
            part.levels,
            [(source.parameters, *part.levels) for source in part.inputs],
            name,
            [tensor for _, tensor in inputs],
            t,
        )
        for of, parameter in missing:
            place = part.location if of is None else part.inputs[of].location
            whose = "" if of is None else f" of {part.inputs[of].model}"
            self.fault(place, f'{self.method.name} needs "{parameter}"{whose} (for {name}); add it to parameters')
        return Job(info, tuple(inputs), base, parameters)

    def fault(self, place: Location, message: str) -> None:
        self.faults[self.recipe.fault(place, message)] = None
