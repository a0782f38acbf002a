"""Kernels as loops of C: what a kernel does to blocks is written down once, and compiled to do it to each element.

A kernel is run with `Traced` in the place of its tensors, which write down each operation. The loop then reads the
inputs, does in float32 what was written down, rounds, looks whether the result is finite, and stores: one pass over
memory, with the very bits of the kernel run by torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from evomerge.kernels.native import library

Kernel = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
"""(blocks of the inputs as float32, the numbers that hold there) to the merged block, float32.

It is run with tensors and numbers, or with a `Traced` in the place of each of them. It works element by element, by the
operations that `Traced` has, and changes no block; the result may be one of them. What it does must not depend on the
numbers' values. It can be hashed: kernels that are equal are compiled once."""

Spans = Sequence[tuple[int, Sequence[float]]]
"""(element past the last, numbers that hold up to there), ascending."""

Loop = Callable[[Sequence[Tensor], Spans, Tensor], bool]
"""(flat blocks of the inputs, spans, where the result goes) to whether all of the result is finite."""

_TYPES = {torch.bfloat16: "uint16_t", torch.float16: "_Float16", torch.float32: "float", torch.float64: "double"}
_READ = {torch.bfloat16: "from_bfloat16({})"}
_ROUND = {torch.bfloat16: "to_bfloat16({})"}

_SOURCE = """\
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float from_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static inline uint32_t is_endless(float number) {
    return (bits_of(number) & 0x7F800000) == 0x7F800000;
}

/* To the nearest, and of two as near to the even one; not for NaN, which is told before. */
static inline uint16_t to_bfloat16(float number) {
    const uint32_t bits = bits_of(number);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

int merge(int64_t spans, const int64_t *stops, const float *numbers, const void *const *blocks, void *output) {
%(declarations)s
    %(stored)s *restrict result = output;
    uint32_t endless = 0;
    int64_t start = 0;
    for (int64_t span = 0; span < spans; span++, numbers += %(count)d) {
        const int64_t stop = stops[span];
%(numbers)s
#pragma GCC ivdep
        for (int64_t i = start; i < stop; i++) {
%(lines)s
            const float merged = %(merged)s;
            const %(rounded)s rounded = %(round)s;
            const float value = %(read)s;
            endless |= is_endless(merged) | is_endless(value);
            result[i] = %(store)s;
        }
        start = stop;
    }
    return endless != 0;
}
"""


class Traced:
    """A number of each element, in a kernel that is written down: it has those methods of a tensor that kernels use."""

    def __init__(self, lines: list[str], name: str) -> None:
        self._lines = lines
        self._name = name

    def clone(self) -> Traced:
        """Returns another that has the same value."""
        return Traced(self._lines, self._name)

    def clamp(self, min: float | Traced | None = None, max: float | None = None) -> Traced:
        """Returns it, no lower than `min` and no higher than `max`; NaN stays."""
        return self.clone().clamp_(min, max)

    def clamp_(self, min: float | Traced | None = None, max: float | None = None) -> Traced:
        """Does as `clamp`, in place."""
        if min is not None:
            self._become("{0} < {1} ? {1} : {0}", min)
        if max is not None:
            self._become("{0} > {1} ? {1} : {0}", max)
        return self

    def _become(self, form: str, *others: object) -> Traced:
        name = f"v{len(self._lines)}"
        self._lines.append(f"const float {name} = {form.format(self._name, *map(_spelled, others))};")
        self._name = name
        return self


def _spelled(value: object) -> str:
    """Returns a value as C spells it: a number is rounded to float32, as torch does."""
    if isinstance(value, Traced):
        return value._name
    return f"({float(np.float32(cast(float, value))).hex()}f)"


def _operation(form: str, *, in_place: bool, swapped: bool = False) -> Callable[..., Traced]:
    def operation(self: Traced, *others: object) -> Traced:
        if swapped:
            (other,) = others
            return Traced(self._lines, _spelled(other))._become(form, self)
        return (self if in_place else self.clone())._become(form, *others)

    return operation


for _name, _form in {
    "abs": "fabsf({0})",
    "add": "{0} + {1}",
    "div": "{0} / {1}",
    "hardshrink": "{0} >= -{1} && {0} <= {1} ? 0.0f : {0}",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "reciprocal": "1.0f / {0}",
    "relu": "{0} < 0.0f ? 0.0f : {0}",
    "sign": "(float)(({0} > 0.0f) - ({0} < 0.0f))",
    "sub": "{0} - {1}",
}.items():
    setattr(Traced, _name, _operation(_form, in_place=False))
    setattr(Traced, f"{_name}_", _operation(_form, in_place=True))
    if _name in ("add", "sub", "mul", "neg"):
        setattr(Traced, f"__{_name}__", _operation(_form, in_place=False))
    if _name in ("add", "sub", "mul"):
        setattr(Traced, f"__r{_name}__", _operation(_form, in_place=False, swapped=True))


@cache
def loop(
    kernel: Kernel, inputs: tuple[torch.dtype, ...], numbers: int, rounded: torch.dtype, stored: torch.dtype
) -> Loop | None:
    """Returns the loop that does `kernel`; None where there is none: no compiler, or no such dtype in C.

    Args:
        kernel: what is done.
        inputs: the dtype of each input.
        numbers: how many numbers it takes.
        rounded: what the result is rounded to.
        stored: the dtype in which it is stored, `rounded` or a wider one.
    """
    if not {*inputs, rounded, stored} <= set(_TYPES):
        return None
    made = library(_written(kernel, inputs, numbers, rounded, stored))
    if made is None:
        return None
    merge = made.merge
    merge.argtypes = (ctypes.c_int64, *[ctypes.c_void_p] * 4)
    addresses = ctypes.c_void_p * len(inputs)

    def run(blocks: Sequence[Tensor], spans: Spans, output: Tensor) -> bool:
        held = [block.contiguous() for block in blocks]
        stops = (ctypes.c_int64 * len(spans))(*(stop for stop, _ in spans))
        given = (ctypes.c_float * (len(spans) * numbers))(*(number for _, own in spans for number in own))
        places = addresses(*(block.data_ptr() for block in held))
        return not merge(len(spans), stops, given, places, output.data_ptr())

    return run


def _written(
    kernel: Kernel, inputs: Sequence[torch.dtype], numbers: int, rounded: torch.dtype, stored: torch.dtype
) -> str:
    """Returns the source of the loop of `kernel`."""
    declared = [f"const {_TYPES[dtype]} *restrict x{i} = blocks[{i}];" for i, dtype in enumerate(inputs)]
    lines = [
        f"const float b{i} = {_READ.get(dtype, '(float){}').format(f'x{i}[i]')};" for i, dtype in enumerate(inputs)
    ]
    blocks: Any = [Traced(lines, f"b{i}") for i in range(len(inputs))]
    merged: Any = kernel(blocks, [cast(float, Traced(lines, f"n{i}")) for i in range(numbers)])
    read = _READ.get(rounded, "(float){}").format("rounded")
    return _SOURCE % {
        "declarations": "\n".join(f"    {line}" for line in declared),
        "count": numbers,
        "numbers": "\n".join(f"        const float n{i} = numbers[{i}];" for i in range(numbers)),
        "lines": "\n".join(f"            {line}" for line in lines),
        "merged": merged._name,
        "rounded": _TYPES[rounded],
        "round": _ROUND.get(rounded, f"({_TYPES[rounded]}){{}}").format("merged"),
        "read": read,
        "stored": _TYPES[stored],
        "store": "rounded" if stored == rounded else f"({_TYPES[stored]})value",
    }
