"""Linear: the weighted mean of the models."""

from __future__ import annotations

import math

from evomerge.errors import MergeError
from evomerge.kernels import Fused, Operands, combination
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# Below this magnitude the weights are taken to cancel; dividing by their sum would only magnify rounding.
_NO_WEIGHT = 1e-8


def _linear(operands: Operands, parameters: Parameters) -> Fused:
    # Wortsman et al., §2: theta = sum_i w_i theta_i / sum_i w_i
    return Fused.uniform(combination, operands.tensors, shares(parameters, "linear", "normalize"))


def shares(parameters: Parameters, method: str, flag: str) -> list[float]:
    """Returns the weights, divided by their sum where `flag` says so.

    Raises:
        MergeError: they are to be divided, and cancel.
    """
    weights = parameters.weights
    if not parameters.shared[flag]:
        return weights
    total = math.fsum(weights)
    if abs(total) < _NO_WEIGHT:
        raise MergeError(
            f"{method}: the weights {weights} sum to zero, so they cannot be normalized; "
            f"expected a sum other than zero, change a weight or set {flag} to false"
        )
    return [weight / total for weight in weights]


LINEAR = MergeMethod(
    name="linear",
    summary="The weighted mean of the models.",
    paper="https://arxiv.org/abs/2203.05482",
    parameters=(
        Parameter("weight", "The model's share in the mean.", per_model=True, start="share"),
        Parameter("normalize", "Divide by the sum of the weights.", kind="bool", default=True),
    ),
    base="unused",
    merge=_linear,
)
"""Weighted mean: sum of w_i X_i, divided by the sum of w_i where `normalize` is true.

Raises `MergeError` where weights to be normalized sum to less than 1e-8 in magnitude.
Wortsman et al. 2022 (Model soups), §2, https://arxiv.org/abs/2203.05482
"""
