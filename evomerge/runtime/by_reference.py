"""`by_reference`: the layers of a plan whose model can be run from its parents' layers as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from evomerge.architecture import Fold, fold_of
from evomerge.checkpoint import Checkpoint
from evomerge.errors import ArchitectureError
from evomerge.merge import Job, Plan


class StackLayer(NamedTuple):
    """A layer of a stack.

    Attributes:
        model: the model that it is taken from.
        layer: its index there.
        scale: the factor on what it adds to the residual stream.
    """

    model: str
    layer: int
    scale: float


@dataclass(frozen=True)
class Stack:
    """A plan of copied layers.

    Attributes:
        layers: the layers from first to last.
        before: the tensors before the layers: embeddings.
        after: the tensors after the layers: the final norm and the head.
    """

    layers: tuple[StackLayer, ...]
    before: tuple[Job, ...]
    after: tuple[Job, ...]


def by_reference(plan: Plan) -> list[StackLayer] | None:
    """Returns the layers of a plan that only copies whole layers, from first to last; None for any other plan.

    A layer may have a scale on all that it adds to the residual stream, folded into its weights as `fold_of` says.
    """
    found = _read(plan)
    return None if found is None else list(found.layers)


def stack_of(plan: Plan) -> Stack:
    """Returns the stack that a plan describes, see `by_reference`.

    Raises:
        ArchitectureError: the plan does more than copying layers.
    """
    found = _read(plan)
    if found is None:
        raise ArchitectureError(
            "the recipe is not a stack of whole layers: expected merge_method passthrough, and no scale or shift other"
            " than one for all that a layer adds to the residual stream"
        )
    return found


def _read(plan: Plan) -> Stack | None:
    layout = plan.layout
    if layout.method.name != "passthrough":
        return None
    architecture = layout.architecture
    by_slot = [(float(one.models[0]["scale"]), float(one.models[0]["shift"])) for one in plan.values]

    def numbers(job: Job) -> tuple[float, float]:
        """Returns the scale and the shift of a job's tensor."""
        return (1.0, 0.0) if job.slot is None else by_slot[job.slot]

    layers: list[list[Job]] = [[] for _ in range(architecture.num_layers)]
    beside: dict[str, list[Job]] = {"before": [], "after": []}
    for job in layout.jobs:
        layer = architecture.layer_of(job.info.name)
        (beside[architecture.position(job.info.name)] if layer is None else layers[layer]).append(job)
    if any(numbers(job) != (1.0, 0.0) for jobs in beside.values() for job in jobs):
        return None
    found: list[StackLayer] = []
    for index, jobs in enumerate(layers):
        origins = {_origin(job, f"{architecture.stack}{index}.", architecture.stack) for job in jobs}
        scaled = [job for job in jobs if numbers(job) != (1.0, 0.0)]
        scale = 1.0
        if scaled:
            try:
                fold = _fold_of(layout.donor)
            except ArchitectureError:
                return None
            scale = numbers(scaled[0])[0]
            whole = [job for job in jobs if fold.includes(job.info.name)]
            if scaled != whole or any(not _close(numbers(job), (scale, fold.shift(scale))) for job in whole):
                return None
        model, layer = origins.pop()
        if origins or layer is None:
            return None
        found.append(StackLayer(model, layer, scale))
    return Stack(tuple(found), tuple(beside["before"]), tuple(beside["after"]))


@lru_cache(maxsize=8)
def _fold_of(model: Checkpoint) -> Fold:
    return fold_of(model.config, model.tensors)


def _origin(job: Job, here: str, stack: str) -> tuple[str, int | None]:
    """Returns the model and the layer that a tensor is taken from; None as layer where it is another kind of tensor."""
    (model, name), *_ = job.inputs
    number = name.removeprefix(stack).removesuffix(f".{job.info.name.removeprefix(here)}")
    return model, int(number) if number.isdecimal() else None


def _close(found: tuple[float, float], expected: tuple[float, float]) -> bool:
    """Returns whether numbers are equal except for rounding in a recipe's decimals."""
    return all(abs(one - other) <= 1e-9 * max(1.0, abs(other)) for one, other in zip(found, expected, strict=True))
