"""A model in memory whose weights are overwritten by every plan."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from evomerge.architecture import made_from, parsed
from evomerge.errors import ArchitectureError, EvaluationError
from evomerge.merge.plan import Layout, Plan
from evomerge.merge.sinks import into_tensors
from evomerge.merge.weight_store import WeightStore, compute_device
from evomerge.runtime.placement import places


def empty_model(config: Mapping[str, Any], dtype: torch.dtype, device: str) -> nn.Module:
    """Returns a model of transformers that writes text, with memory for its weights, but no values in them.

    A model of text and images is complete, but is used with text alone.

    Args:
        config: a checkpoint's config.json.
        dtype: the dtype of its parameters.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto`` for the fastest one, and several GPUs where the model
            does not fit on one; or ``meta`` for shapes without memory.

    Raises:
        ArchitectureError: transformers has no model of this type, none that writes text, or refuses the config.
    """
    return _materialized(skeleton_of(config, dtype), dtype, device)


def skeleton_of(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """Returns a model of transformers that writes text, without memory for its parameters.

    Args:
        config: a checkpoint's config.json.
        dtype: the dtype of its parameters.

    Raises:
        ArchitectureError: as `empty_model`.
    """
    from accelerate import init_empty_weights
    from transformers import CONFIG_MAPPING

    def make(plain: dict[str, Any]) -> nn.Module:
        own = CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
        with init_empty_weights(include_buffers=False):
            model: nn.Module = auto.from_config(own, dtype=dtype, trust_remote_code=False)
        model.tie_weights()  # type: ignore[operator]
        return model

    auto = _auto_class(config)
    return made_from(config, make)


def _materialized(model: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """Returns the model with memory for its parameters."""
    from accelerate import dispatch_model, infer_auto_device_map

    # Parameters that transformers keeps in a wider dtype than the config says.
    plan: dict[str, torch.dtype] = getattr(model, "_get_dtype_plan", lambda _: {})(dtype)
    wide = {re.compile(pattern.replace("*", ".*")): kept for pattern, kept in plan.items()}
    spread: dict[str, Any] = {"": compute_device(device)}
    if device == "auto" and torch.cuda.device_count() > 1:
        # These classes are the layers, which stay on one device each.
        whole = list(getattr(model, "_no_split_modules", None) or [])
        spread = infer_auto_device_map(model, dtype=dtype, no_split_module_classes=whole)
    for name, module in model.named_modules():
        within = [prefix for prefix in spread if not prefix or f"{name}.".startswith(f"{prefix}.")]
        own = spread[max(within, key=len, default=next(iter(spread)))]
        for key, parameter in module._parameters.items():
            if parameter is not None:
                path = f"{name}.{key}"
                stored = next((kept for pattern, kept in wide.items() if pattern.search(path)), parameter.dtype)
                empty = torch.empty(parameter.shape, dtype=stored, device=own)
                module._parameters[key] = nn.Parameter(empty, requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(own)
    model.tie_weights()  # type: ignore[operator]
    if len(set(spread.values())) > 1:
        model = dispatch_model(model, spread)
    return model.eval()


def compute_dtype(layout: Layout, device: torch.device, wanted: str = "auto") -> torch.dtype:
    """Returns the dtype in which a layout's model runs on `device`: the one that it is stored in, or float32.

    float32 holds every value of bfloat16 and float16 exactly, but takes twice their memory: it is for processors that
    are slow in those. No processor flag says whether one is, so a matrix product of the model's size is timed once per
    process, for about a tenth of a second.

    Args:
        layout: how the model is made.
        device: where it runs.
        wanted: the dtype's name; ``auto`` for the fastest one.

    Raises:
        EvaluationError: the wanted dtype does not hold the stored values exactly.
    """
    if wanted != "auto":
        stored = str(layout.dtype).removeprefix("torch.")
        allowed = {stored: layout.dtype} | ({"float32": torch.float32} if layout.dtype.itemsize < 4 else {})
        if wanted not in allowed:
            raise EvaluationError(
                f'--compute-dtype is "{wanted}"; expected auto or {" or ".join(allowed)}, as the model is stored in'
                f" {stored} and must run with the values that are stored"
            )
        return allowed[wanted]
    if device.type != "cpu" or layout.dtype not in (torch.bfloat16, torch.float16):
        return layout.dtype
    shapes = Counter(info.shape for info in layout.tensors if len(info.shape) == 2)
    # The shape that most of the weights have.
    rows, columns = max(shapes, key=lambda shape: shapes[shape] * math.prod(shape), default=(1024, 1024))
    # A smaller product's time is not that of its arithmetic, and the choice would change from run to run.
    rows, columns = (min(max(size, 512), 4096) for size in (rows, columns))
    return _faster(layout.dtype, rows, columns)


@cache
def _faster(stored: torch.dtype, rows: int, columns: int) -> torch.dtype:
    def seconds(dtype: torch.dtype) -> float:
        tokens, weight = (torch.full((count, columns), 0.5, dtype=dtype) for count in (64, rows))
        names = {"functional": nn.functional, "tokens": tokens, "weight": weight}
        # This thread's own time, so that nothing else on the machine changes it.
        timer = Timer("functional.linear(tokens, weight)", globals=names, timer=time.thread_time, num_threads=1)
        return min(timer.blocked_autorange(min_run_time=0.05).times)

    # A little more speed is not worth twice the memory. (AVX512-BF16 without AMX is slower by half and more.)
    return torch.float32 if 1.4 * seconds(torch.float32) < seconds(stored) else stored


class LiveModel:
    """A model in memory for plans of the same tensors; its values are those that a directory would hold.

    Args:
        plan: any of the plans.
        device: see `empty_model`.
        dtype: the dtype of the parameters: the plan's, or a wider one, see `compute_dtype`.

    Attributes:
        model: the model; its values are undefined until `fill`.
        places: what each of the plan's tensors is written to, see `placement.places`.

    Raises:
        ArchitectureError: transformers cannot make the model, or the plan's tensors are not the model's.
    """

    def __init__(self, plan: Plan, device: str, dtype: torch.dtype) -> None:
        reference = plan.layout.donor.reference
        try:
            skeleton = skeleton_of(plan.layout.config, dtype)
        except ArchitectureError as fault:
            raise ArchitectureError(f"{reference}: {fault}") from None
        # Before memory is allocated: a config with wrong sizes may need more than there is.
        places(skeleton, plan.layout.tensors, reference)
        self.model = _materialized(skeleton, dtype, device)
        self.places = places(self.model, plan.layout.tensors, reference)

    def fill(self, plan: Plan, store: WeightStore) -> None:
        """Writes every tensor of `plan` in place.

        Args:
            plan: how the model is made.
            store: where weights are read.

        Raises:
            MergeError: a tensor cannot be merged; the model then holds parts of two plans until it is filled again.
        """
        into_tensors(plan, self.places, store)


def _auto_class(config: Mapping[str, Any]) -> Any:
    """Returns the class of transformers that makes such a model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM

    kind = str(config.get("model_type"))
    own = parsed(config)
    if own is None:
        raise ArchitectureError(
            f'config.json has model_type "{kind}", which this version of transformers does not know; update'
            " transformers (evomerge never runs code that comes with a checkpoint)"
        )
    said = config.get("architectures")
    named = set(map(str, said)) if isinstance(said, list) else set()

    def classes(auto: Any) -> set[str]:
        """The names of the classes of `auto` for this config."""
        found = auto._model_mapping.get(type(own), ())
        return {one.__name__ for one in (found if isinstance(found, list | tuple) else (found,))}

    writers = [auto for auto in (AutoModelForCausalLM, AutoModelForImageTextToText) if classes(auto)]
    # The class that the checkpoint names: some models with images can also be loaded as text models.
    chosen = next((auto for auto in writers if named & classes(auto)), None)
    if chosen is None and (not writers or named & classes(AutoModelForMaskedLM)):
        what = ", ".join(sorted(named)) or f'"{kind}"'
        raise ArchitectureError(
            f"{what} does not generate text, so no task can score it; expected a causal language model, or a model of"
            " text and images; to merge without searching: evomerge apply"
        )
    return chosen or writers[0]
