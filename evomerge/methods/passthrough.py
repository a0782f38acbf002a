"""Passthrough: one model's tensor as it is, for stacks of layers."""

from __future__ import annotations

from evomerge.kernels import Fused, Operands, combination
from evomerge.methods.method import MergeMethod, Parameter, Parameters


def _passthrough(operands: Operands, parameters: Parameters) -> Fused:
    # Times one changes no number, not even the sign of a zero.
    return Fused.uniform(combination, operands.tensors, (float(parameters.models[0]["scale"]),))


PASSTHROUGH = MergeMethod(
    name="passthrough",
    summary="One model's tensor as it is, or scaled; what stacks of layers are made of.",
    paper="https://arxiv.org/abs/2403.13187",
    parameters=(Parameter("scale", "What the tensor is multiplied by.", per_model=True, default=1.0, start=1.0),),
    base="unused",
    models=(1, 1),
    merge=_passthrough,
)
"""The one tensor itself, times `scale`.

Akiba et al. 2024, Merging in the data flow space (§3.2), https://arxiv.org/abs/2403.13187
"""
