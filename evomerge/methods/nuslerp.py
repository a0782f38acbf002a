"""NuSLERP: along the arc between two models, or between their task vectors, by weights."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.kernels import Fused, Lines, Operands
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# Under this magnitude the weights are taken to cancel, and the middle is taken.
_NO_WEIGHT = 1e-6
# A norm this short divides as if it were this long.
_SHORTEST = 1e-7
# sin^2 theta under which two vectors are one line to float32: parallel, arc and line agree to its last bit; opposite,
# the coefficients 1 / sin theta would magnify nothing but rounding.
_COLINEAR = 1e-8


def _nuslerp(operands: Operands, parameters: Parameters) -> Fused:
    first, second = (float(own["weight"]) for own in parameters.models)
    t = 0.5 if abs(first + second) < _NO_WEIGHT else second / (first + second)
    if parameters.shared["nuslerp_flatten"] or operands.numel == 0:
        gram = torch.from_numpy(operands.gram())
        return operands.weighted([float(number) for number in _coefficients(gram, t)])
    lines = Lines(operands, columns=bool(parameters.shared["nuslerp_row_wise"]))
    return lines.weighted(_coefficients(lines.gram(), t))


def _coefficients(gram: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Returns what the two vectors are multiplied by.

    Args:
        gram: their inner products, float64, of shape (2, 2, ...).
        t: how far from the first to the second.
    """
    norms = [gram[i, i].sqrt().clamp(min=_SHORTEST) for i in (0, 1)]
    cosine = (gram[0, 1] / (norms[0] * norms[1])).clamp(-1, 1)
    line = 1 - cosine.square() <= _COLINEAR
    theta = torch.acos(torch.where(line, 0.0, cosine))
    # Shoemake: sin((1 - t) theta) / sin theta v_0 + sin(t theta) / sin theta v_1
    start, end = (torch.where(line, part, torch.sin(part * theta) / torch.sin(theta)) for part in (1 - t, t))
    return start, end


NUSLERP = MergeMethod(
    name="nuslerp",
    summary="Along the arc between two models, or between their task vectors, by weights.",
    paper="https://doi.org/10.1145/325334.325242",
    parameters=(
        Parameter("weight", "The model's share: how far along the arc.", per_model=True, start="share"),
        Parameter("nuslerp_flatten", "Take a whole tensor as one vector.", kind="bool", default=True),
        Parameter(
            "nuslerp_row_wise",
            "Where tensors are not flattened, take vectors along the first dimension, not the last.",
            kind="bool",
            default=False,
        ),
    ),
    base="optional",
    models=(2, 2),
    merge=_nuslerp,
)
"""Spherical linear interpolation that takes weights: t = w_2 / (w_1 + w_2), 0.5 where they sum to less than 1e-6.

With a base, the task vectors are interpolated and B is added. A tensor is one vector, or each of its rows is (along
the last dimension), or with `nuslerp_row_wise` each of its columns. The angle is measured with norms of 1e-7 or more,
the coefficients are applied to the originals; vectors of one line, parallel or opposite, are interpolated linearly.
Shoemake 1985, Animating rotation with quaternion curves, https://doi.org/10.1145/325334.325242; as in mergekit.
"""
