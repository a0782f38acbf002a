"""What a merge method is: a pure function of tensors, and a declaration of what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.kernels.fused import Fused, SourceTensor
from evomerge.kernels.operands import Operands

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


Merge = Callable[[Operands, Parameters], Fused]
"""The function of a method: it measures what it needs, and says what is done to each element. It may rely on
`MergeMethod` having checked its arguments."""


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
        kept_bytes: the bytes that a search keeps beside the sources, for each element of each model.
    """

    name: str
    summary: str
    paper: str
    parameters: tuple[Parameter, ...]
    base: Literal["required", "endpoint", "optional", "unused"]
    models: tuple[int, int | None]
    merge: Merge
    kept_bytes: int = 0

    def __call__(self, operands: Operands, parameters: Parameters) -> Fused:
        """Returns how `operands` are merged in one pass.

        Args:
            operands: a tensor of each model, and of the base; none of them is changed.
            parameters: the complete values; names that the method does not declare are ignored.

        Raises:
            MergeError: the arguments are not what the method declares; the text has every fault.
        """
        faults = [*self._tensor_faults(operands), *self._value_faults(parameters, len(operands.tensors))]
        if faults:
            raise MergeError("\n".join(f"{self.name}: {fault}" for fault in faults))
        # A live model's weights may ask for gradients; a merge has none to give. And one thread, because sums that
        # are shared out among threads have other bits on another machine: tensors are shared out instead.
        with torch.no_grad(), one_thread():
            return self.merge(operands, parameters)

    def merged(self, tensors: Sequence[Tensor], base: Tensor | None, parameters: Parameters, name: str = "") -> Tensor:
        """Returns the merge of tensors in memory.

        Args:
            tensors: one for each model; of one shape and on one device, of any floating dtype.
            base: the base's, alike; None where the method takes none.
            parameters: the complete values.
            name: the name of the tensor that is built; the random methods draw by it.

        Returns:
            A float32 tensor of the same shape and device.

        Raises:
            MergeError: the arguments are not what the method declares; the text has every fault.
        """
        sources = [SourceTensor.of(tensor) for tensor in tensors]
        found = self(Operands(sources, None if base is None else SourceTensor.of(base), name), parameters)
        result = torch.empty(tensors[0].shape, dtype=torch.float32, device=tensors[0].device)
        flat = result.view(-1)
        with torch.no_grad():
            for start, stop in found.parts():
                found.merge(start, stop, flat[start:stop])
        return result

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

    def _tensor_faults(self, operands: Operands) -> Iterator[str]:
        fewest, most = self.models
        count = len(operands.tensors)
        if count < fewest or (most is not None and count > most):
            wanted = f"{fewest} or more" if most is None else f"{fewest} to {most}"
            wanted = f"{fewest}" if fewest == most else wanted
            yield (
                f"expected the number of models besides the base to be {wanted}, "
                f"found {count}; change the recipe's list of models"
            )
        if operands.base is None and self.base in ("required", "endpoint"):
            yield "expected a base, found none; give base_model in the recipe"
        named = [(f"model {index}", tensor) for index, tensor in enumerate(operands.tensors)]
        if operands.base is not None and self.base != "unused":
            named.append(("base", operands.base))
        for name, tensor in named:
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


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute with one thread meanwhile, where it is called from."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
