"""The language model inside a larger one, by names and config alone."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.architecture import LanguagePart
from tests.test_architecture import llama_names

VISION = {"num_hidden_layers": 2, "hidden_size": 8}
LLAMA = {"model_type": "llama", "num_hidden_layers": 2}


def vision_names(prefix: str) -> list[str]:
    return [f"{prefix}{name}" for name in ("layers.0.mlp.weight", "layers.1.mlp.weight", "head.weight", "norm.weight")]


CASES: dict[str, tuple[dict[str, Any], dict[str, str], list[str]]] = {
    "llava, all of whose language model has a prefix": (
        {"text_config": LLAMA, "vision_config": VISION},
        {name: f"language_model.{name}" for name in llama_names(2)},
        [*vision_names("vision_tower.vision_model."), "multi_modal_projector.linear_1.weight", "image_newline"],
    ),
    "by transformers 5's own names": (
        {"text_config": LLAMA, "vision_config": VISION},
        {
            name: name if name.startswith("lm_head") else name.replace("model.", "model.language_model.")
            for name in llama_names(2)
        },
        [*vision_names("model.vision_tower."), "model.multi_modal_projector.linear_1.weight"],
    ),
    "qwen2-vl, whose language model has its own names and whose config is flat": (
        {"model_type": "of_my_own", "num_hidden_layers": 2, "vision_config": VISION},
        {name: name for name in llama_names(2)},
        [*vision_names("visual."), "visual.merger.mlp.0.weight"],
    ),
    "towers inside the language model's own module": (
        {"text_config": LLAMA, "vision_config": VISION},
        {name: name for name in llama_names(2)},
        [*vision_names("model.vision_model."), "model.connector.proj.weight", "model.mm_projector.0.weight"],
    ),
    "a language model": (LLAMA, {name: name for name in llama_names(2)}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_language_part_is_found_and_renamed_both_ways(case: str) -> None:
    config, names, beside = CASES[case]
    plain = LanguagePart.of(LLAMA, llama_names(2))
    part = LanguagePart.of(config, [*names.values(), *beside])
    assert part.names == set(names.values())
    assert {own: plain.renamed(own, part) for own in plain.names} == names
    assert {name: part.renamed(name, plain) for name in part.names} == {name: own for own, name in names.items()}
    assert part.config["num_hidden_layers"] == 2
    assert "vision_config" not in part.config


def test_the_whole_config_changes_where_the_language_parts_does() -> None:
    config = {"text_config": {**LLAMA, "torch_dtype": "float16"}, "vision_config": VISION, "tie_word_embeddings": True}
    part = LanguagePart.of(config, llama_names(2))
    changed = {**part.config, "num_hidden_layers": 3, "tie_word_embeddings": False}
    del changed["torch_dtype"]
    assert part.within(config, changed) == {
        "text_config": {**LLAMA, "num_hidden_layers": 3, "tie_word_embeddings": False},
        "vision_config": VISION,
        "tie_word_embeddings": False,
    }
    assert part.within(config, part.config) == config
