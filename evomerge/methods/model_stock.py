"""Model Stock: how far from the base to the mean of a few fine-tunes, by the angle between them."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.kernels import Fused, Lines, Operands
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# Two norms whose product is smaller than this have no angle between them.
_NO_NORMS = 1e-6
# A divisor smaller than this is none: the models point away from each other, and the base is kept.
_SINGULAR = 1e-6


def _model_stock(operands: Operands, parameters: Parameters) -> Fused:
    count = len(operands.tensors)
    if not parameters.shared["filter_wise"] or operands.numel == 0:
        share = float(_ratio(torch.from_numpy(operands.gram()))) / count
        return operands.weighted([share] * count)
    lines = Lines(operands, columns=False)
    return lines.weighted([_ratio(lines.gram()) / count] * count)


def _ratio(gram: Tensor) -> Tensor:
    """Returns t, how far from the base to the mean.

    Args:
        gram: the inner products of the task vectors, float64, of shape (n, n, ...).
    """
    count = len(gram)
    norms = [gram[i, i].sqrt() for i in range(count)]
    pairs = [
        (gram[i, j] / (norms[i] * norms[j]).clamp(min=_NO_NORMS)).clamp(-1, 1) for i in range(count) for j in range(i)
    ]
    cosine = torch.stack(pairs).mean(dim=0)
    divisor = 1 + (count - 1) * cosine
    # Jang et al., eq. (3): t = N cos theta / (1 + (N - 1) cos theta)
    return torch.where(divisor.abs() < _SINGULAR, 0.0, count * cosine / divisor)


MODEL_STOCK = MergeMethod(
    name="model_stock",
    summary="Between the base and the mean of a few fine-tunes of it, by the angle between them.",
    paper="https://arxiv.org/abs/2403.19522",
    parameters=(Parameter("filter_wise", "Measure the angle for each row of a tensor.", kind="bool", default=False),),
    models=(2, None),
    merge=_model_stock,
)
"""t mean(X_i) + (1 - t) B, t = N cos theta / (1 + (N - 1) cos theta), theta the mean angle between task vectors.

cos theta is the mean cosine of all pairs, taken of a whole tensor or, with `filter_wise`, of each row; where
1 + (N - 1) cos theta is zero, t is.
Jang et al. 2024, §4, https://arxiv.org/abs/2403.19522
"""
