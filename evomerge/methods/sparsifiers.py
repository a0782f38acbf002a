"""Sparsifiers: which elements of a task vector the task-arithmetic family keeps.

Each works in place on a delta that its caller owns, and is only asked for a density between 0 and 1, both
ends excluded: at 1 or more nothing is dropped and at 0 or less everything, whatever the sparsifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.methods.method import Parameter, Value

Drop = Callable[[Tensor, Mapping[str, Value], Callable[[], Tensor]], None]
"""Zeroes the dropped elements of a delta, given its model's values and the way to its uniform numbers."""


@dataclass(frozen=True)
class Sparsifier:
    """A way to choose the elements to keep.

    Attributes:
        parameters: what it takes; `density` among them.
        drop: zeroes the other elements, in place.
    """

    parameters: tuple[Parameter, ...]
    drop: Drop


DENSITY = Parameter("density", "The share of the task vector to keep.", per_model=True, default=1.0, low=0.0, high=1.0)
"""The share of elements to keep, rho; for all sparsifiers."""

SEED = Parameter("seed", "Which random masks to use.", kind="int", default=0)
"""What the uniform numbers of the random sparsifiers are drawn from, with the source and the tensor."""


def all_but_largest(tensor: Tensor, count: int) -> Tensor:
    """Returns where a tensor's magnitudes are not among its `count` largest.

    Exactly `count` elements are not marked. Of equal magnitudes at the threshold, those with the lowest
    flat (row-major) index count as larger. NaN counts as larger than any number.

    Nothing is sorted. The bits of a float32 magnitude, read as an integer, have the order of the
    magnitudes: a histogram of their upper half finds the bucket of the count-th largest, and one of that
    bucket's lower half the magnitude itself. Two passes, whatever the values.

    Args:
        tensor: float32, of any shape; not changed.
        count: how many to leave unmarked, from 1 to the number of elements.

    Returns:
        A bool tensor of the same shape and device.
    """
    bits = tensor.abs().reshape(-1).view(torch.int32)
    upper = bits >> 16
    bucket, rank, _ = _digit_at(upper, count)
    inside = bits[upper == bucket] & 0xFFFF
    lower, rank, equals = _digit_at(inside, rank)
    threshold = (bucket << 16) | lower
    marked = bits < threshold
    if rank < equals:
        marked[(bits == threshold).nonzero().view(-1)[rank:]] = True
    return marked.view(tensor.shape)


def _digit_at(digits: Tensor, rank: int) -> tuple[int, int, int]:
    """Finds the rank-th largest (from 1) of a flat tensor of integers in [0, 2^16).

    Returns:
        The integer; the rank that is left among those equal to it; and how many of those there are.
    """
    # One small copy from a GPU, in place of a wait for each number read below.
    counts = torch.bincount(digits, minlength=1 << 16).cpu().numpy()
    from_largest = counts[::-1].cumsum()
    position = int(np.searchsorted(from_largest, rank))
    digit = len(counts) - 1 - position
    equals = int(counts[digit])
    return digit, rank - int(from_largest[position]) + equals, equals


def _drop_smallest(delta: Tensor, values: Mapping[str, Value], _noise: Callable[[], Tensor]) -> None:
    elements = delta.numel()
    if elements:
        # At least one is kept, however short the tensor.
        count = max(1, int(values["density"] * elements))
        delta.masked_fill_(all_but_largest(delta, count), 0.0)


def _drop_at_random(delta: Tensor, values: Mapping[str, Value], noise: Callable[[], Tensor]) -> None:
    delta.masked_fill_(noise() >= values["density"], 0.0)


MAGNITUDE = Sparsifier((DENSITY,), _drop_smallest)
"""Keeps the k = max(1, floor(rho N)) elements of largest magnitude, the first of equals.

Yadav et al. 2023, §4 (Trim), https://arxiv.org/abs/2306.01708
"""

RANDOM = Sparsifier((DENSITY, SEED), _drop_at_random)
"""Keeps each element with probability rho, independently.

Yu et al. 2023, §3.2 (Drop), https://arxiv.org/abs/2311.03099
"""
