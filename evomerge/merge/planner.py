"""`Planner`: recipes over the same models in, plans out.

Every fault of a recipe and of how its models fit together is found here, from headers and configs (and integers, which
must be the same in all models). What depends on the models is computed once; so is what depends on the structure of a
recipe, which is all but its parameters' numbers: a candidate of a search over numbers costs what resolving its numbers
costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch

from evomerge.architecture import Architecture, config_of_stack, differences
from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.document import Location
from evomerge.errors import RecipeError
from evomerge.merge.component import advice, completed
from evomerge.merge.modules import owners
from evomerge.merge.parameters import resolved
from evomerge.merge.parts import Part, checked_method, parts_of
from evomerge.merge.plan import DTYPES, MERGED, Job, Layout, Plan, config_stored_as
from evomerge.methods import MergeMethod, Parameters
from evomerge.recipe import Filtered, Recipe, Value, is_choice

_MOST_FAULTS = 8
_MOST_LAYOUTS = 8


class _Model:
    """A checkpoint and where its tensors lie.

    Attributes:
        checkpoint: the checkpoint.
        architecture: its architecture.
        before: names of the tensors before the layers.
        layers: for each layer what follows its number in the name of every tensor.
        after: names of the tensors after the layers.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.architecture = Architecture.of(checkpoint.config, checkpoint.tensors)
        self.before: list[str] = []
        self.after: list[str] = []
        self.layers: list[list[str]] = [[] for _ in range(self.architecture.num_layers)]
        for name in checkpoint.tensors:
            layer = self.architecture.layer_of(name)
            if layer is not None:
                _, dot, rest = name[len(self.architecture.stack) :].partition(".")
                self.layers[layer].append(dot + rest)
            elif self.architecture.position(name) == "after":
                self.after.append(name)
            else:
                self.before.append(name)


class _Slot(NamedTuple):
    """Tensors for which a method's values are the same, whatever numbers a recipe of this structure has.

    Attributes:
        part: the index of the part that makes them.
        depth: their relative depth in [0, 1].
        name: the name of one of them in the result.
        inputs: the names of what is merged into that one.
    """

    part: int
    depth: float
    name: str
    inputs: tuple[str, ...]


class _Planned(NamedTuple):
    """A layout, the slots of its values, and the number of layers of models that are merged whole."""

    layout: Layout
    slots: tuple[_Slot, ...]
    num_layers: int


class Planner:
    """Plans recipes over the same models.

    Args:
        checkpoints: every model that the recipes name, opened.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._models: dict[str, _Model] = {}
        self._planned: dict[object, _Planned] = {}

    def plan(self, recipe: Recipe) -> Plan:
        """Returns how the recipe's model is made.

        Args:
            recipe: a recipe without holes.

        Raises:
            RecipeError: with a line for every fault: parameters, layer ranges, models that do not fit together.
            ArchitectureError: a model's layers cannot be found.
        """
        chosen = checked_method(recipe)
        structure = recipe.structure()
        found = self._planned.get(structure)
        if found is None:
            found = self._laid_out(recipe, chosen)
            if len(self._planned) == _MOST_LAYOUTS:
                del self._planned[next(iter(self._planned))]
            self._planned[structure] = found
        parts = parts_of(recipe, chosen, found.num_layers)
        return Plan(recipe, found.layout, _values(recipe, chosen, parts, found.slots))

    def _model(self, name: str) -> _Model:
        if name not in self._models:
            self._models[name] = _Model(self._checkpoints[name])
        return self._models[name]

    def _laid_out(self, recipe: Recipe, chosen: MergeMethod) -> _Planned:
        models = {name: self._model(name) for name in recipe.references()}
        donor = models[_donor(recipe)]
        layer_of = donor.architecture.layer_of
        module_of, main = owners(recipe, donor.checkpoint.tensors, lambda name: layer_of(name) is not None)
        _check_compatible(recipe, self._checkpoints)
        depth = models[recipe.modules_by_place()[main].listed()[0]].architecture.num_layers
        parts = parts_of(recipe, chosen, depth)
        _check_ranges(recipe, parts, models)
        builder = _LayoutBuilder(recipe, models, module_of)
        jobs = builder.jobs(parts, main, donor.architecture.tied)
        config = donor.checkpoint.config
        stacked = [part for part in parts if part.module == main and part.ranged]
        if stacked:
            origins = [
                (models[part.inputs[0].model].checkpoint.config, part.inputs[0].first + offset)
                for part in stacked
                for offset in range(part.num_layers)
            ]
            config = config_of_stack(donor.checkpoint.config, origins)
        layout = Layout(chosen, self._checkpoints, donor.checkpoint, config_stored_as(recipe, config), jobs)
        return _Planned(completed(layout, recipe) if recipe.component else layout, tuple(builder.slots), depth)


def plan(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Plan:
    """Returns how one recipe's model is made; see `Planner.plan`, which takes many."""
    return Planner(checkpoints).plan(recipe)


