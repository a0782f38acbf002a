"""What a merge method is: a pure function of tensors, and a declaration of what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.methods.noise import Noise

Value = float | bool
"""What a parameter may be: a number or a flag (an int is a float to the type checker)."""


@dataclass(frozen=True)
class Parameter:
    """One number (or flag) that a method takes: declared once, used by recipes, check, search and docs.

    Attributes:
        name: as a recipe spells it.
        summary: one line, for ``--help`` and the docs.
        per_model: whether it is given for each model, else once for the merge.
        kind: what values it takes; 0 and 1 are flags too.
        default: the value where a recipe gives none; None where a recipe must give one.
        low: the lowest valid value.
        high: the highest valid value.
        start: where a search begins: ``"share"`` is 1 / number of models, None the middle of the hole.
    """

    name: str
    summary: str
    per_model: bool = False
    kind: Literal["float", "bool", "int"] = "float"
    default: Value | None = None
    low: float = -math.inf
    high: float = math.inf
    start: Literal["share"] | float | None = None

    @property
    def expected(self) -> str:
        """What a valid value is, in words: ``a number from 0 to 1``."""
        if self.kind == "bool":
            return "true or false"
        words = "a whole number" if self.kind == "int" else "a number"
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"{words} from {self.low:g} to {self.high:g}"
        if math.isfinite(self.low):
            return f"{words}, {self.low:g} or more"
        if math.isfinite(self.high):
            return f"{words}, {self.high:g} or less"
        return words

    def fault(self, value: object) -> str | None:
        """Returns what is wrong with `value`, naming it and what was expected; None where it is valid."""
        if self._valid(value):
            return None
        return f"{self.name} is {value!r}; expected {self.expected}"

    def _valid(self, value: object) -> bool:
        if self.kind == "bool":
            return value in (0, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return self.low <= value <= self.high and (self.kind == "float" or value == int(value))


@dataclass(frozen=True)
class Parameters:
    """The values for one tensor, complete: `MergeMethod.complete` fills the defaults in.

    Attributes:
        shared: the values for the merge, by name.
        models: the values for each model, by name; parallel to the tensors, the base not among them.
    """

    shared: Mapping[str, Value]
    models: tuple[Mapping[str, Value], ...]


Merge = Callable[[Sequence[Tensor], Tensor | None, Parameters, Noise], Tensor]
"""The function of a method, which may rely on `MergeMethod` having checked its arguments."""


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: its declaration, and the function that merges one tensor.

    Attributes:
        name: as a recipe spells it after ``merge_method:``.
        summary: one line, for ``--help`` and the docs.
        paper: the URL of its source.
        parameters: all that it takes.
        base: ``required``: deltas are taken from it; ``endpoint``: it is one of the two models, the one at
            t = 0; ``optional``: used where given; ``unused``: ignored.
        models: the fewest and the most tensors it merges, the base not counted; None is no limit.
        merge: the function; call the method itself, which checks the arguments first.
        elementwise: whether each element of the result depends on the elements at its own place alone, so
            that a large tensor may be merged block by block.
    """

    name: str
    summary: str
    paper: str
    parameters: tuple[Parameter, ...]
    base: Literal["required", "endpoint", "optional", "unused"]
    models: tuple[int, int | None]
    merge: Merge
    elementwise: bool = False

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None, parameters: Parameters, noise: Noise) -> Tensor:
        """Returns the merge of `tensors`.

        Args:
            tensors: one for each model; float32, of one shape, on one device. None of them is changed.
            base: the base's, alike; None where the method needs none. It is not changed either.
            parameters: the complete values; names that the method does not declare are ignored.
            noise: gives each source's uniform numbers; only the random methods ask.

        Returns:
            A float32 tensor of the same shape and device; it may be one of the arguments.

        Raises:
            MergeError: the arguments are not what the method declares; the text has every fault.
        """
        faults = [*self._tensor_faults(tensors, base), *self._value_faults(parameters, len(tensors))]
        if faults:
            raise MergeError("\n".join(f"{self.name}: {fault}" for fault in faults))
        # A live model's weights may ask for gradients; a merge has none to give.
        with torch.no_grad():
            return self.merge(tensors, base, parameters, noise)

    def complete(self, shared: Mapping[str, Value], models: Sequence[Mapping[str, Value]]) -> Parameters:
        """Returns the given values with the defaults filled in.

        Args:
            shared: the values given for the merge.
            models: the values given for each model, in the order of the tensors.

        Raises:
            MergeError: a value is missing or out of its range, or the method does not take it; the text
                has every fault.
        """
        per_model = {p.name: p.default for p in self.parameters if p.per_model and p.default is not None}
        once = {p.name: p.default for p in self.parameters if not p.per_model and p.default is not None}
        filled = Parameters({**once, **shared}, tuple({**per_model, **own} for own in models))
        faults = [*self._unknown_faults(filled), *self._value_faults(filled, len(models))]
        if faults:
            raise MergeError("\n".join(f"{self.name}: {fault}" for fault in faults))
        return filled

    def _tensor_faults(self, tensors: Sequence[Tensor], base: Tensor | None) -> Iterator[str]:
        fewest, most = self.models
        if len(tensors) < fewest or (most is not None and len(tensors) > most):
            count = f"{fewest} or more" if most is None else f"{fewest} to {most}"
            count = f"{fewest}" if fewest == most else count
            yield (
                f"expected the number of models besides the base to be {count}, "
                f"found {len(tensors)}; change the recipe's list of models"
            )
        if base is None and self.base in ("required", "endpoint"):
            yield "expected a base, found none; give base_model in the recipe"
        named = [(f"model {index}", tensor) for index, tensor in enumerate(tensors)]
        if base is not None and self.base != "unused":
            named.append(("base", base))
        for name, tensor in named:
            if tensor.dtype != torch.float32:
                yield f"{name} has dtype {tensor.dtype}; expected torch.float32, cast it first"
            if tensor.shape != named[0][1].shape:
                yield (
                    f"{name} has shape {list(tensor.shape)}, but {named[0][0]} has "
                    f"{list(named[0][1].shape)}; expected one shape"
                )
            if tensor.device != named[0][1].device:
                yield (
                    f"{name} is on {tensor.device}, but {named[0][0]} is on {named[0][1].device}; expected one device"
                )

    def _value_faults(self, parameters: Parameters, models: int) -> Iterator[str]:
        if len(parameters.models) != models:
            yield f"expected the parameters of {models} models, found {len(parameters.models)}"
        for place, values, per_model in _places(parameters):
            for parameter in self.parameters:
                if parameter.per_model != per_model:
                    continue
                if parameter.name not in values:
                    yield f"{place}{parameter.name} is missing; expected {parameter.expected}"
                elif fault := parameter.fault(values[parameter.name]):
                    yield f"{place}{fault}"

    def _unknown_faults(self, parameters: Parameters) -> Iterator[str]:
        for place, values, per_model in _places(parameters):
            known = [parameter.name for parameter in self.parameters if parameter.per_model == per_model]
            for name in values:
                if name not in known:
                    yield f"{place}{name} is not known; expected one of: {', '.join(known) or 'none'}"


def _places(parameters: Parameters) -> Iterator[tuple[str, Mapping[str, Value], bool]]:
    """Yields each set of values: how a message introduces it, the values, whether they are a model's."""
    yield "", parameters.shared, False
    for index, values in enumerate(parameters.models):
        yield f"model {index}: ", values, True
