"""Whether a merge with random masks is one that its recipe describes.

Part of scripts/compare_mergekit.py. Two programs draw different masks, so their results are not compared with each
other but each with what the recipe allows. K models whose masks are random leave 2^K values that an element can have,
each with a probability that the recipe's densities give. Three things are then checked, tensor by tensor:

1. Every element has one of its values, to float32's rounding. What `rescale` multiplies a model by is one number for
   the whole tensor, not known beforehand: it is the one that most of the elements agree on.
2. With `rescale`, that number restores the L1 norm: to 1e-4 where every element shows which models it kept, and else to
   within `SIGMAS` standard deviations of what the densities let expect.
3. How many elements have each of the values, and the sum, the L1 norm and the squared L2 norm of what was added are
   within `SIGMAS` standard deviations of their expectations. Both follow exactly, element by element, from the values
   and their probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor

SIGMAS = 5.0
"""A right result fails one such test in 1.7 million; a run makes some thousand."""

_VALUE = 3e-6
"""How far an element may lie from a value: float32's rounding, and that of the rescaling factor."""

_SAMPLE = 1_000_000
"""From how many elements mergekit takes arcee_fusion's threshold, at most."""

_STATISTICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda values: values,
    "L1": torch.abs,
    "L2": torch.square,
}

_SAME = 1e-6
"""Values closer together than this cannot be distinguished."""

CONSENSUS = {"dare_linear": False, "dare_ties": True, "della_linear": False, "della": True}
"""The methods with random masks, and whether the models elect a sign."""


@dataclass(frozen=True)
class Masked:
    """One tensor's merge with random masks.

    Attributes:
        deltas: float64 of shape (K, N), for each model; those with density 0 left out.
        weights: K numbers.
        chances: float64 of shape (K, N): how probably each element is kept.
        consensus: whether the models elect a sign.
        normalize: divide by the weights.
        rescale: restore the L1 norms.
        factor: lambda.
    """

    deltas: Tensor
    weights: tuple[float, ...]
    chances: Tensor
    consensus: bool
    normalize: bool
    rescale: bool
    factor: float

    @classmethod
    def of(
        cls, method: str, base: Tensor, tensors: Sequence[Tensor], shared: Mapping[str, float], own: Sequence[dict]
    ) -> Masked:
        """Returns the merge of float32 `tensors` with the method's values, `own` those of each model."""
        used = [i for i, values in enumerate(own) if values["density"] > 0]
        deltas = [(tensors[i] - base).double() for i in used]
        chances = [
            _by_rank(delta, own[i]["density"], own[i]["epsilon"])
            if method.startswith("della") and own[i]["density"] < 1
            else torch.full_like(delta, min(1.0, own[i]["density"]))
            for i, delta in zip(used, deltas, strict=True)
        ]
        empty = torch.zeros((0, base.numel()), dtype=torch.float64)
        return cls(
            deltas=torch.stack([delta.reshape(-1) for delta in deltas]) if used else empty,
            weights=tuple(float(own[i]["weight"]) for i in used),
            chances=torch.stack([chance.reshape(-1) for chance in chances]) if used else empty,
            consensus=CONSENSUS[method],
            normalize=bool(shared["normalize"]),
            rescale=bool(shared["rescale"]),
            factor=float(shared["lambda"]),
        )

    @property
    def random(self) -> list[int]:
        """The models whose masks are random."""
        return [i for i, chance in enumerate(self.chances) if bool((chance < 1).any())]


@dataclass(frozen=True)
class Verdict:
    """What `examine` found in one tensor.

    Attributes:
        farthest: the largest distance of an element from the nearest of its values.
        share: the share of elements that the merge changed.
        expected_share: the share that the recipe lets expect.
        sigmas: the largest distance of a statistic from its expectation, in standard deviations.
        faults: what differs from the recipe.
    """

    farthest: float
    share: float
    expected_share: float
    sigmas: float
    faults: tuple[str, ...]


