"""SCE: select the elements on which models differ, weight models by how much they changed, erase minorities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from evomerge.kernels.fused import Fused, SourceTensor, combination
from evomerge.kernels.magnitudes import Magnitudes
from evomerge.kernels.operands import Operands
from evomerge.kernels.trace import Element, maximum
from evomerge.methods.method import MergeMethod, Parameter, Parameters
from evomerge.methods.sparsifiers import Spans
from evomerge.methods.task_arithmetic import elected

# Where the mean squares of all task vectors sum to less, models count alike.
_NO_SQUARES = 1e-6
# Weights that sum to less divide as if they summed to this.
_LEAST_WEIGHT = 1e-6


def _sce(operands: Operands, parameters: Parameters) -> Fused:
    models, topk = range(len(operands.tensors)), float(parameters.shared["select_topk"])
    inputs = (operands.required_base, *operands.tensors)
    if topk >= 1 or operands.numel == 0:
        squares = operands.gram().diagonal().tolist()
        return Fused.uniform(_erase, inputs, _weights(squares, operands.numel))
    # A search keeps the variances.
    variance = operands.derived("variance", partial(_variance, operands))
    count = int(
        topk * operands.once("differing", lambda: int(operands.total(Fused.uniform(_differing, (variance,), ()))))
    )
    if count == 0:
        # Nothing is selected; times zero, so that what is not a number stays so.
        return operands.weighted([0.0] * len(models))
    threshold = operands.once("variances", lambda: _order(operands, variance)).threshold(count)
    stops = sorted({operands.numel, threshold.position})
    cuts: Spans = tuple((stop, (threshold.dropped_up_to(stop),)) for stop in stops)
    squares = [Fused(_selected_square, (operands.required_base, tensor, variance), cuts) for tensor in operands.tensors]
    weights = _weights([operands.total(square) for square in squares], operands.numel)
    return Fused(_select_and_erase, (*inputs, variance), tuple((stop, (*weights, *cut)) for stop, cut in cuts))


def _weights(squares: Sequence[float], numel: int) -> list[float]:
    """Returns each model's share in the sum of the mean squares; equal ones where that is small."""
    means = [square / max(1, numel) for square in squares]
    total = sum(means)
    # Wan et al., eq. (3)
    return [1 / len(means)] * len(means) if total < _NO_SQUARES else [mean / total for mean in means]


def _variance(operands: Operands, start: int, stop: int) -> Tensor:
    """Returns the population variance of the task vectors at each element, flat, float32."""
    deltas = [operands.delta(i, start, stop).double() for i in range(len(operands.tensors))]
    mean = sum(deltas[1:], start=deltas[0]) / len(deltas)
    squares = [(delta - mean).square_() for delta in deltas]
    return (sum(squares[1:], start=squares[0]) / len(deltas)).float()


def _selected_square(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of d^2 where the variance exceeds the number, 0 elsewhere."""
    base, tensor, variance = blocks
    delta = tensor - base
    return delta * delta * (variance > numbers[0])


def _differing(blocks: Sequence[Element], _: Sequence[Element]) -> Element:
    """The kernel of 1 where the variance is not zero, else 0."""
    return blocks[0] > 0


def _order(operands: Operands, variance: SourceTensor) -> Magnitudes:
    # Not a number has a sign too.
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
    base="required",
    models=(1, None),
    merge=_sce,
    kept_bytes=4,
)
"""Select, calculate, erase: B plus a weighted mean of task vectors.

Select: of the elements at which the variance across models is not zero, those with the largest (`select_topk` of
them, the first of equals). Calculate: each model's weight is its mean squared d_i, as a share of all. Erase: those
d_i whose sign is not that of their sum do not count, in the sum nor in the weights that divide it (at least 1e-6).
Where all mean squares sum to less than 1e-6, which is so for many fine-tunes, models count alike: mergekit's rule.
Wan et al. 2024 (FuseChat), §3.3, https://arxiv.org/abs/2408.07990
"""
