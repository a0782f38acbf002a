"""The task-arithmetic family: what fine-tuning added to a base, thinned out, weighted, summed, added back.

One composition makes all its members; a member says how its task vectors are thinned, whether the models
elect a sign for each element, and what `normalize` and `rescale` are where a recipe is silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evomerge.kernels.fused import Fused, SourceTensor, combination
from evomerge.kernels.operands import Operands
from evomerge.kernels.trace import Element, total
from evomerge.methods.method import MergeMethod, Parameter, Parameters
from evomerge.methods.sparsifiers import MAGNITUDE, OUTLIERS, RANDOM, RANKED, Spans, Sparsifier, Thin

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

    def __call__(self, operands: Operands, parameters: Parameters) -> Fused:
        parts = list(self._parts(operands, parameters))
        normalize = bool(parameters.shared["normalize"])
        scale = float(parameters.shared["lambda"])
        if normalize and not self.consensus:
            divisor = math.fsum(own["weight"] for own in parameters.models)
            scale /= 1.0 if abs(divisor) < _NO_WEIGHT else divisor
        forms = tuple(_Form(part.thin, len(part.inputs), len(part.spans[0][1])) for part in parts)
        last: tuple[float, ...] = (scale,)
        kernel = _Sum(forms)
        if self.consensus:
            kernel = _ElectedSum(forms, normalize)
            last = (*(part.weight for part in parts if normalize), scale)
        inputs = (operands.required_base, *(source for part in parts for source in part.inputs))
        return Fused(kernel, inputs, _merged_spans(operands.numel, parts, last))

    def _parts(self, operands: Operands, parameters: Parameters) -> Iterator[_Part]:
        """Yields what each model adds.

        A model whose weight or density is zero adds nothing and elects nothing: it is left out.
        """
        for model, (tensor, own) in enumerate(zip(operands.tensors, parameters.models, strict=True)):
            weight, density = float(own["weight"]), own.get("density", 1.0)
            if weight == 0 or density <= 0 or operands.numel == 0:
                continue
            if self.sparsifier is None or density >= 1:
                yield _Part(weight, weight, (tensor,), None, ((operands.numel, ()),))
                continue
            thinned = self.sparsifier.choose(operands, model, own, int(parameters.shared.get("seed", 0)))
            factor = weight
            if parameters.shared["rescale"]:
                before, after = operands.l1_norm(model), thinned.norm()
                # Matches the L1 norms; the DARE paper divides by rho, which is this on average only.
                if not (before < _NO_NORM or after < _NO_NORM):
                    factor *= before / after
            yield _Part(weight, factor, (tensor, *thinned.inputs), thinned.thin, thinned.spans)


@dataclass(frozen=True)
class _Part:
    """What one model adds.

    Attributes:
        weight: w_i, its vote and its share in the divisor.
        factor: what its task vector is multiplied by: w_i, rescaled.
        inputs: its tensor, and what thinning reads.
        thin: how its task vector is thinned out, see `Thinned`; None keeps it whole.
        spans: the numbers for `thin`.
    """

    weight: float
    factor: float
    inputs: tuple[SourceTensor, ...]
    thin: Thin | None
    spans: Spans


def _merged_spans(numel: int, parts: Sequence[_Part], last: tuple[float, ...]) -> Spans:
    """Returns the numbers of each span: for each part its factor and its own; then `last`."""
    spans = []
    for stop in sorted({numel, *(stop for part in parts for stop, _ in part.spans)}):
        numbers: list[float] = []
        for part in parts:
            numbers += [part.factor, *next(own for end, own in part.spans if end >= stop)]
        spans.append((stop, (*numbers, *last)))
    return tuple(spans)


class _Form(NamedTuple):
    """How a task vector is thinned out (None: not at all), and how many blocks and numbers are a model's."""

    thin: Thin | None
    blocks: int
    numbers: int


@dataclass(frozen=True)
class _Sum:
    """The kernel of B + lambda sum of w_i d_i; `forms` has one entry for each model that takes part."""

    forms: tuple[_Form, ...]

    def __call__(self, blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
        base, scale = blocks[0], numbers[-1]
        deltas = self.deltas(blocks, numbers)
        # Ilharco et al., §2: theta = theta_pre + lambda tau
        return base + scale * total(deltas) if deltas else base

    def deltas(self, blocks: Sequence[Element], numbers: Sequence[Element]) -> list[Element]:
        """Returns each model's w_i d_i, thinned out and rescaled."""
        base, block, number = blocks[0], 1, 0
        found = []
        for form in self.forms:
            # Ilharco et al., §2: tau_i = theta_i - theta_pre
            delta = blocks[block] - base
            factor, own = numbers[number], numbers[number + 1 : number + 1 + form.numbers]
            if form.thin is not None:
                delta = form.thin(delta, blocks[block + 1 : block + form.blocks], own)
            found.append(factor * delta)
            block += form.blocks
            number += 1 + form.numbers
        return found


@dataclass(frozen=True)
class _ElectedSum(_Sum):
    """The kernel with a sign elected for each element.

    Yadav et al., §4: the sign of an element is that of the sum of w_i d_i, + where that is zero (Elect); only the
    entries that have it count (Disjoint merge). The numbers end with the w_i, where the sum is divided, and lambda.

    Attributes:
        divided: whether the sum is divided by the w_i of those that count.
    """

    divided: bool

    def __call__(self, blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
        base, scale = blocks[0], numbers[-1]
        deltas = self.deltas(blocks, numbers)
        if not deltas:
            return base
        agrees = elected(deltas)
        merged = total(delta * own for delta, own in zip(deltas, agrees, strict=True))
        if self.divided:
            divisor = combination(agrees, numbers[-1 - len(deltas) : -1])
            # Where nothing counts, or the weights of what does cancel, by 1.
            merged /= divisor + (divisor == 0)
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
        kept_bytes=2 if sparsifier is not None and sparsifier.random else 0,
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

BREADCRUMBS = _member(
    "breadcrumbs",
    "The base plus the weighted task vectors without their outliers and their smallest elements.",
    "https://arxiv.org/abs/2312.06795",
    sparsifier=OUTLIERS,
    consensus=False,
    normalize=False,
)
"""Sparse masks by layer, then task arithmetic. Davari and Belilovsky 2023, §3, https://arxiv.org/abs/2312.06795"""

BREADCRUMBS_TIES = _member(
    "breadcrumbs_ties",
    "Task vectors without their outliers and their smallest elements, whose sum elects a sign.",
    "https://arxiv.org/abs/2312.06795",
    sparsifier=OUTLIERS,
    consensus=True,
    normalize=False,
)
"""Sparse masks by layer, then the sign election of TIES.

Davari and Belilovsky 2023, §3, https://arxiv.org/abs/2312.06795
"""

DELLA = _member(
    "della",
    "Task vectors of which elements are dropped at random, small ones rather, and whose sum elects a sign.",
    "https://arxiv.org/abs/2406.11617",
    sparsifier=RANKED,
    consensus=True,
    normalize=True,
    rescale=True,
)
"""MagPrune, then elect and fuse. Deep et al. 2024, §3, https://arxiv.org/abs/2406.11617"""

DELLA_LINEAR = _member(
    "della_linear",
    "The base plus the weighted task vectors, of which elements are dropped at random, small ones rather.",
    "https://arxiv.org/abs/2406.11617",
    sparsifier=RANKED,
    consensus=False,
    normalize=False,
    rescale=True,
)
"""MagPrune, then task arithmetic. Deep et al. 2024, §3, https://arxiv.org/abs/2406.11617"""
