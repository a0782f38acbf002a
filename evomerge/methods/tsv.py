"""TSV-Merge: the leading singular vectors of every task, made orthogonal to each other's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from evomerge.kernels import Fused, Operands
from evomerge.methods.matrices import LAMBDA, WEIGHT, merged_matrices, right_singular, tall
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# Directions in which the tasks' vectors span less than this are spanned by rounding alone.
_NO_SPAN = 1e-5


def _tsv(operands: Operands, parameters: Parameters) -> Fused:
    rank = float(parameters.shared["rank"])
    return merged_matrices(operands, parameters, ("tsv", rank), partial(_task_matrices, operands, rank))


def _task_matrices(operands: Operands, rank: float, active: Sequence[int]) -> list[Tensor]:
    """Returns each task's part of the merged matrix, at a weight of 1."""
    rows, columns = operands.shape
    smaller = min(rows, columns)
    # Where a matrix has fewer singular vectors than there are tasks, each keeps one.
    kept = min(smaller, max(1, int(rank * smaller / len(active)))) if rank > 0 else 0
    lefts, rights, values = [], [], []
    for model in active:
        delta = tall(operands.whole_delta(model)).double()
        # Delta_i = U_i Sigma_i V_i^T, of which the first k are kept
        sigma, right = right_singular(delta)
        sigma, right = sigma[:kept], right[:, :kept]
        lefts.append((delta @ right).div_(sigma))
        rights.append(right)
        values.append(sigma)
    # The orthogonal matrices nearest to U = [U_1 ... U_T] and V = [V_1 ... V_T], by task again
    counts = [len(sigma) for sigma in values]
    whitened = [torch.split(_whitened(torch.cat(parts, dim=1)), counts, dim=1) for parts in (lefts, rights)]
    # The merged matrix is the sum of U_i Sigma_i V_i^T with these.
    products = ((u * sigma) @ v.T for u, sigma, v in zip(whitened[0], values, whitened[1], strict=True))
    return [(product.T if rows < columns else product).float().contiguous() for product in products]


def _whitened(vectors: Tensor) -> Tensor:
    """Returns P Q^T of the singular value decomposition P D Q^T, without the directions in which D is zero."""
    if vectors.shape[1] == 0:
        return vectors
    squares, directions = torch.linalg.eigh(vectors.T @ vectors)
    held = squares > _NO_SPAN**2
    directions = directions[:, held]
    root: Tensor = (directions / squares[held].sqrt()) @ directions.T
    return vectors @ root


TSV = MergeMethod(
    name="tsv",
    summary="The leading singular vectors of every task vector, made orthogonal to each other's.",
    paper="https://arxiv.org/abs/2412.00081",
    parameters=(
        WEIGHT,
        LAMBDA,
        Parameter(
            "rank",
            "How many singular vectors a task keeps, in shares of the rank divided by the number of models.",
            default=1.0,
            low=0.0,
            start=1.0,
        ),
    ),
    merge=_tsv,
    kept_bytes=4,
)
"""B + lambda sum of w_i U'_i Sigma_i V'_i^T, for matrices; for other tensors, B + lambda times the mean of w_i d_i.

TSV-Merge. Of each task's matrix Delta_i = U_i Sigma_i V_i^T the k = `rank` r / T largest singular values and their
vectors are kept (r the smaller side, T the number of models; at least one). They stand side by side as U = [U_1 ...
U_T] and V = [V_1 ... V_T], and are decorrelated: U' = P_U Q_U^T of U = P_U D_U Q_U^T, the orthogonal matrix nearest
to U (Procrustes; the whitening U (U^T U)^(-1/2)), and V' likewise. Directions that have no singular value, or that
several tasks share so that U does not span as many as it has, are left out rather than made up.

At weights of 1 it is the paper's. Each task's part is made once for all weights and lambdas; a search of `rank`
makes them again, at the cost of an eigenvalue decomposition of the smaller side for each task and two for all.
Gargiulo et al. 2025, TSV-Merge, https://arxiv.org/abs/2412.00081
"""
