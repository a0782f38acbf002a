"""Kernels run by torch, operation by operation: where there is no compiler, and on other devices than the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from evomerge.kernels.trace import Trace

_TORCH: Mapping[str, Callable[..., Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "negative": torch.neg,
    "abs": torch.abs,
    # Into a float32 tensor, comparisons write 1 and 0, as fast as any arithmetic.
    "<": torch.lt,
    "<=": torch.le,
    "==": torch.eq,
    "!=": torch.ne,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "hardshrink": lambda element, threshold, out: torch.hardshrink(element, float(threshold), out=out),
    "where": lambda condition, then, otherwise, out: torch.where(condition != 0, then, otherwise, out=out),
}


def run(trace: Trace, blocks: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    """Returns what the kernel gives for each element.

    Args:
        trace: what it does.
        blocks: flat float32 tensors of one size; they are not changed.
        numbers: its numbers; each is rounded to float32.

    Returns:
        A float32 tensor of that size; one of `blocks` where the kernel gives it back.
    """
    values: list[Tensor] = []
    free: list[Tensor] = []
    for (operation, operands, value), done in zip(trace.steps, _done(trace), strict=True):
        if operation == "block":
            values.append(blocks[int(value)])
        elif operation in ("number", "constant"):
            values.append(torch.tensor(numbers[int(value)] if operation == "number" else value, dtype=torch.float32))
        else:
            # The result may take the memory of an operand that is not needed again: each element is read before it
            # is written.
            free += [values[i] for i in done if values[i].dim()]
            inputs = [values[i] for i in operands]
            like = next((tensor for tensor in inputs if tensor.dim()), inputs[0])
            values.append(_TORCH[operation](*inputs, out=free.pop() if free and like.dim() else torch.empty_like(like)))
    return values[trace.result]


@cache
def _done(trace: Trace) -> list[list[int]]:
    """Returns, for each step, the operands that are computed by an operation and not needed after it."""
    last_use = {operand: index for index, step in enumerate(trace.steps) for operand in step.operands}
    return [
        [i for i in set(step.operands) if last_use[i] == index and trace.steps[i].operands]
        for index, step in enumerate(trace.steps)
    ]
