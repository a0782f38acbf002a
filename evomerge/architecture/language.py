"""`LanguagePart`: the language model inside a model of several modalities."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.architecture.configs import parts_of, ties_head
from evomerge.architecture.layers import OTHER_MODALITY, Architecture, module_beside


@dataclass(frozen=True)
class LanguagePart:
    """The language model inside a model of several modalities; or a whole language model.

    Attributes:
        config: its own config.
        names: its tensors' names.
    """

    config: Mapping[str, Any]
    names: frozenset[str]
    _path: str

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Iterable[str]) -> LanguagePart:
        """The language part that a config and the names of the tensors describe.

        Args:
            config: a transformers config.json.
            names: all tensors' names.

        Raises:
            ArchitectureError: as `Architecture.of`.
        """
        names = tuple(names)
        architecture = Architecture.of(config, names)
        text = {key: value for key, value in parts_of(config)[-1].items() if not _is_modality(key, value)}
        # The whole model's config alone may say whether the head is tied.
        text["tie_word_embeddings"] = ties_head(config)
        path = architecture.stack.rpartition(".")[0].rpartition(".")[0]
        path = f"{path}." if path else ""
        if len(parts_of(config)) == 1 and not any(_is_modality(*item) for item in config.items()):
            return cls(text, frozenset(names), path)

        def inside(name: str) -> bool:
            if architecture.layer_of(name) is not None or not name.startswith(path):
                return architecture.position(name) != "before"
            return not OTHER_MODALITY.search(module_beside(name, architecture.stack))

        return cls(text, frozenset(filter(inside, names)), path)

    def renamed(self, name: str, other: LanguagePart) -> str:
        """The name that one of the tensors has in `other`.

        Args:
            name: one of `names`.
            other: the language part of another model.
        """
        if name.startswith(self._path):
            return other._path + name.removeprefix(self._path)
        # The head has its own path, and may lie outside the language model.
        beside = (own for own in other.names if not own.startswith(other._path))
        return next((own for own in beside if f".{own}".endswith(f".{name}") or name.endswith(f".{own}")), name)

    def within(self, config: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the whole model with another config of its language part.

        Args:
            config: the whole model's; it is not changed.
            changed: what the language part's config is to be.
        """
        result = copy.deepcopy(dict(config))
        text = parts_of(result)[-1]
        for key in self.config.keys() - changed.keys():
            text.pop(key, None)
        text |= {key: value for key, value in changed.items() if key not in self.config or self.config[key] != value}
        if changed["tie_word_embeddings"] != self.config["tie_word_embeddings"]:
            result["tie_word_embeddings"] = changed["tie_word_embeddings"]
        return result


def _is_modality(key: str, value: object) -> bool:
    """Whether an entry of a config describes a model of images or sounds."""
    return isinstance(value, Mapping) and key.endswith("_config") and bool(OTHER_MODALITY.search(key))
