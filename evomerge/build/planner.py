"""`plan`: a recipe and its checkpoints in, one job for each tensor of the result out.

Recipes over whole models and recipes of slices become parts, layers that are merged alike; every fault of a recipe
and of how its models fit together is found here, from headers and configs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.architecture import Architecture, differences
from evomerge.build.parameters import Levels, parameter_faults, resolved
from evomerge.build.plan import DTYPES, Job, Plan
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
    """

    inputs: tuple[_Source, ...]
    base: _Source | None
    num_layers: int
    levels: Levels
    location: Location


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
    faults = parameter_faults(recipe, chosen)
    for part in _parts(recipe, chosen, depth=0):
        if part.base is None and chosen.base in ("required", "endpoint"):
            message = f'{chosen.name} merges against a base model; add "base_model"'
            faults.append(recipe.fault(part.location[:-1], message))
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
    donor = checkpoints[recipe.base_model or recipe.references()[0]]
    tokenizer_donor = _tokenizer_donor(recipe, checkpoints, donor)
    architectures = {
        name: Architecture.of(checkpoints[name].config, checkpoints[name].tensors) for name in recipe.references()
    }
    if recipe.models is not None:
        _refuse_strangers(recipe, checkpoints)
    depth = architectures[recipe.parents()[0]].num_layers
    parts = _parts(recipe, chosen, depth)
    _check_ranges(recipe, parts, architectures)
    planner = _Planner(recipe, chosen, checkpoints, architectures)
    jobs = planner.jobs(parts)
    stack = [part.inputs[0].first + i for part in parts for i in range(part.num_layers)]
    architecture = architectures[recipe.base_model or recipe.references()[0]]
    config = dict(donor.config) if recipe.models else architecture.config_of_stack(donor.config, stack)
    dtype = recipe.out_dtype or recipe.dtype
    if dtype:
        # Both spellings: transformers reads "dtype", and "torch_dtype" before version 4.56.
        config = {**{k: v for k, v in config.items() if k != "torch_dtype"}, "dtype": dtype}
    return Plan(recipe, chosen, checkpoints, donor, tokenizer_donor, config, jobs)


def _parts(recipe: Recipe, chosen: MergeMethod, depth: int) -> list[_Part]:
    """Returns the recipe's parts; `depth` is the number of layers of a recipe over whole models."""
    if recipe.models is not None:
        sources = [_Source(entry.model, 0, entry.parameters, ("models", i)) for i, entry in enumerate(recipe.models)]
        return [_part(chosen, sources, recipe.base_model, depth, (recipe.parameters,), ("models",))]
    return [
        _part(
            chosen,
            [
                _Source(source.model, source.layer_range[0], source.parameters, ("slices", i, "sources", j))
                for j, source in enumerate(part.sources)
            ],
            part.base_model or recipe.base_model,
            part.num_layers,
            (part.parameters, recipe.parameters),
            ("slices", i),
        )
        for i, part in enumerate(recipe.slices or ())
    ]


def _part(
    chosen: MergeMethod,
    sources: Sequence[_Source],
    base: str | None,
    num_layers: int,
    levels: Levels,
    place: Location,
) -> _Part:
    if chosen.base == "unused" or base is None:
        return _Part(tuple(sources), None, num_layers, levels, place)
    listed = [source for source in sources if source.model == base]
    at_base = listed[0] if listed else _Source(base, sources[0].first, {}, place)
    inputs = tuple(source for source in sources if source is not at_base)
    return _Part(inputs, at_base, num_layers, levels, place)


def _tokenizer_donor(recipe: Recipe, checkpoints: Mapping[str, Checkpoint], donor: Checkpoint) -> Checkpoint:
    source = recipe.tokenizer_source
    if source is None or source == "base":
        return donor
    if source not in checkpoints:
        known = suggestion(source, ["base", *checkpoints])
        message = f'found "{source}", which is neither "base" nor one of the models{known}'
        raise RecipeError([recipe.fault(("tokenizer_source",), message)])
    return checkpoints[source]


def _refuse_strangers(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raises a RecipeError where models that are merged whole do not have the same tensors and shapes."""
    bases = [recipe.base_model] if recipe.base_model else []
    first, *others = dict.fromkeys([*bases, *recipe.parents()])
    faults = []
    for other in others:
        found = differences(checkpoints[first], checkpoints[other])
        if found:
            place = next(
                (("models", i, "model") for i, entry in enumerate(recipe.models or ()) if entry.model == other),
                ("base_model",),
            )
            faults.append(recipe.fault(place, f"{other} does not fit {first}: {'; '.join(found)}"))
    if faults:
        raise RecipeError(faults)


def _check_ranges(recipe: Recipe, parts: Sequence[_Part], architectures: Mapping[str, Architecture]) -> None:
    faults = []
    for part in parts:
        for source in part.inputs + ((part.base,) if part.base else ()):
            depth, end = architectures[source.model].num_layers, source.first + part.num_layers
            if end > depth:
                place = (*source.location, "layer_range") if recipe.slices else source.location
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
    ) -> None:
        self.recipe = recipe
        self.method = chosen
        self.checkpoints = checkpoints
        self.architectures = architectures
        self.dtype = DTYPES.get(recipe.out_dtype or recipe.dtype or "")
        self.faults: dict[str, None] = {}

    def jobs(self, parts: Sequence[_Part]) -> tuple[Job, ...]:
        """Returns a job for each tensor: before the layers, the layers from first to last, after them."""
        tied = self.architectures[self.recipe.base_model or self.recipe.references()[0]].tied
        jobs = [self.outside(name, parts[0]) for name in self.names(parts[0], "before") if name not in tied]
        layer = 0
        for part in parts:
            for offset in range(part.num_layers):
                jobs += self.layer(part, offset, layer)
                layer += 1
        jobs += [self.outside(name, parts[-1]) for name in self.names(parts[-1], "after") if name not in tied]
        if self.faults:
            lines = list(self.faults)
            more = [f"... and {len(lines) - self.MOST_FAULTS} more like these"]
            raise RecipeError(lines[: self.MOST_FAULTS] + (more if len(lines) > self.MOST_FAULTS else []))
        return tuple(jobs)

    def names(self, part: _Part, position: str) -> list[str]:
        first = part.inputs[0].model
        architecture = self.architectures[first]
        return [name for name in self.checkpoints[first].tensors if architecture.position(name) == position]

    def outside(self, name: str, part: _Part) -> Job:
        places = [(source.model, name) for source in part.inputs]
        return self.job(name, part, places, (part.base.model, name) if part.base else None, 0.0)

    def layer(self, part: _Part, offset: int, layer: int) -> list[Job]:
        first = part.inputs[0]
        architecture = self.architectures[first.model]
        t = offset / (part.num_layers - 1) if part.num_layers > 1 else 1.0

        def place(source: _Source, name: str) -> tuple[str, str]:
            return source.model, self.architectures[source.model].renamed(name, source.first + offset)

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
        for i, (other, tensor) in enumerate([*inputs, base] if base else inputs):
            place = part.inputs[i].location if i < len(part.inputs) else part.location
            found = self.checkpoints[other].tensors.get(tensor)
            if found is None:
                self.fault(place, f"{other} has no tensor {tensor}, which {model} has")
            elif found.shape != like.shape:
                shapes = f"{list(found.shape)}, but {list(like.shape)} in {model}"
                self.fault(place, f"{other}: {tensor} has shape {shapes}; merge models of one architecture")
        floating = like.dtype.is_floating_point
        info = TensorInfo(name, self.dtype if self.dtype and floating else like.dtype, like.shape)
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
