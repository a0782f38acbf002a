"""Sparsifiers: which elements of a task vector the task-arithmetic family keeps.

A sparsifier is called only for densities between 0 and 1, both ends excluded: at 1 or more nothing is dropped, at 0 or
less everything. It returns a few numbers for each span of the tensor, so that thinning is part of the one pass that
merges; what is slow about the choice is measured once, see `Operands`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.kernels import Element, Fused, LazyTensor, Operands, Spans, hardshrink, pieces
from evomerge.kernels.fused import difference
from evomerge.kernels.noise import FIRST, LEVELS, as_numbers, cut, number_of
from evomerge.methods.method import Parameter, Value

Thin = Callable[[Element, Iterator[Element], Iterator[Element]], Element]
"""(element of the task vector, the further blocks, the numbers) to the element, or zero where it is dropped.

It takes its own from the blocks and numbers, in the order of `Thinned`, and leaves those that follow."""

# Rows are ranked in groups of about so many elements, so that memory is not bounded by the tensor.
_RANKED_TOGETHER = 1 << 21


@dataclass(frozen=True)
class Thinned:
    """What one task vector keeps.

    Attributes:
        thin: the kernel that drops elements.
        inputs: what it reads beside the task vector.
        spans: the numbers that it takes, of each span.
        norm: returns the sum of the magnitudes that are kept.
    """

    thin: Thin
    inputs: tuple[LazyTensor, ...]
    spans: Spans
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


def keep_all(delta: Element, _: Iterator[Element], __: Iterator[Element]) -> Element:
    """The kernel that drops nothing."""
    return delta


def _trim(delta: Element, _: Iterator[Element], numbers: Iterator[Element]) -> Element:
    return hardshrink(delta, next(numbers))


def _trim_outliers(delta: Element, _: Iterator[Element], numbers: Iterator[Element]) -> Element:
    # What exceeds the one without what exceeds the other too; exact.
    return hardshrink(delta, next(numbers)) - hardshrink(delta, next(numbers))


def _drop_at_random(delta: Element, blocks: Iterator[Element], numbers: Iterator[Element]) -> Element:
    return delta * (next(blocks) < next(numbers))


@dataclass(frozen=True)
class _Kept:
    """The kernel of the magnitudes that are kept."""

    thin: Thin

    def __call__(self, blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
        return abs(self.thin(difference(blocks, ()), iter(()), iter(numbers)))


def _trimmed(operands: Operands, model: int, thin: Thin, counts: Sequence[int]) -> Thinned:
    """Returns what is kept by the magnitudes of the `counts` largest elements: its norm is a sum over all elements."""
    spans = operands.magnitudes(model).dropped(counts)
    magnitudes = Fused(_Kept(thin), (*operands.with_base[:1], operands.tensors[model]), spans)
    return Thinned(thin, (), spans, lambda: operands.total(magnitudes))


def _by_magnitude(operands: Operands, model: int, values: Mapping[str, Value], _seed: int) -> Thinned:
    # At least one is kept, however short the tensor.
    return _trimmed(operands, model, _trim, [max(1, int(values["density"] * operands.numel))])


def _without_outliers(operands: Operands, model: int, values: Mapping[str, Value], _seed: int) -> Thinned:
    kept, top = (int(values[name] * operands.numel) for name in ("density", "gamma"))
    top = min(top, operands.numel - kept)
    return _trimmed(operands, model, _trim_outliers, [kept + top, top] if kept else [0, 0])


def _at_random(operands: Operands, model: int, values: Mapping[str, Value], seed: int) -> Thinned:
    return _random(operands, model, operands.noise(seed, model), float(values["density"]), ("noise", seed))


def _by_rank(operands: Operands, model: int, values: Mapping[str, Value], seed: int) -> Thinned:
    density, epsilon = float(values["density"]), float(values["epsilon"])
    if density - epsilon <= 0 or density + epsilon >= 1:
        raise MergeError(
            f"density is {density:g} and epsilon {epsilon:g}, so chances would go from {density - epsilon:g} to "
            f"{density + epsilon:g}; expected both inside (0, 1), make epsilon smaller"
        )
    ranked = partial(_noise_by_rank, operands, model, operands.noise(seed, model), epsilon)
    by_rank = operands.derived(("della", seed, model, epsilon), ranked)
    return _random(operands, model, by_rank, density, ("della", seed, epsilon))


def _noise_by_rank(operands: Operands, model: int, noise: LazyTensor, epsilon: float, start: int, stop: int) -> Tensor:
    """Returns random whole numbers that keep an element with its own chance when compared with one cut for all.

    An element of rank r in its row of n is kept where u < rho - epsilon + 2 epsilon (r - 1)/(n - 1); that is, where
    u + epsilon - 2 epsilon (r - 1)/(n - 1) < rho, whose left side does not depend on rho.
    """
    # Ranks are taken along dimension 1; a vector is one row.
    shape = operands.shape if len(operands.shape) > 1 else (1, operands.numel)
    row = math.prod(shape[1:])
    rows = -(-stop // row)
    parts = []
    for first, last in pieces(rows, max(1, _RANKED_TOGETHER // row), start // row):
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


def _random(operands: Operands, model: int, noise: LazyTensor, density: float, key: tuple[object, ...]) -> Thinned:
    level = cut(density)

    def norm() -> float:
        table = partial(_norms_by_cut, operands, model, noise)
        norms = operands.once(("norms", model, *key), table) if operands.kept else table()
        return float(norms[level - 1])

    numbers = LazyTensor(noise.shape, noise.device, lambda start, stop: as_numbers(noise.piece(start, stop)))
    return Thinned(_drop_at_random, (numbers,), ((operands.numel, (number_of(level),)),), norm)


def _norms_by_cut(operands: Operands, model: int, noise: LazyTensor) -> NDArray[np.float64]:
    """Returns, for each cut from 1 on, the sum of the magnitudes that it keeps."""
    norms = np.zeros(FIRST + LEVELS)
    for start, stop in pieces(operands.numel):
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
