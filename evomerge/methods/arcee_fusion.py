"""Arcee Fusion: takes over those elements of a model that matter most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.kernels import Element, Fused, Lines, Magnitudes, Operands, combination
from evomerge.methods.method import MergeMethod, Parameters

# Added to probabilities, so that their ratio has a logarithm.
_LEAST = 1e-8
# A divergence this small is what rounding to float64 makes of none.
_NO_DIVERGENCE = 1e-14


def _arcee_fusion(operands: Operands, _: Parameters) -> Fused:
    if operands.numel == 0:
        return Fused.uniform(combination, operands.with_base, (0.0, 1.0))
    divergence = Lines(operands, columns=False).spread(operands.once("divergence", lambda: _divergences(operands)))
    inputs = (*operands.with_base, divergence)
    threshold = operands.once("threshold", lambda: _threshold(Fused.uniform(_importance, inputs, ()), operands.numel))
    if threshold <= 0:
        return Fused.uniform(combination, operands.with_base, (0.0, 1.0))
    # The least float32 that is not below the threshold.
    least = np.float32(threshold)
    if least < threshold:
        least = np.nextafter(least, np.float32(np.inf))
    return Fused.uniform(_fuse, inputs, (float(least),))


def _divergences(operands: Operands) -> Tensor:
    """Returns KL(softmax X || softmax B) of each row, float32, of shape (rows,)."""
    lines = Lines(operands, columns=False)
    found = []
    for first, stop in lines.groups():
        rows = [tensor.piece(first * lines.length, stop * lines.length) for tensor in operands.with_base]
        q, p = (row.double().view(-1, lines.length).softmax(dim=1) + _LEAST for row in rows)
        divergence = (p * (p / q).log()).sum(dim=1)
        found.append(divergence.masked_fill_(divergence < _NO_DIVERGENCE, 0).float())
    return torch.cat(found)


def _threshold(importance: Fused, numel: int) -> float:
    """Returns the median plus 1.5 times the interquartile range of the importances, exactly."""
    order = Magnitudes(importance.values, numel)

    def quantile(share: float) -> float:
        return order.threshold(numel - int(share * (numel - 1))).magnitude

    return quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25))


def _importance(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of |d| times the divergence."""
    base, tensor, divergence = blocks
    # NaN has a sign too, which the order of bits must not see.
    return abs((tensor - base) * divergence)


def _fuse(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of B + d where the importance is at least the number, B elsewhere."""
    base, tensor, _ = blocks
    return base + (tensor - base) * (_importance(blocks, ()) >= numbers[0])


ARCEE_FUSION = MergeMethod(
    name="arcee_fusion",
    summary="The base with those elements of another model that changed most in the rows that changed most.",
    paper="https://arcee.ai",
    base="endpoint",
    models=(1, 1),
    merge=_arcee_fusion,
)
"""B + d at the elements whose importance is at least the median plus 1.5 times the interquartile range, else B.

The importance of an element is |d| times KL(softmax X || softmax B), taken along the last dimension and in float64.
The quantiles are exact, of all elements; mergekit takes them of a random million where there are more.
Arcee 2024, https://arcee.ai
"""
