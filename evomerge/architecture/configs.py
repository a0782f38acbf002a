"""What a config.json says of its language model, wherever it says it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from evomerge.errors import ArchitectureError

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""The names that a depth has."""

# Where the config of a model of several modalities keeps the language model's.
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config", "thinker_config")


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
    """The language model's config with the values that it leaves out, as they are its class's default; or None."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    plain = {key: value for key, value in config.items() if key != "auto_map"}
    try:
        return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(plain)).get_text_config()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArchitectureError(f'config.json is no config of a "{kind}" for transformers: {error}') from None


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether the head repeats the embedding: where the config says so, else as transformers has it."""
    for part in parts_of(config):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    # Configs leave out what is their class's default; an unknown class keeps its head.
    from transformers import CONFIG_MAPPING

    for part in reversed(parts_of(config)):
        kind = part.get("model_type")
        if isinstance(kind, str) and kind in CONFIG_MAPPING:
            return bool(getattr(CONFIG_MAPPING[kind], "tie_word_embeddings", False))
    return False
