"""`Planner`: recipes over the same models in, plans out.

Every fault of a recipe and of how its models fit together is found here, from headers and configs (and integers, which
must be the same in all models). What depends on the models is computed once; so is what depends on the structure of a
recipe, which is all but its parameters' numbers: a candidate of a search over numbers costs what resolving its numbers
costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from typing import NamedTuple

import torch

from evomerge.architecture import Architecture, config_of_stack, differences
from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.document import Location
from evomerge.errors import RecipeError
from evomerge.merge.component import advice, completed
from evomerge.merge.modules import owners
from evomerge.merge.parameters import resolved
from evomerge.merge.parts import Member, Part, checked_method, parts_of
from evomerge.merge.plan import DTYPES, MERGED, Job, Layout, Plan, TensorRef, config_stored_as
from evomerge.methods import MergeMethod, Parameters
from evomerge.recipe import Recipe, is_choice

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
    """Tensors for which a method's values are the same for all numbers of a recipe of this structure.

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
        self._model = cache(lambda name: _Model(checkpoints[name]))
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

    def _laid_out(self, recipe: Recipe, chosen: MergeMethod) -> _Planned:
        models = {name: self._model(name) for name in recipe.references()}
        donor = models[_donor(recipe)]
        layer_of = donor.architecture.layer_of
        module_of, main = owners(recipe, donor.checkpoint.tensors, lambda name: layer_of(name) is not None)
        _check_compatible(recipe, self._checkpoints)
        depth = models[recipe.modules_by_place()[main].listed()[0]].architecture.num_layers
        parts = parts_of(recipe, chosen, depth)
        _check_ranges(recipe, parts, models)
        builder = _LayoutBuilder(recipe, models, parts, module_of)
        jobs = builder.jobs(main, donor.architecture.tied)
        config = donor.checkpoint.config
        origins = [
            (models[part.inputs[0].model].checkpoint.config, part.inputs[0].first + offset)
            for part in parts
            if part.module == main and part.ranged
            for offset in range(part.num_layers)
        ]
        if origins:
            config = config_of_stack(config, origins)
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
    faults: list[str] = []
    for slot in slots:
        part = parts[slot.part]
        levels = [(member.parameters, *part.levels) for member in part.inputs]
        parameters, missing = resolved(chosen, part.levels, levels, slot.name, slot.inputs, slot.depth)
        values.append(parameters)
        for of, parameter in missing:
            location = part.location if of is None else part.inputs[of].location
            whose = "" if of is None else f" of {part.inputs[of].model}"
            message = f'{chosen.name} needs "{parameter}"{whose} (for {slot.name}); add it to parameters'
            faults.append(recipe.fault(location, message))
    _refuse(faults)
    return tuple(values)


def _refuse(faults: Iterable[str]) -> None:
    """Raises a RecipeError with the first of the faults, where there are any."""
    lines = list(dict.fromkeys(faults))
    if len(lines) > _MOST_FAULTS:
        lines[_MOST_FAULTS:] = [f"... and {len(lines) - _MOST_FAULTS} more like these"]
    if lines:
        raise RecipeError(lines)


