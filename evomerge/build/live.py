"""A model in memory whose weights are written in place, again and again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.build.plan import Plan
from evomerge.build.residence import compute_device
from evomerge.errors import ArchitectureError


def empty_model(config: Mapping[str, Any], dtype: torch.dtype, device: str) -> nn.Module:
    """Returns a causal language model of transformers with memory for its weights, but no values in them.

    Args:
        config: a checkpoint's config.json.
        dtype: the dtype of all its parameters.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; or ``auto``: the fastest, several GPUs where one is small.

    Raises:
        ArchitectureError: transformers has no model of this type.
    """
    from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ArchitectureError(
            f'config.json says model_type "{kind}", which this version of transformers does not have; '
            "code that comes with a checkpoint is never run: update transformers"
        )
    parsed = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(config)))
    try:
        with init_empty_weights(include_buffers=False):
            model: nn.Module = AutoModelForCausalLM.from_config(parsed, dtype=dtype)  # type: ignore[no-untyped-call]
    except ValueError as fault:
        raise ArchitectureError(f'"{kind}" is not a causal language model for transformers: {fault}') from None
    spread: dict[str, Any] = {"": compute_device(device)}
    if device == "auto" and torch.cuda.device_count() > 1:
        spread = infer_auto_device_map(model, dtype=dtype, no_split_module_classes=_blocks(model))
    for name, module in model.named_modules():
        place = _place(name, spread)
        for key, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=place)
                module._parameters[key] = nn.Parameter(empty, requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(place)
    model.tie_weights()  # type: ignore[operator]
    if len(set(spread.values())) > 1:
        model = dispatch_model(model, spread)
    return model.eval()


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the dtype in which a model stored in `stored` runs on `device`: its own, where the hardware has it.

    A processor without bfloat16 or float16 units computes them ten times slower than float32. There the same
    values run in float32, which holds each of them exactly.
    """
    if device.type != "cpu" or stored not in (torch.bfloat16, torch.float16):
        return stored
    name = "_is_mkldnn_bf16_supported" if stored == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, name, None)
    return stored if supported is not None and supported() else torch.float32


class LiveModel:
    """A model in memory and the place of each of a plan's tensors in it.

    Its parameters hold the very values that a directory would, in the dtype that `compute_dtype` says.

    Args:
        plan: any plan of the search: all have the same tensors.
        device: see `empty_model`.

    Attributes:
        model: the model; its values are undefined until `into_model`.
        places: for each of the plan's tensors, the parameter or buffer; None where the model has no use for it.

    Raises:
        ArchitectureError: the plan's tensors are not those of the model.
    """

    def __init__(self, plan: Plan, device: str) -> None:
        self.model = empty_model(plan.config, compute_dtype(plan.dtype, compute_device(device)), device)
        self.places = _places(self.model, plan)


def _blocks(model: nn.Module) -> list[str]:
    """Returns the classes of the layers, which stay on one device each."""
    return list(getattr(model, "_no_split_modules", None) or [])


def _place(name: str, spread: Mapping[str, Any]) -> Any:
    """Returns the device of the module `name`: that of the longest prefix in the device map."""
    parts = name.split(".") if name else []
    for end in range(len(parts), -1, -1):
        prefix = ".".join(parts[:end])
        if prefix in spread:
            return spread[prefix]
    return next(iter(spread.values()))


def _places(model: nn.Module, plan: Plan) -> dict[str, Tensor | None]:
    """Returns the parameter or buffer for each of the plan's tensors."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named |= dict(model.named_buffers(remove_duplicate=False))
    prefix = str(getattr(model, "base_model_prefix", "")) + "."
    places: dict[str, Tensor | None] = {}
    for info in plan.layout:
        # Checkpoints saved from the bare model lack the prefix of the one with a head.
        found = named.get(info.name, named.get(prefix + info.name))
        if found is not None and tuple(found.shape) != info.shape:
            raise ArchitectureError(
                f"{info.name} has shape {list(info.shape)}, but the model that config.json describes wants"
                f" {list(found.shape)}; is it the right config.json?"
            )
        places[info.name] = found
    filled = {id(place) for place in places.values() if place is not None}
    lacking = [name for name, place in model.named_parameters() if id(place) not in filled]
    if lacking:
        raise ArchitectureError(
            f"{plan.donor.reference}: no tensor for {len(lacking)} of the model's parameters, such as"
            f" {', '.join(lacking[:3])}; found, for example, {', '.join(info.name for info in plan.layout[:3])}"
        )
    return places