def _donor(recipe: Recipe) -> str:
    """Returns the model that gives the config: the larger one, where one component of it is merged."""
    return recipe.component.language_of if recipe.component else recipe.base_model or recipe.references()[0]


def _values(
    recipe: Recipe, chosen: MergeMethod, parts: Sequence[Part], slots: Sequence[_Slot]
) -> tuple[Parameters, ...]:
    """Returns the method's values for every slot."""
    values: list[Parameters] = []
    faults: dict[str, None] = {}
    for slot in slots:
        part = parts[slot.part]
        levels = [(member.parameters, *part.levels) for member in part.inputs]
        parameters, missing = resolved(chosen, part.levels, levels, slot.name, slot.inputs, slot.depth)
        values.append(parameters)
        for of, parameter in missing:
            location = part.location if of is None else part.inputs[of].location
            whose = "" if of is None else f" of {part.inputs[of].model}"
            message = f'{chosen.name} needs "{parameter}"{whose} (for {slot.name}); add it to parameters'
            faults[recipe.fault(location, message)] = None
    _raise(faults)
    return tuple(values)


def _raise(faults: Mapping[str, None]) -> None:
    """Raises a RecipeError where there are faults."""
    if faults:
        lines = list(faults)
        more = [f"... and {len(lines) - _MOST_FAULTS} more like these"]
        raise RecipeError(lines[:_MOST_FAULTS] + (more if len(lines) > _MOST_FAULTS else []))


def _check_compatible(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> None:
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


def _check_ranges(recipe: Recipe, parts: Sequence[Part], models: Mapping[str, _Model]) -> None:
    faults = []
    for part in parts:
        for source in part.inputs + ((part.base,) if part.base else ()):
            depth, end = models[source.model].architecture.num_layers, source.first + part.num_layers
            if end > depth:
                place = (*source.location, "layer_range") if part.ranged else source.location
                message = f"the range ends at {end}, but {source.model} has {depth} layers; end at {depth} or less"
                faults.append(recipe.fault(place, message))
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)))


