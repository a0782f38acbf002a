"""Traces of kernels: a kernel says once what is done to each element; torch and compiled loops carry out its trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, reduce
from operator import add
from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """One step of a trace.

    Attributes:
        operation: what it does: an operation of `Element`, or ``block``, ``number`` or ``constant``.
        operands: the earlier steps whose values it takes, by their index.
        value: the index of a block or number, or the constant.
    """

    operation: str
    operands: tuple[int, ...] = ()
    value: float = 0


def _operator(operation: str, *, swapped: bool = False) -> Callable[[Element, Element | float], Element]:
    return lambda self, other: _step(operation, other, self) if swapped else _step(operation, self, other)


class Element:
    """What a kernel computes with: a float32 number of each element, whose computation is written down as a step.

    A comparison gives 1 where it holds, else 0, so that masks are multiplied and counted as in the papers' formulas;
    with NaN none holds but ``!=``.
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
    __eq__, __ne__ = _operator("=="), _operator("!=")  # type: ignore[assignment]

    def __neg__(self) -> Element:
        return _step("negative", self)

    def __abs__(self) -> Element:
        return _step("abs", self)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("what a kernel does cannot depend on the value of an element; use where")


Kernel = Callable[[Sequence[Element], Sequence[Element]], Element]
"""(an element of each block, the numbers that hold there) to the merged element.

It is traced, not run: what it does must not depend on values. Kernels are hashable, and equal ones traced once."""


def maximum(left: Element | float, right: Element | float) -> Element:
    """Returns the larger of the two; NaN if either is."""
    return _step("maximum", left, right)


def minimum(left: Element | float, right: Element | float) -> Element:
    """Returns the smaller of the two; NaN if either is."""
    return _step("minimum", left, right)


def hardshrink(element: Element, threshold: Element | float) -> Element:
    """Returns the hard thresholding of `element`: 0 where its magnitude is at most `threshold`; NaN stays."""
    return _step("hardshrink", element, threshold)


def where(condition: Element, then: Element | float, otherwise: Element | float) -> Element:
    """Returns `then` where `condition` is not 0, else `otherwise`."""
    return _step("where", condition, then, otherwise)


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


@cache
def trace(kernel: Kernel, blocks: int, numbers: int) -> Trace:
    """Returns what `kernel` does with so many blocks and numbers."""
    steps: list[Step] = []
    elements = [Element(steps, Step("block", value=i)) for i in range(blocks)]
    result = kernel(elements, [Element(steps, Step("number", value=i)) for i in range(numbers)])
    return Trace(tuple(steps), result.index)


def _step(operation: str, *operands: Element | float) -> Element:
    steps = next(operand._steps for operand in operands if isinstance(operand, Element))

    def index(operand: Element | float) -> int:
        if isinstance(operand, Element):
            return operand.index
        return Element(steps, Step("constant", value=float(np.float32(operand)))).index

    return Element(steps, Step(operation, tuple(map(index, operands))))
