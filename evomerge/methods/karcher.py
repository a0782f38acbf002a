"""Karcher: the mean of several models on the sphere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.kernels import Fused, Operands
from evomerge.methods.method import MergeMethod, Parameter, Parameters

# sin theta under which the direction from the mean to a unit vector is undefined: at the mean, or at the opposite pole.
_NO_WAY = 1e-6


def _karcher(operands: Operands, parameters: Parameters) -> Fused:
    gram = operands.gram()
    if len(gram) == 1:
        return operands.weighted((1.0,))
    norms, tol = np.sqrt(gram.diagonal()), float(parameters.shared["tol"])
    # NaN is not a short norm.
    long = ~(norms <= tol)
    if not long.any():
        return operands.weighted([0.0] * len(norms))
    cosines = np.clip(gram[np.ix_(long, long)] / np.outer(norms[long], norms[long]), -1, 1)
    mean = _mean(cosines, int(parameters.shared["max_iter"]), tol)
    coefficients = np.zeros(len(norms))
    coefficients[long] = mean / norms[long] * norms.mean()
    return operands.weighted(coefficients.tolist())


def _mean(cosines: NDArray[np.float64], max_iter: int, tol: float) -> NDArray[np.float64]:
    """Returns the mean of unit vectors on the sphere, as what they are multiplied by.

    Args:
        cosines: their inner products, of shape (n, n).
        max_iter: the most steps to take.
        tol: the length of a step at which to stop.
    """

    def length(vector: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.maximum((np.outer(vector, vector) * cosines).sum(), 0.0)))

    count = len(cosines)
    mean = np.full(count, 1 / count)
    start = length(mean)
    mean = np.eye(count)[0] if start <= tol else mean / start
    for _ in range(max_iter):
        toward = np.clip((cosines * mean).sum(axis=1), -1, 1)
        theta = np.arccos(toward)
        stretch = np.zeros(count)
        far = ~((theta < tol) | (np.sin(theta) < _NO_WAY))
        stretch[far] = theta[far] / np.sin(theta[far])
        # v = sum_i alpha theta_i / sin theta_i (u_i - cos theta_i u), the logarithms' mean
        step = (stretch - (stretch * toward).sum() * mean) / count
        size = length(step)
        if size < tol or size == 0:
            break
        # u <- cos |v| u + sin |v| v / |v|, the exponential map
        mean = np.cos(size) * mean + np.sin(size) / size * step
        end = length(mean)
        if not end <= tol:
            mean = mean / end
    return mean


KARCHER = MergeMethod(
    name="karcher",
    summary="The mean of several models on the sphere, at the mean of their norms.",
    paper="https://arxiv.org/abs/2603.04972",
    parameters=(
        Parameter("max_iter", "The most steps toward the mean.", kind="int", default=10, low=0, start=10),
        Parameter("tol", "The length of a step at which to stop.", default=1e-5, low=0.0, start=1e-5),
    ),
    base="unused",
    merge=_karcher,
)
"""The Karcher mean of the models' directions, at the mean of their norms; a base is one more model.

From the mean of the unit vectors u_i, u is moved by the mean of their logarithms,
v = 1/n sum of theta_i / sin theta_i (u_i - cos theta_i u), cos theta_i = <u_i, u>, along the sphere until |v| < `tol`.
Vectors shorter than `tol` have no direction, but count in the mean of the norms; all of them so short give zeros.
A vector at the pole opposite to u has no pull. All of it follows from the inner products, measured once.
As in mergekit, which names https://arxiv.org/abs/2603.04972 as its source.
"""