def _check_compatible(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Raises a RecipeError where models that are merged whole do not have the same tensors and shapes."""
    whole: dict[str, Location] = {
        entry.model: (*module_location, "models", i, "model")
        for module_location, module in recipe.modules_by_place().items()
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
            reasons = "; ".join(found) + advice(recipe, checkpoints[first], checkpoints[other])
            faults.append(recipe.fault(named[other], f"{other} does not fit {first}: {reasons}"))
    _refuse(faults)


def _check_ranges(recipe: Recipe, parts: Sequence[Part], models: Mapping[str, _Model]) -> None:
    faults = []
    for part in parts:
        for member in part.members:
            depth, end = models[member.model].architecture.num_layers, member.first + part.num_layers
            if end > depth:
                location = (*member.location, "layer_range") if part.ranged else member.location
                message = f"the range ends at {end}, but {member.model} has {depth} layers; end at {depth} or less"
                faults.append(recipe.fault(location, message))
    _refuse(faults)


class _LayoutBuilder:
    """Makes the jobs of a layout and collects what is wrong with them, so that all of it is reported at once."""

    def __init__(
        self,
        recipe: Recipe,
        models: Mapping[str, _Model],
        parts: Sequence[Part],
        module_of: Mapping[str, Location],
    ) -> None:
        self.recipe = recipe
        self.models = models
        self.parts = parts
        self.module_of = module_of
        self.dtype = DTYPES.get(recipe.out_dtype or recipe.dtype or "")
        self.faults: list[str] = []
        self.slots: list[_Slot] = []
        self._slot_of: dict[object, int] = {}
        self._filters = [_filters(part) for part in parts]
        self._unmerged: set[tuple[str, torch.dtype]] = set()

    def jobs(self, main: Location, tied: frozenset[str]) -> tuple[Job, ...]:
        """Returns a job for each tensor: before the layers, the layers from first to last, after them.

        Args:
            main: the module with the layers.
            tied: tensors that repeat another and are not written.
        """
        stack = [i for i, part in enumerate(self.parts) if part.module == main]
        beside = [i for i, part in enumerate(self.parts) if part.module != main]
        layers = [(i, offset) for i in stack for offset in range(self.parts[i].num_layers)]
        jobs: list[Job] = []
        for i in [*beside, stack[0]]:
            jobs += [self.outside(i, name, name) for name in self.first(i).before if self.owns(i, name, tied)]
        for layer, (i, offset) in enumerate(layers):
            jobs += self.layer(i, offset, layer)
        for i in [stack[-1], *beside]:
            model = self.first(i)
            jobs += [
                self.outside(i, name, model.architecture.at_depth(name, len(layers)))
                for name in model.after
                if self.owns(i, name, tied)
            ]
        _refuse(self.faults)
        return tuple(jobs)

    def first(self, index: int) -> _Model:
        """Returns the first model of a part, whose tensors the part makes."""
        return self.models[self.parts[index].inputs[0].model]

    def owns(self, index: int, name: str, tied: frozenset[str]) -> bool:
        """Returns whether a tensor outside the layers is the part's module's, and to be written."""
        module = self.parts[index].module
        return name not in tied and self.module_of.get(name, module) == module

    def outside(self, index: int, name: str, new_name: str) -> Job:
        """Returns the job of a tensor outside the layers."""
        return self.job(index, new_name, [TensorRef(member.model, name) for member in self.parts[index].members], 0.0)

    def layer(self, index: int, offset: int, layer: int) -> list[Job]:
        """Returns the jobs of one of a part's layers, which becomes `layer` of the result."""
        part, model = self.parts[index], self.first(index)
        # The names are the first model's, which may be deeper than the others.
        stack = model.architecture.stack
        t = offset / (part.num_layers - 1) if part.num_layers > 1 else 1.0
        stems = [(member.model, f"{stack}{member.first + offset}") for member in part.members]
        return [
            self.job(index, f"{stack}{layer}{rest}", [TensorRef(name, stem + rest) for name, stem in stems], t)
            for rest in model.layers[part.inputs[0].first + offset]
        ]

    def job(self, index: int, name: str, refs: Sequence[TensorRef], t: float) -> Job:
        """Returns the job of one tensor.

        Args:
            index: the index of its part.
            name: its name in the result.
            refs: the tensors of the part's members.
            t: its relative depth.
        """
        part, first = self.parts[index], refs[0]
        like = self.info(first)
        assert like is not None
        dtypes = {like.dtype}
        for ref, member in zip(refs, part.members, strict=True):
            found = self.info(ref)
            if found is None:
                self.fault(member, f"{ref.model} has no tensor {ref.name}, which {first.model} has")
            elif found.shape != like.shape:
                advice = "merge models of one architecture"
                outside = self.models[first.model].architecture.layer_of(first.name) is None
                if found.shape[1:] == like.shape[1:] and outside:
                    advice = "say which vocabulary to take (tokenizer: {source: union})"
                shapes = f"{list(found.shape)}, but {list(like.shape)} in {first.model}"
                self.fault(member, f"{ref.model}: {ref.name} has shape {shapes}; {advice}")
            elif not {found.dtype, like.dtype} <= MERGED and not self.copied(ref, first):
                wrong = (member, ref) if found.dtype not in MERGED else (part.inputs[0], first)
                self.unmerged(*wrong)
            else:
                dtypes.add(found.dtype)
        inputs = tuple(refs[: len(part.inputs)])
        if not dtypes <= MERGED:
            return Job(TensorInfo(name, like.dtype, like.shape), inputs[:1], None, None)
        info = TensorInfo(name, self.dtype or reduce(torch.promote_types, dtypes), like.shape)
        return Job(info, inputs, refs[-1] if part.base else None, self.slot(index, name, inputs, t))

    def info(self, ref: TensorRef) -> TensorInfo | None:
        """Returns what a model's header says of a tensor; None where it has none of that name."""
        return self.models[ref.model].checkpoint.tensors.get(ref.name)

    def copied(self, *refs: TensorRef) -> bool:
        """Returns whether tensors that cannot be merged are the same in two models: position ids, masks."""
        checkpoints = [self.models[ref.model].checkpoint for ref in refs]
        dtypes = {checkpoint.tensors[ref.name].dtype for checkpoint, ref in zip(checkpoints, refs, strict=True)}
        quantized = any("quantization_config" in checkpoint.config for checkpoint in checkpoints)
        if quantized or len(dtypes) > 1 or dtypes.pop().is_floating_point:
            return False
        if refs[0] == refs[1]:
            return True
        one, other = (found.read(ref.name).view(-1) for found, ref in zip(checkpoints, refs, strict=True))
        # What differs mostly does so at once; all of it is read only where it is a copy.
        return torch.equal(one[:4096], other[:4096]) and torch.equal(one, other)

    def unmerged(self, member: Member, ref: TensorRef) -> None:
        """Reports a tensor that cannot be merged; the first only, where a model has many of its dtype."""
        checkpoint = self.models[ref.model].checkpoint
        dtype = checkpoint.tensors[ref.name].dtype
        advice = "such numbers are only copied, where all models have the same"
        if "quantization_config" in checkpoint.config or (dtype.itemsize == 1 and dtype != torch.bool):
            advice = "is the model quantized? load and save it in bfloat16 first"
        if (ref.model, dtype) not in self._unmerged:
            self._unmerged.add((ref.model, dtype))
            kind = str(dtype).removeprefix("torch.")
            self.fault(member, f"{ref.model}: {ref.name} is {kind}, which cannot be merged; {advice}")

    def slot(self, index: int, name: str, inputs: Sequence[TensorRef], t: float) -> int:
        """Returns the slot of a tensor's values, which depend on its part, its depth and the filters that it passes."""
        names = tuple(ref.name for ref in inputs)
        passed = tuple(text in tensor for text in self._filters[index] for tensor in (name, *names))
        key = (index, t, passed)
        if key not in self._slot_of:
            self._slot_of[key] = len(self.slots)
            self.slots.append(_Slot(index, t, name, names))
        return self._slot_of[key]

    def fault(self, member: Member, message: str) -> None:
        self.faults.append(self.recipe.fault(member.location, message))


def _filters(part: Part) -> tuple[str, ...]:
    """Returns the filters of all values that may apply to the part's tensors."""
    sections = [*part.levels, *(member.parameters for member in part.inputs)]
    values = [value for section in sections for value in section.values()]
    rules = [rule for value in values if is_choice(value) for rule in value]
    return tuple(dict.fromkeys(rule.filter for rule in rules if rule.filter is not None))
