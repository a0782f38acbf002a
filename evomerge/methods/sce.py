"""SCE: select the elements on which models differ, weight models by how much they changed, erase minorities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from operator import add

from torch import Tensor

from evomerge.kernels import Element, Fused, LazyTensor, Magnitudes, Operands, combination, maximum
from evomerge.methods.method import MergeMethod, Parameter, Parameters
from evomerge.methods.task_arithmetic import elected

# If the mean squares of all task vectors sum to less, models count equally.
_NO_SQUARES = 1e-6
# Weights that sum to less divide as if they summed to this.
_LEAST_WEIGHT = 1e-6


def _sce(operands: Operands, parameters: Parameters) -> Fused:
    topk = float(parameters.shared["select_topk"])
    if topk >= 1 or operands.numel == 0:
        squares = operands.gram().diagonal().tolist()
        return Fused.uniform(_erase, operands.with_base, _weights(squares, operands.numel))
    # A search keeps the variances.
    variance = operands.derived("variance", partial(_variance, operands))
    differing = operands.once("differing", lambda: operands.total(Fused.uniform(_differing, (variance,), ())))
    count = int(topk * int(differing))
    if count == 0:
        # Nothing is selected; times zero, so that NaN stays NaN.
        return operands.weighted([0.0] * len(operands.tensors))
    cuts = operands.once("variances", lambda: _order(operands, variance)).dropped([count])
    base, *tensors = operands.with_base
    squares = [Fused(_selected_square, (base, tensor, variance), cuts) for tensor in tensors]
    weights = _weights([operands.total(square) for square in squares], operands.numel)
    return Fused(_select_and_erase, (base, *tensors, variance), tuple((stop, (*weights, *cut)) for stop, cut in cuts))


def _weights(squares: Sequence[float], numel: int) -> list[float]:
    """Returns each model's share in the sum of the mean squares; equal ones where that is small."""
    means = [square / max(1, numel) for square in squares]
    total = sum(means)
    # Wan et al., eq. (3)
    return [1 / len(means)] * len(means) if total < _NO_SQUARES else [mean / total for mean in means]


def _variance(operands: Operands, start: int, stop: int) -> Tensor:
    """Returns the population variance of the task vectors at each element, flat, float32."""
    deltas = [operands.delta(i, start, stop).double() for i in range(len(operands.tensors))]
    mean = reduce(add, deltas) / len(deltas)
    return (reduce(add, [(delta - mean).square_() for delta in deltas]) / len(deltas)).float()


def _selected_square(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of d^2 where the variance exceeds the number, 0 elsewhere."""
    base, tensor, variance = blocks
    delta = tensor - base
    return delta * delta * (variance > numbers[0])


def _differing(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of 1 where the variance is not zero, else 0."""
    return blocks[0] > 0


def _order(operands: Operands, variance: LazyTensor) -> Magnitudes:
    # NaN has a sign too, which the order of bits must not see.
    return Magnitudes(lambda a, b: variance.piece(a, b).abs(), operands.numel, kept=operands.kept)


def _erase(blocks: Sequence[Element], weights: Sequence[Element]) -> Element:
    """The kernel of B + sum of w_i d_i over sum of w_i, over those that have the sign of the sum of d_i."""
    base, *tensors = blocks
    return base + _erased(base, tensors, weights)


def _select_and_erase(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel with a selection: the last block has the variances, the last number what they must exceed."""
    (base, *tensors, variance), (*weights, cut) = blocks, numbers
    return base + _erased(base, tensors, weights) * (variance > cut)


def _erased(base: Element, tensors: Sequence[Element], weights: Sequence[Element]) -> Element:
    deltas = [tensor - base for tensor in tensors]
    agrees = elected(deltas)
    kept = [delta * own for delta, own in zip(deltas, agrees, strict=True)]
    return combination(kept, weights) / maximum(combination(agrees, weights), _LEAST_WEIGHT)


SCE = MergeMethod(
    name="sce",
    summary="The task vectors where models differ most, weighted by their squares; minorities do not count.",
    paper="https://arxiv.org/abs/2408.07990",
    parameters=(
        Parameter(
            "select_topk", "The share of the differing elements to keep.", default=1.0, low=0.0, high=1.0, start=1.0
        ),
    ),
    merge=_sce,
    kept_bytes=4,
)
"""Select, calculate, erase: B plus a weighted mean of task vectors.

Select: of the elements at which the variance across models is not zero, those with the largest (`select_topk` of
them, the first of equals). Calculate: each model's weight is its mean squared d_i, as a share of all. Erase: those
d_i whose sign is not that of their sum do not count, in the sum nor in the weights that divide it (at least 1e-6).
If all mean squares sum to less than 1e-6, as for many fine-tunes, models count equally: mergekit's rule.
Wan et al. 2024 (FuseChat), §3.3, https://arxiv.org/abs/2408.07990
"""
