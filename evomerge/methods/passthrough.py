"""Passthrough: one model's tensor as it is, for stacks of layers."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.kernels import Element, Fused, Operands, combination
from evomerge.methods.method import MergeMethod, Parameter, Parameters


def _shifted(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of c_1 X + c_2."""
    return numbers[0] * blocks[0] + numbers[1]


def _passthrough(operands: Operands, parameters: Parameters) -> Fused:
    scale, shift = (float(parameters.models[0][name]) for name in ("scale", "shift"))
    # Times one changes no number, not even the sign of a zero; plus zero does.
    if shift == 0:
        return Fused.uniform(combination, operands.tensors, (scale,))
    return Fused.uniform(_shifted, operands.tensors, (scale, shift))


PASSTHROUGH = MergeMethod(
    name="passthrough",
    summary="One model's tensor as it is, or scaled; what stacks of layers are made of.",
    paper="https://arxiv.org/abs/2403.13187",
    parameters=(
        Parameter("scale", "What the tensor is multiplied by.", per_model=True, default=1.0, start=1.0),
        Parameter("shift", "What is added to each element after that.", per_model=True, default=0.0, start=0.0),
    ),
    base="unused",
    models=(1, 1),
    merge=_passthrough,
)
"""The one tensor itself: scale * tensor + shift.

Akiba et al. 2024, Merging in the data flow space (§3.2), https://arxiv.org/abs/2403.13187. With a scale of c and a
shift of c - 1, the weight of a norm that multiplies by 1 + weight is that of the norm times c.
"""
