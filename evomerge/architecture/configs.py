"""What a config.json says of its language model, at any level."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch

from evomerge.errors import ArchitectureError

T = TypeVar("T")

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""The keys under which configs state their depth."""

# Keys under which the config of a model of several modalities has the language model's.
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config", "thinker_config")


def once_each(function: Callable[[Mapping[str, Any]], T]) -> Callable[[Mapping[str, Any]], T]:
    """Returns a function of a config.json that computes once for equal configs; its results must not be changed."""
    known = lru_cache(maxsize=256)(lambda text: function(json.loads(text)))
    return wraps(function)(lambda config: known(json.dumps(dict(config))))


def parts_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The config and those inside it that describe the language model, outermost first."""
    parts: list[Any] = [config if isinstance(config, dict) else dict(config)]
    for part in parts:  # Grows while it is read: thinker_config holds a text_config.
        parts += [part[key] for key in _TEXT_CONFIGS if isinstance(part.get(key), dict)]
    return parts


def depth_of(config: Mapping[str, Any]) -> int:
    """The depth that the config states for the language model; 0 where it states none."""
    # The innermost first: what surrounds it may count a vision tower's layers.
    for part in reversed(parts_of(config)):
        for key in DEPTHS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return int(getattr(parsed_text(config), "num_hidden_layers", 0) or 0)


def parsed_text(config: Mapping[str, Any]) -> Any:
    """The language model's config, completed with its class's defaults; None where transformers has no such model."""
    found = parsed(config)
    return None if found is None else found.get_text_config()


@once_each
def parsed(config: Mapping[str, Any]) -> Any:
    """The config as transformers reads it, not to be changed; None where transformers has no such model.

    Raises:
        ArchitectureError: transformers refuses a value; the key is named.
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    check_values(config)
    return made_from(config, CONFIG_MAPPING[kind].from_dict)


def made_from(config: Mapping[str, Any], make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of a config without the keys that would make transformers run code from elsewhere.

    Args:
        config: a checkpoint's config.json; it is not changed.
        make: for instance a model of transformers.

    Raises:
        ArchitectureError: `make` fails; the key that causes it is named where it can be found.
    """
    plain = _without_code(config)
    try:
        return make(copy.deepcopy(plain))
    # A wrong value can lead to any kind of error.
    except Exception as fault:
        reason = _reason(fault)
    path, value = _culprit(plain, make, reason)
    what = f"{path} is {_shortened(repr(value))}, which" if path else "it is a config that"
    raise ArchitectureError(
        f'config.json: {what} transformers does not accept for a "{config.get("model_type")}" ({reason});'
        " is it the right config.json?"
    )


# Keys by which a config names code to run: the checkpoint's own, or kernels of the Hub.
_CODE = re.compile(r"auto_map|_?(attn|experts)_implementation(_internal)?")


def _without_code(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_code(inner) for key, inner in value.items() if not _CODE.fullmatch(str(key))}
    return [_without_code(inner) for inner in value] if isinstance(value, list) else value


def _culprit(plain: dict[str, Any], make: Callable[[dict[str, Any]], Any], reason: str) -> tuple[str, Any]:
    """The path and the value of the key without which `make` works, or fails for another reason; "" where none is."""
    # How much changes without a key: 0, there is no error; 1, an error of another type; 2, with another text.
    found: list[tuple[int, str]] = []
    for key in plain:
        try:
            make(copy.deepcopy({name: value for name, value in plain.items() if name != key}))
            found = [(0, key)]
            break
        except Exception as fault:
            other = _reason(fault)
        if key != "model_type" and other != reason:
            found.append((1 if other.partition(":")[0] != reason.partition(":")[0] else 2, key))
    changed = min(found, key=lambda one: one[0])[1] if found else ""
    inner = plain.get(changed)
    if isinstance(inner, dict):
        path, value = _culprit(inner, lambda part: make({**copy.deepcopy(plain), changed: part}), reason)
        return (f"{changed}.{path}", value) if path else (changed, inner)
    return changed, inner


def _reason(fault: Exception) -> str:
    text = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
    # Without what a wrapper writes before the actual error.
    return _shortened(re.sub(r"StrictDataclass\w+: .*?: (?=\w+Error: )", "", text))


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


# Entries that are numbers, or texts, in every config that has them.
_NUMBER = re.compile(
    r"num_\w+|n_(embd|layers?|heads?|positions|inner)|head_dim|\w+_(size|eps|theta|token_id|embeddings)"
)
_HEADS = re.compile(r"num_(attention|key_value)_heads|n_heads?")
_ACTIVATION = re.compile(r"hidden_(act|activation)|activation_function")
_TEXT = re.compile(rf"{_ACTIVATION.pattern}|(rope_)?type")
# Common ones; others are looked up in transformers, whose import takes longer than many merges.
_ACTIVATIONS = {"silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2", "quick_gelu"}


def check_values(config: Mapping[str, Any]) -> None:
    """Raises an ArchitectureError where a value of the config cannot be one of a model that runs.

    These are a text instead of a number or the other way round (numbers of rotary embeddings too, which transformers
    meets only as it makes a model), no attention heads, and names of dtypes and activation functions that do not exist.
    """
    found = [("", part) for part in parts_of(config)]
    for _, part in tuple(found):
        for key in ("rope_parameters", "rope_scaling"):
            given = part.get(key)
            # There may be one for each kind of layer.
            inside = [given, *given.values()] if isinstance(given, dict) else []
            found += [(f"{key}.", inner) for inner in inside if isinstance(inner, dict)]
    for prefix, part in found:
        for key, value in part.items():
            expected = _expected(key, value, inner=bool(prefix), kind=config.get("model_type"))
            if expected:
                raise ArchitectureError(f"config.json: {prefix}{key} is {_shortened(repr(value))}; expected {expected}")


def _expected(key: str, value: Any, *, inner: bool, kind: Any) -> str:
    """What a value should be instead; "" where nothing is wrong with it."""
    if isinstance(value, int | float):
        if _TEXT.fullmatch(key):
            return "a text"
        return "1 or more" if value == 0 and _HEADS.fullmatch(key) else ""
    if not isinstance(value, str):
        return ""
    if key == "tie_word_embeddings":
        return "true or false"
    if key in ("dtype", "torch_dtype"):
        known = value == "auto" or isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)
        return "" if known else "a dtype of torch, such as bfloat16"
    if _ACTIVATION.fullmatch(key) and value not in _ACTIVATIONS:
        from transformers import CONFIG_MAPPING
        from transformers.activations import ACT2FN

        known = kind not in CONFIG_MAPPING or value in ACT2FN
        return "" if known else "an activation function of transformers, such as silu"
    return "a number" if _NUMBER.fullmatch(key) or (inner and not _TEXT.fullmatch(key)) else ""


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether the head repeats the embedding: as the config says, else as transformers has it."""
    for part in parts_of(config):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    # Configs leave out their class's defaults; a model of an unknown class keeps its head.
    from transformers import CONFIG_MAPPING

    for part in reversed(parts_of(config)):
        kind = part.get("model_type")
        if isinstance(kind, str) and kind in CONFIG_MAPPING:
            return bool(getattr(CONFIG_MAPPING[kind], "tie_word_embeddings", False))
    return False
