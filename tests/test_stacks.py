"""What a config says of each layer, by lists or by numbers, follows the layers into a stack."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from evomerge.architecture import config_of_stack, parsed
from evomerge.errors import ArchitectureError


def stacked(config: dict[str, Any], *layers: int) -> dict[str, Any]:
    return config_of_stack(config, [(config, layer) for layer in layers])


def gemma3(**changes: Any) -> dict[str, Any]:
    return {"model_type": "gemma3_text", "num_hidden_layers": 12, **changes}


def test_a_pattern_that_a_number_stands_for_becomes_a_list() -> None:
    # Older Gemma 3 checkpoints say the pattern alone: every sixth layer attends to all.
    result = stacked(gemma3(sliding_window_pattern=6), 5, 0, 11)
    assert result["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    assert AutoConfig.for_model(**result).layer_types == result["layer_types"]


def test_a_number_that_the_config_leaves_out_counts_as_its_class_has_it() -> None:
    assert stacked(gemma3(), 5, 0)["layer_types"] == ["full_attention", "sliding_attention"]


def test_equal_configs_are_read_once_and_others_by_themselves() -> None:
    # Reading one takes milliseconds, and the stacks of a search have few.
    assert parsed(gemma3()) is parsed(gemma3())
    assert parsed(gemma3(layer_types=["full_attention"] * 12)).layer_types != parsed(gemma3()).layer_types


def test_what_is_alike_for_all_layers_is_not_said() -> None:
    config = {"model_type": "qwen2", "num_hidden_layers": 4, "max_window_layers": 4, "use_sliding_window": False}
    assert stacked(config, 0, 1, 0, 1, 2, 3) == {**config, "num_hidden_layers": 6}


def test_windows_from_a_layer_on_become_a_list() -> None:
    config = {"model_type": "qwen2", "num_hidden_layers": 4, "max_window_layers": 2, "use_sliding_window": True}
    kinds = stacked(config, 0, 3, 1)["layer_types"]
    assert kinds == ["full_attention", "sliding_attention", "full_attention"]


def test_layers_of_several_models_keep_what_their_own_configs_say() -> None:
    full = gemma3(layer_types=["full_attention"] * 12)
    deeper = {**full, "num_hidden_layers": 14, "layer_types": [*["full_attention"] * 13, "sliding_attention"]}
    result = config_of_stack(full, [(full, 0), (deeper, 13), (full, 11)])
    assert result["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    assert result["num_hidden_layers"] == 3


def test_a_depth_that_the_config_leaves_out_is_set() -> None:
    # As in the text config of LLaVA 1.5: 32 layers are the default of Llama.
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}}
    result = stacked(config, 0, 31, 31)
    assert result["text_config"]["num_hidden_layers"] == 3


DEEPSEEK = {"model_type": "deepseek_v3", "num_hidden_layers": 6, "first_k_dense_replace": 2}

JAMBA = {"model_type": "jamba", "num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 1}


@pytest.mark.parametrize(("layers", "dense"), [((0, 1, 2, 3), 2), ((0, 1, 0, 1, 5), 4), ((1, 4), 1), ((3, 4), 0)])
def test_the_number_of_first_dense_layers_is_adjusted(layers: tuple[int, ...], dense: int) -> None:
    assert stacked(DEEPSEEK, *layers)["first_k_dense_replace"] == dense


def test_a_default_number_of_dense_layers_is_counted_too() -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 6}
    assert AutoConfig.for_model(**config).first_k_dense_replace == 3
    assert stacked(config, 0, 5)["first_k_dense_replace"] == 1
    assert stacked(config, 0, 1, 2, 5) == {**config, "num_hidden_layers": 4}


def test_every_so_many_layers_with_experts_become_a_list_of_the_others() -> None:
    config = {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 6,
        "num_experts": 4,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    }
    result = stacked(config, 0, 1, 1, 3, 5)  # With experts: 1 and 5.
    assert (result["decoder_sparse_step"], result["mlp_only_layers"]) == (1, [0, 3])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((0, 1, 2, 3, 4, 5), (2, 3, -1)), ((3, 5, 0, 1), (1, 0, 1)), ((0, 1), (2, 3, -1)), ((3, 0, 5), None)],
)
def test_an_interval_of_layers_with_experts(layers: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    config = {
        "model_type": "ernie4_5_moe",
        "num_hidden_layers": 6,
        "moe_layer_interval": 2,
        "moe_layer_start_index": 3,
        "moe_layer_end_index": -1,
    }  # With experts: 3 and 5.
    if expected is None:
        with pytest.raises(ArchitectureError, match="moe_layer_interval: 2"):
            stacked(config, *layers)
        return
    result = stacked(config, *layers)
    assert tuple(result[f"moe_layer_{name}"] for name in ("interval", "start_index", "end_index")) == expected


def test_letters_of_a_pattern_follow() -> None:
    config = {"num_hidden_layers": 5, "hybrid_override_pattern": "M-M*-"}
    assert stacked(config, 3, 0, 4, 3)["hybrid_override_pattern"] == "*M-*"


def test_the_last_layers_are_adjusted() -> None:
    config = {"num_hidden_layers": 6, "num_kv_shared_layers": 2}
    assert stacked(config, 0, 1, 5)["num_kv_shared_layers"] == 1


@pytest.mark.parametrize(
    ("config", "layers", "words"),
    [
        (DEEPSEEK, (2, 0), r"first_k_dense_replace: 2.*its layers \[1\]"),
        ({"num_hidden_layers": 6, "num_kv_shared_layers": 2}, (5, 0), r"num_kv_shared_layers: 2.*its layers \[0\]"),
        (
            {**JAMBA, "expert_layer_period": 1, "expert_layer_offset": 0},
            (1, 1, 0),
            r"attn_layer_period: 4.*its layers \[0, 1\]",
        ),
        (
            {"model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": True},
            (1, 0),
            "scale_attn_by_inverse_layer_idx: True",
        ),
    ],
)
def test_patterns_that_no_config_can_say_are_refused(config: dict[str, Any], layers: tuple[int, ...], words: str):
    with pytest.raises(ArchitectureError, match=words):
        stacked(config, *layers)


def test_a_stack_that_keeps_the_pattern_is_taken() -> None:
    config = {**JAMBA, "expert_layer_period": 2, "expert_layer_offset": 1}
    assert stacked(config, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5) == {**config, "num_hidden_layers": 10}


def test_a_pattern_may_begin_at_another_layer() -> None:
    config = {**JAMBA, "expert_layer_period": 1, "expert_layer_offset": 0}
    result = stacked(config, 1, 2, 3, 4, 5)  # With attention: 1 and 5.
    assert (result["attn_layer_period"], result["attn_layer_offset"]) == (4, 0)
