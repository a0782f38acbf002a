"""Sums over whole tensors whose bits do not depend on the number of threads.

A plain `tensor.sum()` is split among the threads, and float addition is not associative: the same merge on
a machine with more cores would be another model. Here every partial sum covers the same elements wherever
it runs, and is taken in float64, so that what is left of the rounding vanishes in a float32 result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A row is summed by one thread (only the rows are shared out), and is shorter than the 2^15 elements from
# which torch splits one sum. A block bounds the float64 copies: 2^20 elements are 8 MiB.
_ROW = 1 << 12
_BLOCK = 1 << 20


def l1_norm(tensor: Tensor) -> float:
    """Returns the sum of the magnitudes of a float32 tensor of any shape, summed in float64."""
    return _sum_of(torch.abs, tensor)


def inner_product(left: Tensor, right: Tensor) -> float:
    """Returns the inner product of two float32 tensors of one shape, flattened, summed in float64."""
    return _sum_of(torch.mul, left, right)


def _sum_of(term: Callable[..., Tensor], *tensors: Tensor) -> float:
    flat = [tensor.reshape(-1) for tensor in tensors]
    total = 0.0
    for start in range(0, flat[0].numel(), _BLOCK):
        terms = term(*(part[start : start + _BLOCK].to(torch.float64) for part in flat))
        whole = terms.numel() // _ROW * _ROW
        for partial in terms[:whole].view(-1, _ROW).sum(dim=1).tolist():
            # Not sum(): its rounding changed in Python 3.12.
            total += partial
        total += terms[whole:].sum().item()
    return total
