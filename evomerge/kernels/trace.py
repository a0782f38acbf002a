"""Traces of kernels: a kernel defines once what is done to each element; torch or a compiled loop runs its trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, reduce
from operator import add
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Operation(NamedTuple):
    """An operation on float32 numbers, in two spellings that give the same bits.

    Attributes:
        by_torch: a function of the operands and ``out``.
        in_c: a C expression; ``{0}`` and ``{1}`` are the operands.
    """

    by_torch: Callable[..., Tensor]
    in_c: str


OPERATIONS: Mapping[str, Operation] = {
    "+": Operation(torch.add, "{0} + {1}"),
    "-": Operation(torch.sub, "{0} - {1}"),
    "*": Operation(torch.mul, "{0} * {1}"),
    "/": Operation(torch.div, "{0} / {1}"),
    "abs": Operation(torch.abs, "fabsf({0})"),
    # Into a float32 tensor, torch's comparisons write 1 and 0, as fast as any arithmetic.
    "<": Operation(torch.lt, "{0} < {1} ? 1.0f : 0.0f"),
    "<=": Operation(torch.le, "{0} <= {1} ? 1.0f : 0.0f"),
    "==": Operation(torch.eq, "{0} == {1} ? 1.0f : 0.0f"),
    "maximum": Operation(torch.maximum, "{0} <= {1} || {1} != {1} ? {1} : {0}"),
    "hardshrink": Operation(
        lambda element, threshold, out: torch.hardshrink(element, float(threshold), out=out),
        "fabsf({0}) <= {1} ? 0.0f : {0}",
    ),
}
"""Every operation of a kernel, by the name of its step."""


class Step(NamedTuple):
    """One step of a trace.

    Attributes:
        operation: a key of `OPERATIONS`, or ``block``, ``number`` or ``constant``.
        operands: the indices of the earlier steps whose values it takes.
        value: the index of a block or number, or the constant.
    """

    operation: str
    operands: tuple[int, ...] = ()
    value: float = 0


def _operator(operation: str, *, swapped: bool = False) -> Callable[[Element, Element | float], Element]:
    return lambda self, other: _step(operation, other, self) if swapped else _step(operation, self, other)


class Element:
    """What a kernel computes with: a float32 number of each element; each computation is recorded as a step.

    A comparison gives 1 where it holds, else 0, so that masks are multiplied and counted as in the papers' formulas;
    none holds for NaN.
    """

    def __init__(self, steps: list[Step], step: Step) -> None:
        self._steps = steps
        self.index = len(steps)
        steps.append(step)

    __add__, __radd__ = _operator("+"), _operator("+", swapped=True)
    __sub__, __rsub__ = _operator("-"), _operator("-", swapped=True)
    __mul__, __rmul__ = _operator("*"), _operator("*", swapped=True)
    __truediv__, __rtruediv__ = _operator("/"), _operator("/", swapped=True)
    __lt__, __gt__ = _operator("<"), _operator("<", swapped=True)
    __le__, __ge__ = _operator("<="), _operator("<=", swapped=True)
    __eq__ = _operator("==")  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def __abs__(self) -> Element:
        return _step("abs", self)

    def __bool__(self) -> bool:
        raise TypeError("a kernel cannot branch on the value of an element; multiply by a comparison instead")


Kernel = Callable[[Sequence[Element], Sequence[Element]], Element]
"""(an element of each block, the numbers that apply to it) to the merged element.

It is traced, not run: it must not branch on values. Kernels are hashable, and equal ones are traced once."""


def maximum(left: Element | float, right: Element | float) -> Element:
    """Returns the larger of the two; NaN if either is."""
    return _step("maximum", left, right)


def hardshrink(element: Element, threshold: Element | float) -> Element:
    """Returns the hard thresholding of `element`: 0 where its magnitude is at most `threshold`; NaN stays."""
    return _step("hardshrink", element, threshold)


def total(terms: Iterable[Element]) -> Element:
    """Returns the sum of one or more terms, added from the first to the last."""
    return reduce(add, terms)


class Trace(NamedTuple):
    """What a kernel does.

    Attributes:
        steps: in an order in which they can be carried out.
        result: the index of the step that gives the result.
    """

    steps: tuple[Step, ...]
    result: int

    def run(self, blocks: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
        """Returns the kernel's result, computed by torch: without a compiler, or on another device than the CPU.

        Args:
            blocks: flat float32 tensors of one size; they are not changed.
            numbers: the kernel's numbers; each is rounded to float32.

        Returns:
            A float32 tensor of that size; one of `blocks` where the kernel gives it back.
        """
        values: dict[int, Tensor] = {}
        for index, (operation, operands, value) in enumerate(self.steps):
            if operation == "block":
                values[index] = blocks[int(value)]
            elif operation in ("number", "constant"):
                number = numbers[int(value)] if operation == "number" else value
                values[index] = torch.tensor(number, dtype=torch.float32)
            else:
                inputs = [values[i] for i in operands]
                like = max(inputs, key=Tensor.dim)
                values[index] = OPERATIONS[operation].by_torch(*inputs, out=torch.empty_like(like))
            for used in _last_used(self)[index]:
                del values[used]
        return values[self.result]


@cache
def trace(kernel: Kernel, blocks: int, numbers: int) -> Trace:
    """Returns what `kernel` does with so many blocks and numbers."""
    steps: list[Step] = []
    elements = [Element(steps, Step("block", value=i)) for i in range(blocks)]
    result = kernel(elements, [Element(steps, Step("number", value=i)) for i in range(numbers)])
    return Trace(tuple(steps), result.index)


@cache
def _last_used(traced: Trace) -> list[list[int]]:
    """Returns, for each step, the operands that no later step takes: their memory is free."""
    last = {operand: index for index, step in enumerate(traced.steps) for operand in step.operands}
    return [[i for i in set(step.operands) if last[i] == index] for index, step in enumerate(traced.steps)]


def _step(operation: str, *operands: Element | float) -> Element:
    steps = next(operand._steps for operand in operands if isinstance(operand, Element))

    def index(operand: Element | float) -> int:
        if isinstance(operand, Element):
            return operand.index
        return Element(steps, Step("constant", value=float(np.float32(operand)))).index

    return Element(steps, Step(operation, tuple(map(index, operands))))
