"""What an adapter's config says, as far as merging it goes; and what of it cannot be merged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoint.header import read_object
from evomerge.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"

# What makes an adapter more than W + s B A.
_REFUSED = {
    "alora_invocation_tokens": "it is active after certain tokens only",
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
# With these, B A was added to the model's own weights; with any other, the model's weights were changed first.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA adapter's settings.

    Attributes:
        r: the rank.
        lora_alpha: the scale, in ranks.
        rank_pattern: other ranks, by a regular expression at the end of a module's name.
        alpha_pattern: other scales, alike.
        use_rslora: whether the scale is divided by the root of the rank.
        use_dora: whether rows are brought to learned lengths.
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
            CheckpointError: the file is missing or damaged, or the adapter cannot be merged; a line a fault.
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
        for key in ("r", "lora_alpha"):
            if not _positive(raw.get(key)):
                faults.append(f"{key} is {raw.get(key)!r}; expected a number above 0")
        for key in ("rank_pattern", "alpha_pattern"):
            faults += _pattern_faults(key, raw.get(key) or {})
        if faults:
            advice = "merge it into its model with peft (merge_and_unload), and name the folder of the result"
            raise CheckpointError("\n".join(f"{reference}: {path.name}: {fault}; or {advice}" for fault in faults))
        return cls(
            r=raw["r"],
            lora_alpha=raw["lora_alpha"],
            rank_pattern=raw.get("rank_pattern") or {},
            alpha_pattern=raw.get("alpha_pattern") or {},
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
            fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        )

    def rank(self, module: str) -> int:
        """Returns the rank of a module's factors."""
        return int(_matched(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """Returns the factor of B A for a module."""
        rank = self.rank(module)
        return float(_matched(self.alpha_pattern, module, self.lora_alpha)) / (
            math.sqrt(rank) if self.use_rslora else rank
        )


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Returns the value of the first pattern that the end of a module's name matches."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _pattern_faults(key: str, patterns: object) -> list[str]:
    if not isinstance(patterns, dict):
        return [f"{key} is {patterns!r}; expected an object"]
    faults = [
        f"{key}: {name} is {value!r}; expected a number above 0"
        for name, value in patterns.items()
        if not _positive(value)
    ]
    for name in patterns:
        try:
            re.compile(name)
        except (re.error, RecursionError) as fault:
            faults.append(f"{key}: {name} is no regular expression ({fault})")
    return faults
