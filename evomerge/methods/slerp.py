"""Slerp: along the arc between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.kernels import Element, Fused, Operands, combination
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# A vector this short has no direction; it is used as it is, so its cosine with anything is about zero.
_NO_DIRECTION = 1e-8
# Nearer to parallel than this (1.8 degrees), sin theta is small and the arc is a line to float32.
_PARALLEL = 0.9995


def _slerp(operands: Operands, parameters: Parameters) -> Fused:
    ends = operands.with_base
    t = float(parameters.shared["t"])
    products = operands.gram_with_base()
    cosine = products[0, 1] / (_divisor(products[0, 0]) * _divisor(products[1, 1]))
    if abs(cosine) > _PARALLEL:
        # From the nearer end, so that both come out exactly.
        return Fused.uniform(line, ends, (t,)) if t < 0.5 else Fused.uniform(line, ends[::-1], (1 - t,))
    # Shoemake: sin((1 - t) theta) / sin theta X_0 + sin(t theta) / sin theta X_1
    theta = math.acos(cosine)
    return Fused.uniform(
        combination, ends, (math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta))
    )


def _divisor(square: float) -> float:
    """Returns what to divide a tensor by to have its unit vector: its norm, or 1 where it has none."""
    norm = math.sqrt(square)
    return 1.0 if norm <= _NO_DIRECTION else norm


def line(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of start + t (end - start)."""
    (start, end), (t,) = blocks, numbers
    return start + t * (end - start)


SLERP = MergeMethod(
    name="slerp",
    summary="Along the arc between two models: the base at t = 0, the other at t = 1.",
    paper="https://doi.org/10.1145/325334.325242",
    parameters=(Parameter("t", "How far from the base to the other model; 0 is the base."),),
    base="endpoint",
    models=(1, 1),
    merge=_slerp,
)
"""Spherical linear interpolation of two tensors, each flattened to one vector.

The angle is measured between the unit vectors, the coefficients are applied to the originals; where the
cosine exceeds 0.9995 in magnitude, linear interpolation. A `t` outside [0, 1] continues along the same arc.
Shoemake 1985, Animating rotation with quaternion curves, https://doi.org/10.1145/325334.325242
"""
