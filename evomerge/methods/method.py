"""What a merge method is: a pure function of tensors, and a declaration of what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from evomerge.errors import MergeError
from evomerge.kernels import Fused, Operands

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
        return f"{words}, {self.high:g} or less" if math.isfinite(self.high) else words

    def fault(self, value: object) -> str | None:
        """Returns what is wrong with `value`, naming it and what was expected; None where it is valid."""
        return None if self._valid(value) else f"{self.name} is {value!r}; expected {self.expected}"

    def _valid(self, value: object) -> bool:
        if self.kind == "bool":
            return value in (0, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return self.low <= value <= self.high and (self.kind == "float" or value == int(value))


@dataclass(frozen=True)
class Parameters:
    """The values for one tensor, complete: defaults are filled in.

    Attributes:
        shared: the values for the merge, by name.
        models: the values for each model, by name; parallel to the tensors, the base not among them.
    """

    shared: Mapping[str, Value]
    models: tuple[Mapping[str, Value], ...]

    @property
    def weights(self) -> list[float]:
        """Each model's ``weight``, for a method that has one."""
        return [float(own["weight"]) for own in self.models]


Merge = Callable[[Operands, Parameters], Fused]
"""The function of a method: it measures what it needs, and returns what is done to each element."""


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: its declaration, and the function that merges one tensor.

    Attributes:
        name: as a recipe spells it after ``merge_method:``.
        summary: one line, for ``--help`` and the docs.
        paper: the URL of its source.
        merge: the function; call the method itself.
        parameters: all that it takes.
        base: ``required``: deltas are taken from it; ``endpoint``: it is one of the two models, the one at
            t = 0; ``optional``: used where given; ``unused``: ignored.
        models: the fewest and the most tensors it merges, the base not counted; None is no limit.
        kept_bytes: the bytes that a search keeps beside the models, for each element of each model.
    """

    name: str
    summary: str
    paper: str
    merge: Merge
    parameters: tuple[Parameter, ...] = ()
    base: Literal["required", "endpoint", "optional", "unused"] = "required"
    models: tuple[int, int | None] = (1, None)
    kept_bytes: int = 0

    def __call__(self, operands: Operands, parameters: Parameters) -> Fused:
        """Returns how `operands` are merged in one pass.

        What the method declares is checked once, where a recipe is planned, and not here.

        Args:
            operands: a tensor of each model, as many as the method takes, and of the base, if it takes one; none of
                them is changed.
            parameters: a valid value of every parameter.

        Raises:
            MergeError: the tensors are not of one shape and on one device, or the values do not go together.
        """
        found = {(tensor.shape, tensor.device) for tensor in operands.with_base}
        if len(found) > 1:
            spelled = ", ".join(sorted(f"{list(shape)} on {device}" for shape, device in found))
            raise MergeError(f"{self.name}: expected tensors of one shape on one device, found {spelled}")
        # A live model's weights may require gradients, which a merge does not have. And one thread, because sums that
        # are split among threads have other bits on another machine: tensors are split among threads instead.
        with torch.no_grad(), one_thread():
            return self.merge(operands, parameters)


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute with one thread meanwhile, in the thread that calls it."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)
