"""A model in memory whose weights are written in place, again and again."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from evomerge.architecture import made_from, parsed
from evomerge.errors import ArchitectureError, EvaluationError
from evomerge.merge.plan import Layout, Plan
from evomerge.merge.sinks import into_tensors
from evomerge.merge.weight_store import WeightStore, compute_device
from evomerge.runtime.placement import places


def empty_model(config: Mapping[str, Any], dtype: torch.dtype, device: str) -> nn.Module:
    """Returns a model of transformers that writes text, with memory for its weights, but no values in them.

    A model of text and images is made whole: it is then given text alone.

    Args:
        config: a checkpoint's config.json.
        dtype: the dtype of all its parameters.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto``: the fastest, several GPUs where one is small; or
            ``meta``: none, so that nothing but shapes is there.

    Raises:
        ArchitectureError: transformers has no model of this type, none that writes text, or refuses the config.
    """
    return _materialized(_skeleton(config, dtype), dtype, device)


def _skeleton(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """Returns the model without memory for its parameters."""
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


def compute_dtype(layout: Layout, device: torch.device, wanted: str = "auto") -> torch.dtype:
    """Returns the dtype in which a layout's model runs on `device`: the one that it is stored in, or float32.

    float32 holds every value of bfloat16 and float16 exactly, but takes twice their memory: it is for processors that
    are slow in those. Whether one is, is measured once a process, in about a tenth of a second, on a product of the
    size of the model's own; no flag of the processor tells it.

    Args:
        layout: how the model is made.
        device: where it runs.
        wanted: the dtype's name; ``auto``: the one in which it runs fastest.

    Raises:
        EvaluationError: the weights would not be the same in the wanted dtype.
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
    # In a smaller product, it is not the arithmetic that takes the time, and the answer would change from run to run.
    rows, columns = (min(max(size, 512), 4096) for size in (rows, columns))
    return _faster(layout.dtype, rows, columns)


@cache
def _faster(stored: torch.dtype, rows: int, columns: int) -> torch.dtype:
    seconds = dict.fromkeys((stored, torch.float32), math.inf)
    with torch.inference_mode():
        inputs = {
            dtype: (torch.full((64, columns), 0.5, dtype=dtype), torch.full((rows, columns), 0.5, dtype=dtype))
            for dtype in seconds
        }
        end = time.perf_counter() + 0.1
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            # At least twice, as the first run sets up.
            for turn in itertools.count():
                for dtype, (tokens, weight) in inputs.items():
                    # Of this thread alone, so that what else the machine does changes nothing.
                    started = time.thread_time()
                    nn.functional.linear(tokens, weight)
                    seconds[dtype] = min(seconds[dtype], time.thread_time() - started)
                if turn and time.perf_counter() > end:
                    break
        finally:
            torch.set_num_threads(threads)
    # Twice the memory for a little more speed is no gain; AVX512-BF16 without AMX is slower by half and more.
    return torch.float32 if 1.4 * seconds[torch.float32] < seconds[stored] else stored


class LiveModel:
    """A model in memory and the place of each of a plan's tensors in it.

    Its parameters hold the very values that a directory would.

    Args:
        plan: any plan of the search: all have the same tensors.
        device: see `empty_model`.
        dtype: the dtype of the parameters: the plan's, or a wider one, see `compute_dtype`.

    Attributes:
        model: the model; its values are undefined until `fill`.
        places: for each of the plan's tensors, where it goes, see `placement.places`; None where the model has
            no use for it.

    Raises:
        ArchitectureError: transformers cannot make the model, or the plan's tensors are not those of it.
    """

    def __init__(self, plan: Plan, device: str, dtype: torch.dtype) -> None:
        reference = plan.layout.donor.reference
        try:
            skeleton = _skeleton(plan.layout.config, dtype)
        except ArchitectureError as fault:
            raise ArchitectureError(f"{reference}: {fault}") from None
        # Before there is memory for it: a config with wrong sizes may want more than there is.
        places(skeleton, plan.layout.tensors, reference)
        self.model = _materialized(skeleton, dtype, device)
        self.places = places(self.model, plan.layout.tensors, reference)

    def fill(self, plan: Plan, store: WeightStore) -> None:
        """Writes every tensor of `plan` in place.

        Args:
            plan: how the model is made.
            store: where the weights are read.

        Raises:
            MergeError: a tensor cannot be merged; the model then holds parts of two candidates: fill it again.
        """
        into_tensors(plan, self.places, store)


def _auto_class(config: Mapping[str, Any]) -> Any:
    """Returns the class of transformers that makes such a model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM

    kind = str(config.get("model_type"))
    own = parsed(config)
    if own is None:
        raise ArchitectureError(
            f'config.json says model_type "{kind}", which this version of transformers does not have; '
            "code that comes with a checkpoint is never run: update transformers"
        )
    said = config.get("architectures")
    named = set(map(str, said)) if isinstance(said, list) else set()

    def classes(auto: Any) -> set[str]:
        """The names of the classes of `auto` for this config."""
        found = auto._model_mapping.get(type(own), ())
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
    return chosen or writers[0]


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