def examine(merged: Tensor, base: Tensor, case: Masked) -> Verdict:
    """Returns whether `merged`, one program's result, is a merge as `case` describes it."""
    seen = (merged.double() - base.double()).reshape(-1)
    scales = [1.0] * len(case.weights)
    if case.rescale:
        expected = (case.deltas.abs() * case.chances).sum(dim=1)
        scales = torch.where(expected > 0, case.deltas.abs().sum(dim=1) / expected, 1.0).tolist()
        scales = _agreed_scales(seen, case, scales) if case.factor else scales
    masks = [
        mask
        for mask in product((0.0, 1.0), repeat=len(scales))
        if all(mask[i] for i in range(len(scales)) if i not in case.random)
    ]
    values = torch.stack([_value(case, mask, scales) for mask in masks])
    chances = torch.stack([_chance(case, mask) for mask in masks])
    distances = (values - seen).abs()
    farthest, nearest = distances.min(dim=0)
    found = values.gather(0, nearest[None])[0]

    statistics = {}
    for mask, value in zip(masks, values, strict=True):
        # Where signs are elected, several masks may give an element the same value.
        same = ((values - value).abs() <= _SAME).double()
        chance = (chances * same).sum(dim=0)
        count = ((found - value).abs() <= _SAME).sum().item()
        models = ", ".join(str(i) for i, m in enumerate(mask) if m) or "none"
        statistics[f"elements as if kept were {models}"] = (
            count,
            chance.sum().item(),
            (chance * (1 - chance)).clamp(min=0).sum().item(),
        )
    for name, of in _STATISTICS.items():
        mean = (chances * of(values)).sum(dim=0)
        spread = (chances * of(values).square()).sum(dim=0) - mean.square()
        statistics[name] = (of(found).sum().item(), mean.sum().item(), max(0.0, spread.sum().item()))
    deviations = {name: _sigmas(*numbers) for name, numbers in statistics.items()}
    faults = []
    if farthest.max().item() > _VALUE:
        count = int((farthest > _VALUE).sum())
        faults.append(f"{count:,} elements have none of their values, one by {farthest.max().item():.3g}")
    if case.rescale:
        kept = torch.tensor(masks, dtype=torch.float64)[nearest]
        # What is zero is not rescaled.
        for i in [i for i in case.random if bool(case.deltas[i].any())]:
            faults += _scale_faults(case, scales[i], i, kept[:, i], deviations)
    faults += [
        f"{name}: {statistics[name][0]:.6g}, expected {statistics[name][1]:.6g}, {deviation:.1f} standard deviations"
        for name, deviation in deviations.items()
        if deviation > SIGMAS and name in statistics
    ]
    changed, expected_change = (found != 0).double().mean(), (chances * (values != 0)).sum(dim=0).mean()
    return Verdict(
        farthest.max().item(), changed.item(), expected_change.item(), max(deviations.values()), tuple(faults)
    )


