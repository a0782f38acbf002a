"""A model in memory whose weights are written in place, again and again."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from evomerge.build.placement import places
from evomerge.build.plan import Plan
from evomerge.build.residence import compute_device
from evomerge.errors import ArchitectureError


def empty_model(config: Mapping[str, Any], dtype: torch.dtype, device: str) -> nn.Module:
    """Returns a model of transformers that writes text, with memory for its weights, but no values in them.

    A model of text and images is made whole: it is then given text alone.

    Args:
        config: a checkpoint's config.json.
        dtype: the dtype of all its parameters.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; or ``auto``: the fastest, several GPUs where one is small.

    Raises:
        ArchitectureError: transformers has no model of this type, or none that writes text.
    """
    from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights

    parsed, auto = _auto_class(config)
    with init_empty_weights(include_buffers=False):
        model: nn.Module = auto.from_config(parsed, dtype=dtype, trust_remote_code=False)
    wide = _kept_wide(model, dtype)
    spread: dict[str, Any] = {"": compute_device(device)}
    if device == "auto" and torch.cuda.device_count() > 1:
        spread = infer_auto_device_map(model, dtype=dtype, no_split_module_classes=_blocks(model))
    for name, module in model.named_modules():
        place = _place(name, spread)
        for key, parameter in module._parameters.items():
            if parameter is not None:
                stored = wide(f"{name}.{key}") or parameter.dtype
                empty = torch.empty(parameter.shape, dtype=stored, device=place)
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
        places: for each of the plan's tensors, where it goes, see `placement.places`; None where the model has
            no use for it.

    Raises:
        ArchitectureError: the plan's tensors are not those of the model.
    """

    def __init__(self, plan: Plan, device: str) -> None:
        self.model = empty_model(plan.layout.config, compute_dtype(plan.layout.dtype, compute_device(device)), device)
        self.places = places(self.model, plan.layout.tensors, plan.layout.donor.reference)


def _auto_class(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the config as transformers parses it, and its class that makes such a model."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ArchitectureError(
            f'config.json says model_type "{kind}", which this version of transformers does not have; '
            "code that comes with a checkpoint is never run: update transformers"
        )
    plain = {key: value for key, value in config.items() if key != "auto_map"}
    parsed = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(plain))
    named = set(config.get("architectures") or ())

    def classes(auto: Any) -> set[str]:
        """The names of the classes of `auto` for this config."""
        found = auto._model_mapping.get(type(parsed), ())
        return {one.__name__ for one in (found if isinstance(found, list | tuple) else (found,))}

    writers = [auto for auto in (AutoModelForCausalLM, AutoModelForImageTextToText) if classes(auto)]
    # The one that the checkpoint names, as where a model of images can also be loaded without its tower.
    chosen = next((auto for auto in writers if named & classes(auto)), None)
    if chosen is None and (not writers or named & classes(AutoModelForMaskedLM)):
        what = ", ".join(sorted(named)) or f'"{kind}"'
        raise ArchitectureError(
            f"{what} writes no text, so no task can score it: expected a causal language model, or one of text and"
            " images; to merge without searching: evomerge apply"
        )
    return parsed, chosen or writers[0]


def _kept_wide(model: nn.Module, dtype: torch.dtype) -> Callable[[str], torch.dtype | None]:
    """Returns which parameters transformers holds in another dtype than `dtype`, whatever the config says."""
    plan: dict[str, torch.dtype] = getattr(model, "_get_dtype_plan", lambda _: {})(dtype)
    patterns = [(re.compile(name.replace("*", ".*")), wide) for name, wide in plan.items()]
    return lambda name: next((wide for pattern, wide in patterns if pattern.search(name)), None)


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
