"""Passthrough: one model's tensor as it is, for stacks of layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.methods.method import MergeMethod, Parameter, Parameters
from evomerge.methods.noise import Noise


def _passthrough(tensors: Sequence[Tensor], _base: Tensor | None, parameters: Parameters, _noise: Noise) -> Tensor:
    scale = float(parameters.models[0]["scale"])
    return tensors[0] if scale == 1 else tensors[0].mul(scale)


PASSTHROUGH = MergeMethod(
    name="passthrough",
    summary="One model's tensor as it is, or scaled; what stacks of layers are made of.",
    paper="https://arxiv.org/abs/2403.13187",
    parameters=(Parameter("scale", "What the tensor is multiplied by.", per_model=True, default=1.0, start=1.0),),
    base="unused",
    models=(1, 1),
    merge=_passthrough,
    elementwise=True,
)
"""The one tensor itself, times `scale`; where that is 1, the very argument is returned.

Akiba et al. 2024, Merging in the data flow space (§3.2), https://arxiv.org/abs/2403.13187
"""
