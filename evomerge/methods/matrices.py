"""What the methods that see tensors as matrices share: products of small sides, and sums of prepared matrices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from evomerge.kernels import Element, Fused, LazyTensor, Operands, combination
from evomerge.methods.method import Parameter, Parameters

WEIGHT = Parameter("weight", "What the task's part is multiplied by.", per_model=True, default=1.0, start=1.0)
"""w_i; the papers have 1."""

LAMBDA = Parameter("lambda", "What the sum of all parts is multiplied by.", default=1.0, start=1.0)
"""The papers' scaling coefficient."""

# A singular value this small beside the largest is rounding of float32 numbers, and has no direction.
_NO_DIRECTION = 1e-6


def merged_matrices(
    operands: Operands, parameters: Parameters, key: Hashable, prepare: Callable[[Sequence[int]], Sequence[Tensor]]
) -> Fused:
    """Returns B + lambda sum of w_i M_i for a matrix; B + lambda times the mean of w_i d_i for any other tensor.

    Models without weight do not take part: neither in the matrices nor in the number that the mean divides by.

    Args:
        operands: the tensors; there is a base.
        parameters: with each model's ``weight``, and ``lambda``.
        key: what the matrices depend on beside the tensors and who takes part. A search keeps those of the last key.
        prepare: the indices of the models that take part to their M_i, float32.
    """
    weights = parameters.weights
    active = [model for model, weight in enumerate(weights) if weight != 0]
    if not is_matrix(operands) or not active:
        return mean_of_parts(operands, parameters)
    matrices = latest(operands, (key, *active), lambda: prepare(active))
    return added(operands, matrices, [float(parameters.shared["lambda"]) * weights[model] for model in active])


def mean_of_parts(operands: Operands, parameters: Parameters) -> Fused:
    """Returns B + lambda times the mean of w_i d_i over the models with a weight."""
    weights = parameters.weights
    scale = float(parameters.shared["lambda"]) / max(1, sum(weight != 0 for weight in weights))
    return operands.weighted([scale * weight for weight in weights])


def is_matrix(operands: Operands) -> bool:
    """Returns whether the tensors are matrices, of numbers that have products.

    Where a task vector is not finite, it is not: decompositions would raise, and the sum shows where it is.
    """
    return len(operands.shape) == 2 and operands.numel > 0 and bool(torch.from_numpy(operands.gram()).isfinite().all())


def latest(operands: Operands, key: Hashable, measure: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """Returns what `measure` returned for `key`; a search keeps the last key's, and no more, to bound its memory."""
    if not operands.kept:
        return measure()
    held: dict[Hashable, Sequence[Tensor]] = operands.once("latest matrices", dict)
    if key not in held:
        held.clear()
        held[key] = measure()
    return held[key]


def tall(matrix: Tensor) -> Tensor:
    """Returns the matrix, transposed where it is wider than tall."""
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def right_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the singular values above rounding, descending, and their right singular vectors, as columns.

    By way of the eigenvectors of the product of its columns, which is small where the matrix is tall.

    Args:
        matrix: float64, with no more columns than rows.
    """
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values = squares.clamp(min=0).sqrt().flip(0)
    count = int((values > _NO_DIRECTION * values[0]).sum())
    return values[:count], vectors.flip(1)[:, :count]


def added(operands: Operands, matrices: Sequence[Tensor], weights: Sequence[float]) -> Fused:
    """Returns the merge B + the weighted sum of `matrices`."""
    return Fused.uniform(_added, (*operands.with_base[:1], *map(LazyTensor.of, matrices)), weights)


def _added(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    base, *matrices = blocks
    return base + combination(matrices, numbers)
