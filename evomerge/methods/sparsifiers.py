"""Sparsifiers: which elements of a task vector the task-arithmetic family keeps.

Each is only asked for a density between 0 and 1, both ends excluded: at 1 or more nothing is dropped and at 0 or less
everything, whatever the sparsifier. What it answers is a few numbers for each span of the tensor, so that thinning is
part of the one pass that merges; whatever is slow about the choice is measured once, see `Operands`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.kernels.fused import Fused, SourceTensor
from evomerge.kernels.magnitudes import Threshold
from evomerge.kernels.noise import FIRST, LEVELS, as_numbers, cut, number_of
from evomerge.kernels.operands import Operands
from evomerge.kernels.trace import Element, hardshrink
from evomerge.methods.method import Parameter, Value

Spans = tuple[tuple[int, tuple[float, ...]], ...]
"""(element past the last, numbers that hold up to there), ascending."""

Thin = Callable[[Element, Sequence[Element], Sequence[Element]], Element]
"""See `Thinned.thin`."""

# Rows are ranked in groups of about so many elements, so that memory is not bounded by the tensor.
_RANKED_TOGETHER = 1 << 21


@dataclass(frozen=True)
class Thinned:
    """What one task vector keeps.

    Attributes:
        inputs: what is read beside the task vector.
        spans: the numbers that `thin` takes after the task vector, of each span.
        thin: (element of the task vector, of each of `inputs`, numbers) to the element, or zero where it is dropped.
        norm: gives the sum of the magnitudes that are kept.
    """

    inputs: tuple[SourceTensor, ...]
    spans: Spans
    thin: Thin
    norm: Callable[[], float]


@dataclass(frozen=True)
class Sparsifier:
    """A way to choose the elements to keep.

    Attributes:
        parameters: what it takes; `density` among them.
        choose: (operands, index of the model, its values, the seed) to what is kept of its task vector.
        random: whether it draws random numbers.
    """

    parameters: tuple[Parameter, ...]
    choose: Callable[[Operands, int, Mapping[str, Value], int], Thinned]
    random: bool = False


DENSITY = Parameter("density", "The share of the task vector to keep.", per_model=True, default=1.0, low=0.0, high=1.0)
"""The share of elements to keep, rho; for all sparsifiers."""

SEED = Parameter("seed", "Which random masks to use.", kind="int", default=0)
"""What the random numbers of the random sparsifiers are drawn from, with the model and the tensor."""

GAMMA = Parameter(
    "gamma", "The share of the largest elements to drop as outliers.", per_model=True, default=0.01, low=0.0, high=1.0
)
"""How many of the largest elements breadcrumbs drops."""

EPSILON = Parameter(
    "epsilon", "By how much an element's chance depends on its rank.", per_model=True, default=0.15, low=0.0, high=0.5
)
"""Half the difference between the chances of a row's smallest and largest element."""


def _trim(delta: Element, _: Sequence[Element], numbers: Sequence[Element]) -> Element:
    (least,) = numbers
    return hardshrink(delta, least)


def _trim_outliers(delta: Element, _: Sequence[Element], numbers: Sequence[Element]) -> Element:
    least, most = numbers
    # What exceeds the one without what exceeds the other too; exact.
    return hardshrink(delta, least) - hardshrink(delta, most)


