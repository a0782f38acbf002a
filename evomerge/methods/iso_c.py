"""Iso-C: the sum of task vectors with all its singular values made equal."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.kernels import Fused, Operands
from evomerge.methods.matrices import LAMBDA, WEIGHT, added, is_matrix, latest, mean_of_parts, right_singular, tall
from evomerge.methods.method import MergeMethod, Parameters


def _iso_c(operands: Operands, parameters: Parameters) -> Fused:
    if not is_matrix(operands):
        return mean_of_parts(operands, parameters)
    weights = parameters.weights
    matrices = latest(operands, tuple(weights), lambda: [_isotropic(operands, weights)])
    return added(operands, matrices, [float(parameters.shared["lambda"])])


def _isotropic(operands: Operands, weights: Sequence[float]) -> Tensor:
    """Returns the weighted sum of the task vectors with all singular values replaced by their mean."""
    rows, columns = operands.shape
    total = operands.whole_delta(0).double().mul_(weights[0])
    for model, weight in enumerate(weights[1:], 1):
        total.add_(operands.whole_delta(model).double().mul_(weight))
    total = tall(total)
    # Delta = U Sigma V^T
    sigma, right = right_singular(total)
    # mean(sigma) U V^T, where U = Delta V Sigma^-1
    flat = total @ (right * (sigma.sum() / (min(rows, columns) * sigma))) @ right.T
    return (flat.T if rows < columns else flat).float().contiguous()


ISO_C = MergeMethod(
    name="iso_c",
    summary="The weighted sum of the task vectors, with all singular values of a matrix made equal.",
    paper="https://arxiv.org/abs/2502.04959",
    parameters=(WEIGHT, LAMBDA),
    merge=_iso_c,
    kept_bytes=4,
)
"""B + lambda mean(sigma) U V^T, for matrices; for other tensors, B + lambda times the mean of w_i d_i.

Isotropic merging in the common subspace. U diag(sigma) V^T is the singular value decomposition of the sum of w_i d_i;
all min(m, n) singular values are replaced by their mean. Directions without a singular value stay without one. At
weights of 1 it is the paper's.

The decomposition depends on the weights, so a candidate with other weights costs an eigenvalue decomposition of the
smaller side and two products; one with another lambda costs one pass.
Marczak et al. 2025, Iso-C, https://arxiv.org/abs/2502.04959
"""
