"""`verify_fold`: measures that scales folded into weights do what scales of the residual stream do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import ArchitectureError
from evomerge.merge import Plan, WeightStore, compute_device
from evomerge.methods import Parameters
from evomerge.runtime.blocks import Block, layers_of
from evomerge.runtime.by_reference import stack_of
from evomerge.runtime.live import LiveModel

_EPSILONS = {"eps", "variance_epsilon", "epsilon"}
"""Names of the number that norms add to a variance. It does not scale with the residual stream, so that a folded model
and a scaled one are equal only without it; it is removed for the comparison."""

TOLERANCE = 1e-4
"""The largest accepted difference of logits, relative to the largest logit. Rounding in float32 gives about 1e-6."""


def verify_fold(plan: Plan, device: str = "cpu") -> float:
    """Returns the largest difference between the logits of a folded model and of the stack with scales, in float32.

    Three models must agree on a few tokens: one with the plan's folded weights; one without scales in its weights, in
    which the outputs of each layer's branches are multiplied by c_i; and one in which the residual stream is multiplied
    by s_i = c_(i-1) / c_i before each layer. Only one of them is in memory at a time, at 4 bytes per parameter. A short
    stack with one layer of each kind is enough.

    Args:
        plan: a stack with scales, see `by_reference`.
        device: where it is run.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        ArchitectureError: the difference is larger than `TOLERANCE`, or the plan is not one by reference.
    """
    scales = [layer.scale for layer in stack_of(plan).layers]
    jobs = [
        replace(job, info=replace(job.info, dtype=torch.float32)) if job.slot is not None else job
        for job in plan.layout.jobs
    ]
    folded = replace(plan, layout=replace(plan.layout, jobs=tuple(jobs)))
    unscaled = replace(folded, values=(Parameters({}, ({"scale": 1.0, "shift": 0.0},)),) * len(plan.values))
    live = LiveModel(folded, device, torch.float32)
    store = WeightStore(plan.layout.checkpoints, "disk", compute_device(device), reused=False)
    for module in live.model.modules():
        for name in _EPSILONS & vars(module).keys():
            setattr(module, name, 1e-30)
    live.fill(folded, store)
    expected = _logits(live.model)
    live.fill(unscaled, store)
    stack, ends = layers_of(live, plan.layout.config)
    layers: Any = live.model.get_submodule(stack)
    streams = [
        layer.register_forward_pre_hook(partial(_scaled_stream, before / scale), with_kwargs=True)
        for layer, before, scale in zip(layers, [1.0, *scales], scales, strict=False)
    ]
    found = {"residual stream": _logits(live.model)}
    for stream in streams:
        stream.remove()
    for layer, own, scale in zip(layers, ends, scales, strict=True):
        Block(layer, own).scale = scale
    found["output of a layer's branches"] = _logits(live.model)
    apart = {what: float((logits - expected).abs().max() / expected.abs().max()) for what, logits in found.items()}
    for what, value in apart.items():
        if not value <= TOLERANCE:
            raise ArchitectureError(
                f"{plan.layout.donor.reference}: scaling the {what} is not the same as folding the scale into the"
                f" weights: logits differ by {value:.1e} of the largest one; expected {TOLERANCE:.0e} or less; search"
                " without scale"
            )
    return max(apart.values())


def _scaled_stream(factor: float, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
    return (args[0] * factor, *args[1:]), inputs


@torch.inference_mode()
def _logits(model: nn.Module) -> Tensor:
    """Returns the logits of a few tokens from all over the vocabulary."""
    config: Any = model.config
    tokens = torch.linspace(0, config.get_text_config().vocab_size - 1, 16).long()
    ids = tokens[torch.randperm(16, generator=torch.Generator().manual_seed(0))].view(2, 8)
    logits: Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits.double()