def _drop_at_random(delta: Element, blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    (noise,), (cut,) = blocks, numbers
    return delta * (noise < cut)


def _largest(operands: Operands, model: int, counts: Sequence[int]) -> Spans:
    """Returns, for each of the counts, the magnitude up to which elements are not among so many largest."""
    thresholds = [
        operands.magnitudes(model).threshold(count) if count else Threshold.of_none(operands.numel) for count in counts
    ]
    stops = sorted({operands.numel, *(threshold.position for threshold in thresholds)})
    return tuple((stop, tuple(threshold.dropped_up_to(stop) for threshold in thresholds)) for stop in stops)


@dataclass(frozen=True)
class _Kept:
    """The kernel of the magnitudes that are kept."""

    thin: Thin

    def __call__(self, blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
        tensor, base = blocks
        return abs(self.thin(tensor - base, (), numbers))


def _trimmed(operands: Operands, model: int, spans: Spans, thin: Thin) -> Thinned:
    """Returns what is kept where nothing is random: its norm is a sum over all elements."""
    magnitudes = Fused(_Kept(thin), (operands.tensors[model], operands.required_base), spans)
    return Thinned((), spans, thin, lambda: operands.total(magnitudes))


def _by_magnitude(operands: Operands, model: int, values: Mapping[str, Value], _seed: int) -> Thinned:
    # At least one is kept, however short the tensor.
    count = max(1, int(values["density"] * operands.numel))
    return _trimmed(operands, model, _largest(operands, model, (count,)), _trim)


def _without_outliers(operands: Operands, model: int, values: Mapping[str, Value], _seed: int) -> Thinned:
    kept, top = (int(values[name] * operands.numel) for name in ("density", "gamma"))
    top = min(top, operands.numel - kept)
    if kept == 0:
        spans: Spans = ((operands.numel, (math.inf, math.inf)),)
    else:
        spans = _largest(operands, model, (kept + top, top))
    return _trimmed(operands, model, spans, _trim_outliers)


def _at_random(operands: Operands, model: int, values: Mapping[str, Value], seed: int) -> Thinned:
    return _random(operands, model, operands.noise(seed, model), float(values["density"]), ("noise", seed))


def _by_rank(operands: Operands, model: int, values: Mapping[str, Value], seed: int) -> Thinned:
    density, epsilon = float(values["density"]), float(values["epsilon"])
    if density - epsilon <= 0 or density + epsilon >= 1:
        raise MergeError(
            f"density is {density:g} and epsilon {epsilon:g}, so chances would go from {density - epsilon:g} to "
            f"{density + epsilon:g}; expected both inside (0, 1), make epsilon smaller"
        )
    noise = operands.noise(seed, model)

    def ranked(start: int, stop: int) -> Tensor:
        return _noise_by_rank(operands, model, noise, epsilon, start, stop)

    by_rank = operands.derived(("della", seed, model, epsilon), ranked)
    return _random(operands, model, by_rank, density, ("della", seed, epsilon))


def _noise_by_rank(
    operands: Operands, model: int, noise: SourceTensor, epsilon: float, start: int, stop: int
) -> Tensor:
    """Returns random whole numbers that keep an element with its own chance when compared with one cut for all.

    An element of rank r in its row of n is kept where u < rho - epsilon + 2 epsilon (r - 1)/(n - 1); that is, where
    u + epsilon - 2 epsilon (r - 1)/(n - 1) < rho, whose left side does not depend on rho.
    """
    # Ranks are taken along dimension 1; a vector is one row.
    shape = operands.shape if len(operands.shape) > 1 else (1, operands.numel)
    row = math.prod(shape[1:])
    rows = max(1, _RANKED_TOGETHER // row)
    parts = []
    for first in range(start // row, -(-stop // row), rows):
        last = min(first + rows, -(-stop // row))
        magnitudes = operands.distance(model, first * row, last * row).view(last - first, *shape[1:])
        ranks = magnitudes.argsort(dim=1, stable=True).argsort(dim=1).to(torch.float64)
        # The only element of a row has no rank: its chance is rho itself.
        relative = ranks.div_(shape[1] - 1) if shape[1] > 1 else torch.full_like(ranks, 0.5)
        moved = relative.mul_(-2 * epsilon * LEVELS).add_(epsilon * LEVELS).view(-1)
        moved = moved.add_(noise.piece(first * row, last * row)).round_().clamp_(FIRST, FIRST + LEVELS - 1)
        parts.append(moved.to(torch.int16))
    whole = torch.cat(parts)
    offset = start // row * row
    return whole[start - offset : stop - offset]


def _random(operands: Operands, model: int, noise: SourceTensor, density: float, key: tuple[object, ...]) -> Thinned:
    level = cut(density)

    def norm() -> float:
        def table() -> NDArray[np.float64]:
            return _norms_by_cut(operands, model, noise)

        norms = operands.once(("norms", model, *key), table) if operands.kept else table()
        return float(norms[level - 1])

    numbers = SourceTensor(noise.shape, noise.device, lambda start, stop: as_numbers(noise.piece(start, stop)))
    return Thinned((numbers,), ((operands.numel, (number_of(level),)),), _drop_at_random, norm)


def _norms_by_cut(operands: Operands, model: int, noise: SourceTensor) -> NDArray[np.float64]:
    """Returns, for each cut from 1 on, the sum of the magnitudes that it keeps."""
    norms = np.zeros(FIRST + LEVELS)
    for start, stop in operands.pieces():
        magnitudes = operands.distance(model, start, stop).cpu().numpy()
        levels = noise.piece(start, stop).cpu().numpy()
        norms += np.bincount(levels, magnitudes, len(norms))
    return norms.cumsum()


MAGNITUDE = Sparsifier((DENSITY,), _by_magnitude)
"""Keeps the k = max(1, floor(rho N)) elements of largest magnitude, the first of equals.

Yadav et al. 2023, §4 (Trim), https://arxiv.org/abs/2306.01708
"""

OUTLIERS = Sparsifier((DENSITY, GAMMA), _without_outliers)
"""Drops the floor(gamma N) largest elements, and the smallest ones until floor(rho N) are left.

Fewer of the largest are dropped where too few would be left. Davari and Belilovsky 2023, §3,
https://arxiv.org/abs/2312.06795
"""

RANDOM = Sparsifier((DENSITY, SEED), _at_random, random=True)
"""Keeps each element with probability rho, independently.

Yu et al. 2023, §3.2 (Drop), https://arxiv.org/abs/2311.03099
"""

RANKED = Sparsifier((DENSITY, EPSILON, SEED), _by_rank, random=True)
"""Keeps each element with a probability that goes from rho - epsilon to rho + epsilon with its rank in its row.

Deep et al. 2024, §3 (MagPrune), https://arxiv.org/abs/2406.11617
"""
