"""The part of an adapter's config that merging it needs; and which adapters cannot be merged."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoint.header import read_object
from evomerge.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"

# Settings with which an adapter is not W + s B A.
_REFUSED = {
    "alora_invocation_tokens": "it is active only after certain tokens",
    "layer_replication": "it repeats layers",
    "target_parameters": "it adapts parameters without a module",
    "trainable_token_indices": "it trains single tokens",
    "use_qalora": "it is of grouped inputs",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "it changes the model's own weights",
    "monteclora_config": "its weights are random",
    "velora_config": "it is a variant of LoRA",
    "arrow_config": "it is a router among adapters",
    "lora_bias": "it has biases",
}
# With these, B A is added to the model's own weights; with all others, the model's weights are changed first.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA adapter's settings.

    Attributes:
        r: the rank.
        lora_alpha: the scale, in ranks.
        rank_pattern: other ranks, by a regular expression at the end of a module's name.
        alpha_pattern: other scales, likewise.
        use_rslora: whether the scale is divided by the root of the rank.
        use_dora: whether rows are scaled to learned lengths.
        fan_in_fan_out: whether the model's tensors are (in, out).
    """

    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool

    @classmethod
    def read(cls, path: Path, reference: str) -> AdapterConfig:
        """Returns the settings in the file `path`.

        Args:
            path: an ``adapter_config.json``.
            reference: how messages call the model and its adapter.

        Raises:
            CheckpointError: the file is missing or damaged, or the adapter cannot be merged; one line for each
                fault.
        """
        if not path.is_file():
            raise CheckpointError(f"{reference}: {path.parent} has no {path.name}; expected an adapter that PEFT saved")
        raw = read_object(path)
        faults = []
        if raw.get("peft_type") != "LORA":
            faults.append(f"peft_type is {raw.get('peft_type')!r}; only LORA can be merged")
        faults += [f"{key} is set: {why}, which is not supported" for key, why in _REFUSED.items() if raw.get(key)]
        init = raw.get("init_lora_weights", True)
        if init not in _INITS:
            faults.append(
                f"init_lora_weights is {init!r}, so that the model's own weights were changed before training;"
                " save the adapter as a plain LoRA (peft: path_initial_model_for_weight_conversion)"
            )
        numbers = {key: raw.get(key) for key in ("r", "lora_alpha")}
        patterns = {key: raw.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
        for key, pattern in patterns.items():
            if isinstance(pattern, dict):
                numbers |= {f"{key}: {name}": value for name, value in pattern.items()}
                faults += [f"{key}: {name} is not a regular expression" for name in pattern if not _compiles(name)]
            else:
                faults.append(f"{key} is {pattern!r}; expected an object")
        wrong = {key: value for key, value in numbers.items() if not _positive(value)}
        faults += [f"{key} is {value!r}; expected a number above 0" for key, value in wrong.items()]
        if faults:
            advice = "merge it into its model with peft (merge_and_unload), and name the folder of the result"
            raise CheckpointError("\n".join(f"{reference}: {path.name}: {fault}; or {advice}" for fault in faults))
        return cls(
            r=raw["r"],
            lora_alpha=raw["lora_alpha"],
            rank_pattern=patterns["rank_pattern"],
            alpha_pattern=patterns["alpha_pattern"],
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
            fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        )

    def rank(self, module: str) -> int:
        """Returns the rank of a module's factors."""
        return int(_matched(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """Returns the factor of B A for a module."""
        alpha, rank = float(_matched(self.alpha_pattern, module, self.lora_alpha)), self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the end of a module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _positive(value: object) -> bool:
    # An integer may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _compiles(expression: str) -> bool:
    try:
        re.compile(expression)
    except (re.error, RecursionError):
        return False
    return True
