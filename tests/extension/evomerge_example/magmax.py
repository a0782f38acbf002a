from collections.abc import Sequence

from evomerge.kernels import Element, Fused, Operands
from evomerge.methods import MergeMethod, Parameter, Parameters


def largest(blocks: Sequence[Element], numbers: Sequence[Element]) -> Element:
    base, *models = blocks
    deltas = [number * (model - base) for number, model in zip(numbers, models, strict=True)]
    chosen = deltas[0]
    for delta in deltas[1:]:
        larger = abs(delta) > abs(chosen)  # 1 where it holds, else 0: a kernel does not branch
        chosen = larger * delta + (1 - larger) * chosen
    return base + chosen


def merge(operands: Operands, parameters: Parameters) -> Fused:
    return Fused.uniform(largest, operands.with_base, parameters.weights)


MAGMAX = MergeMethod(
    name="magmax",
    summary="Of each element, the change from the base that is largest in magnitude.",
    paper="https://arxiv.org/abs/2407.06322",
    parameters=(Parameter("weight", "What the model's changes are multiplied by.", per_model=True, default=1.0),),
    merge=merge,
)
