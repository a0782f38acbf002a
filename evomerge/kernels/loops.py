"""Kernels as loops of C: a kernel's trace, compiled.

The loop reads the inputs, computes in float32 what was traced, rounds, checks that the result is finite, and stores:
one pass over memory, with the same bits as the kernel run by torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from evomerge.kernels.native import library
from evomerge.kernels.trace import OPERATIONS, Kernel, trace

Spans = Sequence[tuple[int, Sequence[float]]]
"""(element past the last, numbers that apply up to it), ascending."""

Loop = Callable[[Sequence[Tensor], Spans, Tensor], bool]
"""(flat blocks of the inputs, spans, output buffer) to whether all of the result is finite."""

_TYPES = {torch.bfloat16: "uint16_t", torch.float16: "_Float16", torch.float32: "float", torch.float64: "double"}

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

static inline uint32_t is_nonfinite(float number) {
    return (bits_of(number) & 0x7F800000) == 0x7F800000;
}

/* To the nearest, ties to even; not for NaN, which is found before. */
static inline uint16_t to_bfloat16(float number) {
    const uint32_t bits = bits_of(number);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

int merge(int64_t spans, const int64_t *stops, const float *restrict numbers, const void *const *blocks, void *output) {
    %(inputs)s
    %(stored)s *restrict result = output;
    uint32_t nonfinite = 0;
    int64_t start = 0;
    for (int64_t span = 0; span < spans; start = stops[span++], numbers += %(count)d) {
#pragma GCC ivdep
        for (int64_t i = start; i < stops[span]; i++) {
            %(lines)s
            const float merged = %(merged)s;
            const %(rounded)s rounded = %(round)s(merged);
            const float value = %(read)s;
            nonfinite |= is_nonfinite(merged) | is_nonfinite(value);
            result[i] = %(store)s;
        }
    }
    return nonfinite != 0;
}
"""


@cache
def loop(
    kernel: Kernel, inputs: tuple[torch.dtype, ...], numbers: int, rounded: torch.dtype, stored: torch.dtype
) -> Loop | None:
    """Returns the compiled loop of `kernel`; None without a compiler, or where C lacks one of the dtypes.

    Args:
        kernel: the kernel.
        inputs: the dtype of each input.
        numbers: how many numbers it takes.
        rounded: the dtype to which the result is rounded.
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
        pointers = addresses(*(block.data_ptr() for block in held))
        return not merge(len(spans), stops, given, pointers, output.data_ptr())

    return run


def _written(
    kernel: Kernel, inputs: Sequence[torch.dtype], numbers: int, rounded: torch.dtype, stored: torch.dtype
) -> str:
    """Returns the source of the loop of `kernel`."""
    traced = trace(kernel, len(inputs), numbers)
    lines = []
    for index, (operation, operands, value) in enumerate(traced.steps):
        if operation == "block":
            form = _read(inputs[int(value)], f"x{int(value)}[i]")
        elif operation == "number":
            form = f"numbers[{int(value)}]"
        elif operation == "constant":
            form = f"{value.hex()}f"
        else:
            form = OPERATIONS[operation].in_c.format(*(f"v{operand}" for operand in operands))
        lines.append(f"const float v{index} = {form};")
    declared = [f"const {_TYPES[dtype]} *restrict x{i} = blocks[{i}];" for i, dtype in enumerate(inputs)]
    return _SOURCE % {
        "inputs": "\n    ".join(declared),
        "count": numbers,
        "lines": "\n            ".join(lines),
        "merged": f"v{traced.result}",
        "rounded": _TYPES[rounded],
        "round": "to_bfloat16" if rounded == torch.bfloat16 else "",
        "read": _read(rounded, "rounded"),
        "stored": _TYPES[stored],
        "store": "rounded" if stored == rounded else "value",
    }


def _read(dtype: torch.dtype, expression: str) -> str:
    """Returns a C expression of `dtype` as a float."""
    return f"from_bfloat16({expression})" if dtype == torch.bfloat16 else f"(float){expression}"
