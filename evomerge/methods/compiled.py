"""Kernels compiled by `torch.compile`: reading, merging, rounding and checking in one loop, with the same bits.

Inductor is told to contract no multiplication with an addition, and a kernel is arithmetic on single elements, so the
compiled loop rounds where the plain one does. The first candidate of a kind waits for the compiler (half a minute, or
seconds where inductor's cache on disk has it); each after that is merged about as fast as its bytes are copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from evomerge.methods.operands import Fused, Kernel

# The compiler takes tensors of no or one element for kinds of their own; so short a part is merged plainly.
_SHORTEST = 4096
# As many elements as a part may have; the loop needs no temporaries, so this is bounded by where the sources lie.
_LONGEST = 1 << 30


def run_compiled(fused: Fused, target: Tensor, dtype: torch.dtype) -> bool:
    """Merges all of it in place with compiled kernels, on the CPU.

    Args:
        fused: the merge.
        target: flat, of the merge's number of elements; of `dtype` or a wider one.
        dtype: what the result is rounded to.

    Returns:
        Whether every element of the result is a finite number.
    """
    finite = True
    for start, stop, numbers in fused.parts(_LONGEST):
        blocks = [source.piece(start, stop) for source in fused.inputs]
        work = _compiled(fused.kernel) if stop - start >= _SHORTEST else _plain(fused.kernel)
        # As tensors: the compiler would make a kernel of its own for every value of a number.
        scalars = torch.tensor(numbers, dtype=torch.float32).unbind()
        largest = work(blocks, scalars, target[start:stop], dtype)
        finite = finite and math.isfinite(largest)
    return finite


Work = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, torch.dtype], Tensor]


def _plain(kernel: Kernel) -> Work:
    def work(blocks: Sequence[Tensor], numbers: Sequence[Tensor], target: Tensor, dtype: torch.dtype) -> Tensor:
        rounded = kernel([block.float() for block in blocks], numbers).to(dtype)
        target.copy_(rounded)
        return rounded.float().abs().amax()

    return work


@cache
def _compiled(kernel: Kernel) -> Work:
    return torch.compile(_plain(kernel), dynamic=True)
