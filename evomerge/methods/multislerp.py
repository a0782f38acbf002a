"""Multi-SLERP: several models, or their task vectors, averaged on the sphere."""

from __future__ import annotations

import math

import numpy as np

from evomerge.kernels import Fused, Operands, combination
from evomerge.methods.linear import shares
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# A weighted sum of unit vectors shorter than this is what rounding to float32 leaves where they cancel.
_CANCELLED = 1e-7


def _multislerp(operands: Operands, parameters: Parameters) -> Fused:
    weights = np.array(shares(parameters, "multislerp", "normalize_weights"))
    if len(weights) == 1:
        return Fused.uniform(combination, operands.tensors, (1.0,))
    eps = float(parameters.shared["eps"])
    gram = operands.gram()
    norms = np.sqrt(gram.diagonal())
    # mu = sum_i w_i u_i, u_i = X_i / (|X_i| + eps), as what the X_i are multiplied by.
    mean = weights / np.maximum(norms + eps, np.finfo(np.float64).tiny)
    length = float(np.sqrt(np.maximum((np.outer(mean, mean) * gram).sum(), 0.0)))
    if length < max(eps, _CANCELLED):
        return operands.weighted(weights.tolist())
    # The tangents at mu / |mu| sum to zero: sum_i w_i (u_i - <u_i, mu> mu / |mu|^2) = mu - mu. What is left of
    # the exponential map is cos(eps) mu / |mu|.
    scale = math.cos(eps) / length * float((weights * norms).sum())
    return operands.weighted((mean * scale).tolist())


MULTISLERP = MergeMethod(
    name="multislerp",
    summary="Several models, or their task vectors, averaged on the sphere, with the mean of their norms.",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    parameters=(
        Parameter("weight", "The model's share in the mean.", per_model=True, start="share"),
        Parameter("normalize_weights", "Divide by the sum of the weights.", kind="bool", default=True),
        Parameter("eps", "What is added to norms before dividing by them.", default=1e-8, low=0.0, start=1e-8),
    ),
    base="optional",
    merge=_multislerp,
)
"""The weighted mean of the directions of the models (of the task vectors, where there is a base), at the length
sum of w_i |X_i|.

As in mergekit: units X_i / (|X_i| + eps), their weighted mean mu, the weighted mean of their tangents at mu, which is
zero, and the exponential map, which leaves cos(eps) mu / |mu|. Where the directions cancel (|mu| below `eps`), their
weighted sum; mergekit does so for two models and refuses more. A single model is taken as it is.
Raises `MergeError` where weights to be normalized sum to less than 1e-8 in magnitude.
Goddard 2024, Multi-SLERP, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea
"""
