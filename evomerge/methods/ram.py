"""RAM: task vectors averaged, at each element, over the models that changed it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.kernels import Element, Fused, Operands, combination, hardshrink, maximum, pieces, total
from evomerge.methods.method import MergeMethod, Parameter, Parameters

_EPSILON = Parameter(
    "epsilon", "By more than how much an element must differ to count as changed.", default=1e-5, low=0.0, start=1e-5
)


def _ram(operands: Operands, parameters: Parameters) -> Fused:
    return Fused.uniform(active_mean, operands.with_base, (float(parameters.shared["epsilon"]),))


def _ramplus(operands: Operands, parameters: Parameters) -> Fused:
    epsilon, r, alpha = (float(parameters.shared[name]) for name in ("epsilon", "r", "alpha"))
    extra = []
    for shared, unique in operands.once(("changed", epsilon), lambda: _counts(operands, epsilon)):
        # rho_i = shared_i / unique_i; where there is nothing unique, there is nothing to stretch.
        rho = shared / unique if unique else 0.0
        # lambda_i - 1 = r clip(rho_i, 0, alpha)
        extra.append(r * min(rho, alpha))
    return Fused.uniform(active_mean, operands.with_base, (epsilon, *extra))


def _counts(operands: Operands, epsilon: float) -> list[tuple[int, int]]:
    """Returns, for each model, how many elements it changed and others too, and how many it changed alone."""
    models = range(len(operands.tensors))
    both, alone = [0 for _ in models], [0 for _ in models]
    for start, stop in pieces(operands.numel):
        changed = [operands.distance(i, start, stop) > epsilon for i in models]
        by_one = torch.stack(changed).sum(dim=0) == 1
        for i in models:
            unique = int((changed[i] & by_one).sum())
            both[i] += int(changed[i].sum()) - unique
            alone[i] += unique
    return list(zip(both, alone, strict=True))


def active_mean(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    """The kernel of the base plus the mean of the task vectors that are active at an element.

    Args:
        blocks: of the base and of each model.
        numbers: epsilon, above which a magnitude is active; and by how much of itself each model's task vector is
            stretched where it alone is active, if any is.
    """
    (base, *tensors), (epsilon, *extra) = blocks, numbers
    deltas = [tensor - base for tensor in tensors]
    active = [hardshrink(delta, epsilon) for delta in deltas]
    count = total(abs(delta) > epsilon for delta in deltas)
    merged = total(active) / maximum(count, 1)
    if extra:
        merged += combination(active, extra) * (count == 1)
    return base + merged


RAM = MergeMethod(
    name="ram",
    summary="The base plus, at each element, the mean of the task vectors that changed it.",
    paper="https://arxiv.org/abs/2601.13572",
    parameters=(_EPSILON,),
    merge=_ram,
)
"""B plus the mean of those d_i whose magnitude exceeds `epsilon`, element by element.

Reinforced Agent Merging, https://arxiv.org/abs/2601.13572
"""

RAMPLUS_TL = MergeMethod(
    name="ramplus_tl",
    summary="RAM, with what one model alone changed stretched by how much it shares with others.",
    paper="https://arxiv.org/abs/2601.13572",
    parameters=(
        Parameter("r", "How much of the ratio of shared to unique elements to stretch by.", default=0.1, start=0.1),
        Parameter("alpha", "The highest ratio to count.", default=0.2, low=0.0, start=0.2),
        _EPSILON,
    ),
    merge=_ramplus,
)
"""RAM, where elements that only model i changed are multiplied by 1 + r clip(shared_i / unique_i, 0, alpha).

shared_i and unique_i count the elements of this tensor that model i changed with others and alone (TL: tensor-local).
Reinforced Agent Merging, https://arxiv.org/abs/2601.13572
"""
