"""The task-arithmetic family: what fine-tuning added to a base, thinned out, weighted, summed, added back.

One composition makes all its members; a member says how its task vectors are thinned, whether the models
elect a sign for each element, and what `normalize` and `rescale` are where a recipe is silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evomerge.methods.method import MergeMethod, Parameter, Parameters
from evomerge.methods.noise import Noise
from evomerge.methods.reduction import l1_norm
from evomerge.methods.sparsifiers import MAGNITUDE, RANDOM, Sparsifier

# Under this L1 norm a task vector is taken to be zero and is not rescaled.
_NO_NORM = 1e-7
# Under this magnitude the weights are taken to cancel, and the sum is not divided by theirs.
_NO_WEIGHT = 1e-8


@dataclass(frozen=True)
class _Composition:
    """The function of one member.

    Attributes:
        sparsifier: how task vectors are thinned out; None keeps them whole.
        consensus: whether the models elect a sign for each element, and those against it do not count.
    """

    sparsifier: Sparsifier | None
    consensus: bool

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None, parameters: Parameters, noise: Noise) -> Tensor:
        assert base is not None  # MergeMethod has checked it; this line is for the type checker.
        normalize = bool(parameters.shared["normalize"])
        scale = float(parameters.shared["lambda"])
        deltas = self._weighted_deltas(tensors, base, parameters, noise)
        if self.consensus:
            mixed = _elected_sum(deltas, base, normalize)
        else:
            mixed = _sum(deltas, base)
            if normalize:
                divisor = math.fsum(own["weight"] for own in parameters.models)
                scale /= 1.0 if abs(divisor) < _NO_WEIGHT else divisor
        if scale != 1:
            mixed.mul_(scale)
        # Ilharco et al., §2: theta = theta_pre + lambda tau
        return mixed.add_(base)

    def _weighted_deltas(
        self, tensors: Sequence[Tensor], base: Tensor, parameters: Parameters, noise: Noise
    ) -> Iterator[tuple[float, Tensor]]:
        """Yields each model's weight w_i and w_i d_i, thinned out and rescaled, which the caller may change.

        A model whose weight or density is zero adds nothing and elects nothing: it is left out.
        """
        for source, (tensor, own) in enumerate(zip(tensors, parameters.models, strict=True)):
            weight, density = float(own["weight"]), own.get("density", 1.0)
            if weight == 0 or density <= 0:
                continue
            # Ilharco et al., §2: tau_i = theta_i - theta_pre
            delta = tensor - base
            factor = weight
            if self.sparsifier is not None and density < 1:
                rescale = parameters.shared["rescale"]
                before = l1_norm(delta) if rescale else 0.0
                self.sparsifier.drop(delta, own, partial(noise, source))
                after = l1_norm(delta) if rescale else 0.0
                # Matches the L1 norms; the DARE paper divides by rho, which is this on average only.
                if rescale and not (before < _NO_NORM or after < _NO_NORM):
                    factor *= before / after
            if factor != 1:
                delta.mul_(factor)
            yield weight, delta


def _sum(deltas: Iterable[tuple[float, Tensor]], base: Tensor) -> Tensor:
    """Returns the sum of w_i d_i."""
    total: Tensor | None = None
    for _, delta in deltas:
        total = delta if total is None else total.add_(delta)
    return torch.zeros_like(base) if total is None else total


def _elected_sum(deltas: Iterable[tuple[float, Tensor]], base: Tensor, normalize: bool) -> Tensor:
    """Returns the sum of the w_i d_i that have the elected sign, divided by their w_i where `normalize`.

    Yadav et al., §4: the sign of an element is that of the sum, + where that is zero (Elect); only the
    entries that have it count (Disjoint merge). The entries above zero and those below are summed apart:
    the greater sum is then both the sign and the result, and no model's delta need be held for a second
    look.
    """
    above, below = torch.zeros_like(base), torch.zeros_like(base)
    divisors = (torch.zeros_like(base), torch.zeros_like(base)) if normalize else None
    for weight, delta in deltas:
        if divisors is not None:
            divisors[0].add_(delta > 0, alpha=weight)
            divisors[1].add_(delta < 0, alpha=weight)
        above.add_(delta.clamp(min=0))
        below.add_(delta.clamp_(max=0))
    # Elect: gamma = sgn(sum_i w_i d_i); comparing the two sums is exact, where adding them would round.
    positive = above >= below.neg()
    mixed = torch.where(positive, above, below)
    if divisors is not None:
        divisor = torch.where(positive, *divisors)
        mixed.div_(divisor.masked_fill_(divisor == 0, 1.0))
    return mixed


def _member(
    name: str,
    summary: str,
    paper: str,
    *,
    sparsifier: Sparsifier | None,
    consensus: bool,
    normalize: bool,
    rescale: bool = False,
) -> MergeMethod:
    """Returns a member of the family; `normalize` and `rescale` are its defaults."""
    parameters = [
        Parameter("weight", "What the task vector is multiplied by.", per_model=True, start="share"),
        Parameter("lambda", "What the sum of task vectors is multiplied by.", default=1.0, start=1.0),
        Parameter("normalize", "Divide by the sum of the weights.", kind="bool", default=normalize),
    ]
    if sparsifier is not None:
        summary_of_rescale = "Restore the L1 norm that a task vector had before it was thinned out."
        parameters.append(Parameter("rescale", summary_of_rescale, kind="bool", default=rescale))
        parameters.extend(sparsifier.parameters)
    return MergeMethod(
        name=name,
        summary=summary,
        paper=paper,
        parameters=tuple(parameters),
        base="required",
        models=(1, None),
        merge=_Composition(sparsifier, consensus),
        elementwise=sparsifier is None,
    )


TASK_ARITHMETIC = _member(
    "task_arithmetic",
    "The base plus the weighted task vectors.",
    "https://arxiv.org/abs/2212.04089",
    sparsifier=None,
    consensus=False,
    normalize=False,
)
"""B + lambda sum of w_i (X_i - B). Ilharco et al. 2022, §2, https://arxiv.org/abs/2212.04089"""

TIES = _member(
    "ties",
    "Task vectors trimmed to their largest elements, which elect a sign; those against it do not count.",
    "https://arxiv.org/abs/2306.01708",
    sparsifier=MAGNITUDE,
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
    sparsifier=RANDOM,
    consensus=False,
    normalize=False,
    rescale=True,
)
"""Drop and rescale, then task arithmetic. Yu et al. 2023, §3.2, https://arxiv.org/abs/2311.03099

The rescaling matches L1 norms tensor by tensor, where the paper divides by the density.
"""

DARE_TIES = _member(
    "dare_ties",
    "Task vectors of which random elements are dropped, and whose sum elects a sign.",
    "https://arxiv.org/abs/2311.03099",
    sparsifier=RANDOM,
    consensus=True,
    normalize=False,
    rescale=True,
)
"""Drop and rescale, then the sign election of TIES. Yu et al. 2023, §3.2, https://arxiv.org/abs/2311.03099"""