class _LayoutBuilder:
    """Makes the jobs of a layout and collects what is wrong with them, so that all is told at once."""

    def __init__(self, recipe: Recipe, models: Mapping[str, _Model], module_of: Mapping[str, Location]) -> None:
        self.recipe = recipe
        self.models = models
        self.module_of = module_of
        self.dtype = DTYPES.get(recipe.out_dtype or recipe.dtype or "")
        self.faults: dict[str, None] = {}
        self.slots: list[_Slot] = []
        self._slot_of: dict[object, int] = {}
        self._filters: list[tuple[str, ...]] = []
        self._unmerged: set[tuple[str, torch.dtype]] = set()

    def jobs(self, parts: Sequence[Part], main: Location, tied: frozenset[str]) -> tuple[Job, ...]:
        """Returns a job for each tensor: before the layers, the layers from first to last, after them.

        Args:
            parts: of all modules.
            main: the module with the layers.
            tied: tensors that repeat another and are not written.
        """
        self._filters = [_filters(part) for part in parts]
        stack = [i for i, part in enumerate(parts) if part.module == main]
        beside = [i for i, part in enumerate(parts) if part.module != main]
        jobs: list[Job] = []
        for i in [*beside, stack[0]]:
            names = self.models[parts[i].inputs[0].model].before
            jobs += [self.outside(name, i, parts[i]) for name in self.own(names, parts[i]) if name not in tied]
        layer = 0
        for i in stack:
            for offset in range(parts[i].num_layers):
                jobs += self.layer(i, parts[i], offset, layer)
                layer += 1
        for i in [stack[-1], *beside]:
            names = self.models[parts[i].inputs[0].model].after
            jobs += [self.outside(name, i, parts[i], layer) for name in self.own(names, parts[i]) if name not in tied]
        _raise(self.faults)
        return tuple(jobs)

    def own(self, names: Sequence[str], part: Part) -> list[str]:
        """Returns the names that belong to the part's module."""
        return [name for name in names if self.module_of.get(name, part.module) == part.module]

    def outside(self, name: str, index: int, part: Part, depth: int | None = None) -> Job:
        """Returns the job of a tensor outside the layers; of one after them where the result has `depth` of them."""
        places = tuple((member.model, name) for member in part.inputs)
        architecture = self.models[part.inputs[0].model].architecture
        own = name if depth is None else architecture.at_depth(name, depth)
        return self.job(own, index, part, (places, (part.base.model, name) if part.base else None), 0.0)

    def layer(self, index: int, part: Part, offset: int, layer: int) -> list[Job]:
        first = part.inputs[0]
        model = self.models[first.model]
        stack = model.architecture.stack
        t = offset / (part.num_layers - 1) if part.num_layers > 1 else 1.0
        # The names are the first model's, which may be deeper than the others.
        stems = [(member.model, f"{stack}{member.first + offset}") for member in part.inputs]
        base = (part.base.model, f"{stack}{part.base.first + offset}") if part.base else None
        return [
            self.job(
                f"{stack}{layer}{rest}",
                index,
                part,
                (
                    tuple((name, f"{stem}{rest}") for name, stem in stems),
                    (base[0], f"{base[1]}{rest}") if base else None,
                ),
                t,
            )
            for rest in model.layers[first.first + offset]
        ]

    def job(
        self,
        name: str,
        index: int,
        part: Part,
        sources: tuple[tuple[tuple[str, str], ...], tuple[str, str] | None],
        t: float,
    ) -> Job:
        inputs, base = sources
        model, own_name = inputs[0]
        like = self.models[model].checkpoint.tensors[own_name]
        places = [*inputs, base] if base else [*inputs]
        dtypes = {like.dtype}
        for i, (other, tensor) in enumerate(places):
            found = self.models[other].checkpoint.tensors.get(tensor)
            place = part.inputs[i].location if i < len(part.inputs) else part.location
            if found is None:
                self.fault(place, f"{other} has no tensor {tensor}, which {model} has")
            elif found.shape != like.shape:
                shapes = f"{list(found.shape)}, but {list(like.shape)} in {model}"
                outside = self.models[model].architecture.layer_of(own_name) is None
                advice = "say which vocabulary to take (tokenizer: {source: union})"
                if found.shape[1:] != like.shape[1:] or not outside:
                    advice = "merge models of one architecture"
                self.fault(place, f"{other}: {tensor} has shape {shapes}; {advice}")
            elif not {found.dtype, like.dtype} <= MERGED and not self.copied((other, tensor), inputs[0]):
                at = i if found.dtype not in MERGED else 0
                self.unmerged(part.inputs[at].location if at < len(part.inputs) else part.location, *places[at])
            else:
                dtypes.add(found.dtype)
        if not dtypes <= MERGED:
            return Job(TensorInfo(name, like.dtype, like.shape), inputs[:1], None, None)
        info = TensorInfo(name, self.dtype or reduce(torch.promote_types, dtypes), like.shape)
        return Job(info, inputs, base, self.slot(name, index, t, inputs))

    def copied(self, *places: tuple[str, str]) -> bool:
        """Returns whether tensors that cannot be merged are the same in two models: position ids, masks."""
        checkpoints = [self.models[model].checkpoint for model, _ in places]
        kinds = {found.tensors[name].dtype for found, (_, name) in zip(checkpoints, places, strict=True)}
        quantized = any("quantization_config" in found.config for found in checkpoints)
        if quantized or len(kinds) > 1 or kinds.pop().is_floating_point:
            return False
        if places[0] == places[1]:
            return True
        one, other = (found.read(name).view(-1) for found, (_, name) in zip(checkpoints, places, strict=True))
        # What differs mostly does so at once; all of it is read only where it is a copy.
        return torch.equal(one[:4096], other[:4096]) and torch.equal(one, other)

    def unmerged(self, place: Location, model: str, name: str) -> None:
        """Tells of a tensor that cannot be merged; of one only, where a model has many of its dtype."""
        checkpoint = self.models[model].checkpoint
        dtype = checkpoint.tensors[name].dtype
        advice = "such numbers are only copied, where all models have the same"
        if "quantization_config" in checkpoint.config or (dtype.itemsize == 1 and dtype != torch.bool):
            advice = "is the model quantized? load and save it in bfloat16 first"
        if (model, dtype) not in self._unmerged:
            self._unmerged.add((model, dtype))
            kind = str(dtype).removeprefix("torch.")
            self.fault(place, f"{model}: {name} is {kind}, which cannot be merged; {advice}")

    def slot(self, name: str, index: int, t: float, inputs: tuple[tuple[str, str], ...]) -> int:
        """Returns the slot of a tensor's values, which depend on its part, its depth and the filters that it passes."""
        passed = tuple(
            text in tensor for text in self._filters[index] for tensor in (name, *(tensor for _, tensor in inputs))
        )
        key = (index, t, passed)
        if key not in self._slot_of:
            self._slot_of[key] = len(self.slots)
            self.slots.append(_Slot(index, t, name, tuple(tensor for _, tensor in inputs)))
        return self._slot_of[key]

    def fault(self, place: Location, message: str) -> None:
        self.faults[self.recipe.fault(place, message)] = None


def _filters(part: Part) -> tuple[str, ...]:
    """Returns the filters of all values that may apply to the part's tensors."""
    sections = [*part.levels, *(member.parameters for member in part.inputs)]
    rules: list[Filtered] = [rule for section in sections for value in section.values() for rule in _rules(value)]
    return tuple(dict.fromkeys(rule.filter for rule in rules if rule.filter is not None))


def _rules(value: Value) -> tuple[Filtered, ...]:
    return value if is_choice(value) else ()
