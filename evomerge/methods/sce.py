"""SCE: select the elements on which models differ, weight models by how much they changed, erase minorities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from evomerge.kernels.fused import Fused, SourceTensor
from evomerge.kernels.magnitudes import Magnitudes
from evomerge.kernels.operands import Operands
from evomerge.methods.method import MergeMethod, Parameter, Parameters
from evomerge.methods.sparsifiers import Spans
from evomerge.methods.task_arithmetic import added_up, elected_sign

# Where the mean squares of all task vectors sum to less, models count alike.
_NO_SQUARES = 1e-6
# Weights that sum to less divide as if they summed to this.
_LEAST_WEIGHT = 1e-6


def _sce(operands: Operands, parameters: Parameters) -> Fused:
    assert operands.base is not None  # MergeMethod has checked it; this line is for the type checker.
    models, topk = range(len(operands.tensors)), float(parameters.shared["select_topk"])
    inputs = (operands.base, *operands.tensors)
    if topk >= 1 or operands.numel == 0:
        squares = operands.gram().diagonal().tolist()
        return Fused.uniform(_erase, inputs, _weights(squares, operands.numel))
    count = int(topk * operands.once("differing", lambda: _differing(operands)))
    if count == 0:
        # Nothing is selected; times zero, so that what is not a number stays so.
        return operands.weighted([0.0] * len(models))
    variance = _variance_source(operands)
    threshold = operands.once("variances", lambda: _order(operands, variance)).threshold(count)
    stops = sorted({operands.numel, threshold.position})
    cuts = [(stop, threshold.dropped_up_to(stop)) for stop in stops]
    weights = _weights([_selected_square(operands, i, variance, cuts) for i in models], operands.numel)
    spans: Spans = tuple((stop, (*weights, cut)) for stop, cut in cuts)
    return Fused(_select_and_erase, (*inputs, variance), spans)


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


def _variance_source(operands: Operands) -> SourceTensor:
    """Returns the variances as a source; a search keeps them."""
    return operands.derived("variance", partial(_variance, operands))


def _order(operands: Operands, variance: SourceTensor) -> Magnitudes:
    # Not a number has a sign too.
    return Magnitudes(lambda a, b: variance.piece(a, b).abs(), operands.numel, kept=operands.kept)


def _differing(operands: Operands) -> int:
    return int(operands.total(lambda start, stop: _variance(operands, start, stop).sign_()))


def _selected_square(
    operands: Operands, source: int, variance: SourceTensor, cuts: Sequence[tuple[int, float]]
) -> float:
    """Returns the sum of the squares of the elements of a task vector that are selected."""
    total, start = 0.0, 0
    for stop, cut in cuts:

        def square(first: int, end: int, cut: float = cut) -> Tensor:
            return operands.delta(source, first, end).square_().mul_(_selected(variance.piece(first, end), cut))

        total += operands.total(square, start, stop)
        start = stop
    return total


def _selected(variance: Tensor, cut: float) -> Tensor:
    """Returns 1 where a variance exceeds `cut`, else 0."""
    return variance.hardshrink(cut).sign_()


def _erase(blocks: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    """The kernel of B + sum of w_i d_i over sum of w_i, over those that have the sign of the sum of d_i."""
    base, *tensors = blocks
    return _erased(base, tensors, numbers).add_(base)


def _select_and_erase(blocks: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    """The kernel with a selection: the last block has the variances, the last number what they must exceed."""
    base, *tensors, variance = blocks
    return _erased(base, tensors, numbers[:-1]).mul_(_selected(variance, numbers[-1])).add_(base)


def _erased(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    deltas = [tensor - base for tensor in tensors]
    sign = elected_sign(deltas)
    agreeing = [delta.mul_(sign).relu_() for delta in deltas]
    mixed = added_up([part * weight for part, weight in zip(agreeing, weights, strict=True)])
    divisor = added_up([part.sign_().mul_(weight) for part, weight in zip(agreeing, weights, strict=True)])
    return mixed.div_(divisor.clamp_(min=_LEAST_WEIGHT)).mul_(sign)


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
