"""The task-arithmetic family: what fine-tuning added to a base, thinned out, weighted, summed, added back.

One composition makes all its members; a member says how its task vectors are thinned, whether the models
elect a sign for each element, and what `normalize` and `rescale` are where a recipe is silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evomerge.kernels import Element, Fused, LazyTensor, Operands, Spans, combination, total
from evomerge.methods.method import MergeMethod, Parameter, Parameters
from evomerge.methods.sparsifiers import MAGNITUDE, OUTLIERS, RANDOM, RANKED, Sparsifier, Thin, keep_all

# Under this L1 norm a task vector is taken to be zero and is not rescaled.
_NO_NORM = 1e-7
# Under this magnitude the weights are taken to cancel, and the sum is not divided by theirs.
_NO_WEIGHT = 1e-8


class _Part(NamedTuple):
    """What one model adds.

    Attributes:
        weight: w_i, its vote and its share in the divisor.
        thin: how its task vector is thinned out.
        inputs: its tensor, and what thinning reads.
        spans: what its task vector is multiplied by (w_i, rescaled), then the numbers for `thin`.
    """

    weight: float
    thin: Thin
    inputs: tuple[LazyTensor, ...]
    spans: Spans


@dataclass(frozen=True)
class _Composition:
    """The function of one member.

    Attributes:
        sparsifier: how task vectors are thinned out; None keeps them whole.
        consensus: whether the models elect a sign for each element, and those against it do not count.
    """

    sparsifier: Sparsifier | None
    consensus: bool

    def __call__(self, operands: Operands, parameters: Parameters) -> Fused:
        parts = list(self._parts(operands, parameters))
        scale, normalize = float(parameters.shared["lambda"]), bool(parameters.shared["normalize"])
        if normalize and not self.consensus:
            divisor = math.fsum(parameters.weights)
            scale /= 1.0 if abs(divisor) < _NO_WEIGHT else divisor
        kernel = _Kernel(tuple(part.thin for part in parts), self.consensus, normalize and self.consensus)
        numbers = (scale, *(part.weight for part in parts if kernel.divided))
        inputs = (*operands.with_base[:1], *(tensor for part in parts for tensor in part.inputs))
        stops = sorted({operands.numel, *(stop for part in parts for stop, _ in part.spans)})
        return Fused(kernel, inputs, tuple((stop, (*numbers, *_numbers_at(parts, stop))) for stop in stops))

    def _parts(self, operands: Operands, parameters: Parameters) -> Iterator[_Part]:
        """Yields what each model adds.

        A model whose weight or density is zero adds nothing and elects nothing: it is left out.
        """
        for model, (tensor, own) in enumerate(zip(operands.tensors, parameters.models, strict=True)):
            weight, density = float(own["weight"]), own.get("density", 1.0)
            if weight == 0 or density <= 0 or operands.numel == 0:
                continue
            if self.sparsifier is None or density >= 1:
                yield _Part(weight, keep_all, (tensor,), ((operands.numel, (weight,)),))
                continue
            thinned = self.sparsifier.choose(operands, model, own, int(parameters.shared.get("seed", 0)))
            factor = weight
            if parameters.shared["rescale"]:
                before, after = operands.l1_norm(model), thinned.norm()
                # Matches the L1 norms; the DARE paper divides by rho, which is this on average only.
                if not (before < _NO_NORM or after < _NO_NORM):
                    factor *= before / after
            spans = tuple((stop, (factor, *numbers)) for stop, numbers in thinned.spans)
            yield _Part(weight, thinned.thin, (tensor, *thinned.inputs), spans)


def _numbers_at(parts: Sequence[_Part], stop: int) -> Iterator[float]:
    """Yields the numbers of all parts that apply up to `stop`."""
    for part in parts:
        yield from next(numbers for end, numbers in part.spans if end >= stop)


@dataclass(frozen=True)
class _Kernel:
    """The kernel of B + lambda sum of w_i d_i, with or without a sign elected for each element.

    The numbers are lambda, the w_i where the sum is divided, and those of each `_Part`.

    Attributes:
        thins: how the task vector of each model that takes part is thinned out.
        consensus: Yadav et al., §4: the sign of an element is that of the sum of w_i d_i, + where that is zero (Elect);
            only the entries that have it count (Disjoint merge).
        divided: whether the sum is divided by the w_i of those that count.
    """

    thins: tuple[Thin, ...]
    consensus: bool
    divided: bool

    def __call__(self, blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
        base, others, own = blocks[0], iter(blocks[1:]), iter(numbers)
        scale = next(own)
        weights = [next(own) for _ in self.thins if self.divided]
        deltas = []
        for thin in self.thins:
            # Ilharco et al., §2: tau_i = theta_i - theta_pre
            delta, factor = next(others) - base, next(own)
            deltas.append(factor * thin(delta, others, own))
        if not deltas:
            return base
        agrees = elected(deltas) if self.consensus else []
        merged = total(delta * agree for delta, agree in zip(deltas, agrees, strict=True)) if agrees else total(deltas)
        if self.divided:
            divisor = combination(agrees, weights)
            # Where nothing counts, or the weights of what does cancel, by 1.
            merged /= divisor + (divisor == 0)
        # Ilharco et al., §2: theta = theta_pre + lambda tau
        return base + scale * merged


def elected(deltas: Sequence[Element]) -> list[Element]:
    """Returns, for each, 1 where it has the sign of the sum, + where that is zero; else 0."""
    # Yadav et al., §4 (Elect): gamma = sgn(sum_i w_i d_i) = 2 [sum >= 0] - 1
    sign = 2 * (total(deltas) >= 0) - 1
    return [delta * sign > 0 for delta in deltas]


def _member(
    name: str,
    summary: str,
    paper: str,
    sparsifier: Sparsifier | None = None,
    *,
    consensus: bool = False,
    normalize: bool = False,
) -> MergeMethod:
    """Returns a member of the family.

    Args:
        name: its name.
        summary: its summary.
        paper: its paper.
        sparsifier: see `_Composition`; where it is random, `rescale` is true by default.
        consensus: see `_Composition`.
        normalize: the default of the parameter.
    """
    random = sparsifier is not None and sparsifier.random
    parameters = [
        Parameter("weight", "What the task vector is multiplied by.", per_model=True, start="share"),
        Parameter("lambda", "What the sum of task vectors is multiplied by.", default=1.0, start=1.0),
        Parameter("normalize", "Divide by the sum of the weights.", kind="bool", default=normalize),
    ]
    if sparsifier is not None:
        rescale = "Restore the L1 norm that a task vector had before it was thinned out."
        parameters += [Parameter("rescale", rescale, kind="bool", default=random), *sparsifier.parameters]
    merge = _Composition(sparsifier, consensus)
    return MergeMethod(name, summary, paper, merge, tuple(parameters), kept_bytes=2 if random else 0)


TASK_ARITHMETIC = _member(
    "task_arithmetic",
    "The base plus the weighted task vectors.",
    "https://arxiv.org/abs/2212.04089",
)
"""B + lambda sum of w_i (X_i - B). Ilharco et al. 2022, §2, https://arxiv.org/abs/2212.04089"""