def _by_rank(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """DELLA's probabilities: from density - epsilon for a row's smallest to density + epsilon for its largest."""
    rows = delta.abs() if delta.ndim > 1 else delta.abs().reshape(1, -1)
    ranks = rows.argsort(dim=1).argsort(dim=1).double()
    relative = ranks / (rows.shape[1] - 1) if rows.shape[1] > 1 else torch.full_like(ranks, 0.5)
    return (density - epsilon + 2 * epsilon * relative).reshape(delta.shape)


def _value(case: Masked, mask: Sequence[float], scales: Sequence[float]) -> Tensor:
    """What is added to the base where `mask` says which models are kept."""
    weights = torch.tensor(case.weights, dtype=torch.float64)[:, None]
    factors = torch.tensor([m * s for m, s in zip(mask, scales, strict=True)], dtype=torch.float64)[:, None]
    parts = case.deltas * (weights * factors)
    counted = _elected(parts) if case.consensus else torch.ones_like(parts)
    return case.factor * (parts * counted).sum(dim=0) / _divisor(case, counted)


def _elected(parts: Tensor) -> Tensor:
    """1 where a model's part has the sign of their sum, + where that is zero; 0 elsewhere."""
    sign = torch.where(parts.sum(dim=0) >= 0, 1.0, -1.0)
    return (parts.sign() == sign).double()


def _chance(case: Masked, mask: Sequence[float]) -> Tensor:
    """How probable `mask` is at each element."""
    chance = torch.ones(case.deltas.shape[1], dtype=torch.float64)
    for i in case.random:
        chance = chance * (case.chances[i] if mask[i] else 1 - case.chances[i])
    return chance


def _agreed_scales(seen: Tensor, case: Masked, expected: Sequence[float]) -> list[float]:
    """The factor of each model that most elements agree on.

    An element shows a model's factor, to a rounding, if the models that it kept are known but for that factor. So the
    factors are found one after the other, the model that is most often alone first; elements that kept something else
    show anything.
    """
    scales = list(expected)
    means = case.chances.mean(dim=1).tolist()
    unknown = sorted(case.random, key=lambda i: means[i], reverse=True)
    known = [i for i in range(len(scales)) if i not in unknown]
    while unknown:
        model = unknown.pop(0)
        sure = [i for i in known if i not in case.random]
        shown = [
            _shown_scales(seen, case, scales, {*kept, *sure, model}, model)
            for count in range(len(known) - len(sure) + 1)
            for kept in combinations([i for i in known if i not in sure], count)
        ]
        every = torch.cat(shown)
        every = every[(every > scales[model] / 3) & (every < scales[model] * 3)].sort().values
        if every.numel():
            ends = torch.searchsorted(every, every * (1 + 1e-4), right=True)
            start = int((ends - torch.arange(len(every))).argmax())
            scales[model] = every[start : int(ends[start])].median().item()
        known.append(model)
    return scales


def _shown_scales(seen: Tensor, case: Masked, scales: Sequence[float], kept: set[int], model: int) -> Tensor:
    """The factor of `model` at each element, if the models of `kept` were kept there."""
    weights = torch.tensor(case.weights, dtype=torch.float64)[:, None]
    factors = torch.tensor([scales[i] * (i in kept) for i in range(len(scales))], dtype=torch.float64)[:, None]
    parts = case.deltas * (weights * factors)
    counted = _elected(parts) if case.consensus else torch.ones_like(parts)
    own = case.deltas[model] * case.weights[model]
    others = (parts * counted).sum(dim=0) - parts[model] * counted[model]
    # Small deltas show the factor through their rounding only.
    usable = (counted[model] > 0) & (own.abs() > own.abs().median() / 2)
    return ((seen * _divisor(case, counted) / case.factor - others) / own)[usable]


def _divisor(case: Masked, counted: Tensor) -> Tensor:
    """What an element's sum is divided by, where `counted` says which models' signs were elected."""
    if not case.normalize:
        return torch.ones(counted.shape[1], dtype=torch.float64)
    weights = torch.tensor(case.weights, dtype=torch.float64)[:, None]
    total = (weights * counted).sum(dim=0)
    return total.masked_fill(total == 0 if case.consensus else total.abs() < 1e-8, 1.0)


def _scale_faults(case: Masked, scale: float, model: int, kept: Tensor, deviations: dict[str, float]) -> list[str]:
    """What is wrong with the factor that restores a model's L1 norm; adds its deviation to `deviations`."""
    size, chance = case.deltas[model].abs(), case.chances[model]
    expected = (size * chance).sum().item()
    variance = (size.square() * chance * (1 - chance)).sum().item()
    whole = size.sum().item()
    deviation = _sigmas(whole / scale, expected, variance)
    deviations[f"factor of model {model}"] = deviation
    faults = []
    if deviation > SIGMAS:
        faults.append(f"model {model} is rescaled by {scale:.6g}; expected {whole / expected:.6g}")
    # Where signs are elected, a model that lost does not show whether it was kept.
    if not case.consensus and abs(scale * (size * kept).sum().item() / whole - 1) > 1e-4:
        faults.append(f"model {model} is rescaled by {scale:.6g}, which does not restore its L1 norm")
    return faults


def fusion_faults(merged: Tensor, base: Tensor, other: Tensor) -> tuple[tuple[str, ...], int]:
    """Returns where `merged` is no arcee_fusion of float32 `other` into `base`, and how many elements are undecided.

    The threshold of the importance is not exactly known: the divergence is a sum of float32 terms that nearly cancel,
    and over a million elements mergekit takes the threshold from a sample of that many. So elements whose exact
    importance lies nearer to the exact threshold than that may go either way; all others must not.
    """
    exact, rounded = _importance(base.double(), other.double()), _importance(base, other).double()
    error = ((rounded - exact).abs() / exact.clamp(min=1e-30)).max().item()
    size = exact.numel()
    spread = SIGMAS / math.sqrt(_SAMPLE) if size > _SAMPLE else 0.0
    ordered = exact.reshape(-1).sort().values

    def quantile(q: float, way: int) -> float:
        rank = int(q * (size - 1)) + way * math.ceil(spread * math.sqrt(q * (1 - q)) * size)
        return ordered[min(size - 1, max(0, rank))].item()

    low = quantile(0.5, -1) + 1.5 * (quantile(0.75, -1) - quantile(0.25, 1))
    high = quantile(0.5, 1) + 1.5 * (quantile(0.75, 1) - quantile(0.25, -1))
    # Where the models agree there is nothing to choose.
    sure = (exact < low * (1 - 3 * error)) | (exact > high * (1 + 3 * error)) | (base == other)
    fused = exact >= (low + high) / 2
    as_base, as_other = ((merged - end).abs() <= 2e-7 * end.abs().clamp(min=1) for end in (base, other))
    wrong = sure & ~torch.where(fused, as_other, as_base)
    neither = ~(as_base | as_other)
    found = {"elements are neither model's": neither, "elements on the wrong side of the threshold": wrong}
    faults = tuple(f"{int(those.sum()):,} {text}" for text, those in found.items() if bool(those.any()))
    return faults, int((~sure).sum())


def _importance(base: Tensor, other: Tensor) -> Tensor:
    """arcee_fusion's importance of each element."""
    p, q = other.softmax(dim=-1) + 1e-8, base.softmax(dim=-1) + 1e-8
    return (other - base).abs() * (p * (p / q).log()).sum(dim=-1, keepdim=True)


def _sigmas(found: float, mean: float, variance: float) -> float:
    """How many standard deviations `found` lies from `mean`."""
    distance = abs(found - mean)
    # Nothing is random where the variance is zero; what is left is rounding.
    return 0.0 if distance <= 1e-6 * max(1.0, abs(mean)) else distance / math.sqrt(variance) if variance else math.inf