TIES = _member(
    "ties",
    "Task vectors trimmed to their largest elements, which elect a sign; those against it do not count.",
    "https://arxiv.org/abs/2306.01708",
    MAGNITUDE,
    consensus=True,
    normalize=True,
)
"""Trim, elect sign, disjoint merge. Yadav et al. 2023, §4, https://arxiv.org/abs/2306.01708

The weights take part in electing the sign, and in the mean.
"""

DARE_LINEAR = _member(
    "dare_linear",
    "The base plus the weighted task vectors, of which random elements are dropped.",
    "https://arxiv.org/abs/2311.03099",
    RANDOM,
)
"""Drop and rescale, then task arithmetic. Yu et al. 2023, §3.2, https://arxiv.org/abs/2311.03099

The rescaling matches L1 norms tensor by tensor, where the paper divides by the density.
"""

DARE_TIES = _member(
    "dare_ties",
    "Task vectors of which random elements are dropped, and whose sum elects a sign.",
    "https://arxiv.org/abs/2311.03099",
    RANDOM,
    consensus=True,
)
"""Drop and rescale, then the sign election of TIES. Yu et al. 2023, §3.2, https://arxiv.org/abs/2311.03099"""

BREADCRUMBS = _member(
    "breadcrumbs",
    "The base plus the weighted task vectors without their outliers and their smallest elements.",
    "https://arxiv.org/abs/2312.06795",
    OUTLIERS,
)
"""Sparse masks by layer, then task arithmetic. Davari and Belilovsky 2023, §3, https://arxiv.org/abs/2312.06795"""

BREADCRUMBS_TIES = _member(
    "breadcrumbs_ties",
    "Task vectors without their outliers and their smallest elements, whose sum elects a sign.",
    "https://arxiv.org/abs/2312.06795",
    OUTLIERS,
    consensus=True,
)
"""Sparse masks by layer, then the sign election of TIES.

Davari and Belilovsky 2023, §3, https://arxiv.org/abs/2312.06795
"""

DELLA = _member(
    "della",
    "Task vectors of which elements are dropped at random, small ones rather, and whose sum elects a sign.",
    "https://arxiv.org/abs/2406.11617",
    RANKED,
    consensus=True,
    normalize=True,
)
"""MagPrune, then elect and fuse. Deep et al. 2024, §3, https://arxiv.org/abs/2406.11617"""

DELLA_LINEAR = _member(
    "della_linear",
    "The base plus the weighted task vectors, of which elements are dropped at random, small ones rather.",
    "https://arxiv.org/abs/2406.11617",
    RANKED,
)
"""MagPrune, then task arithmetic. Deep et al. 2024, §3, https://arxiv.org/abs/2406.11617"""
