"""Which tensors of a layer are scaled to scale what it adds to the residual stream, by the names in its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from accelerate import init_empty_weights
from transformers.core_model_loading import revert_weight_conversion

from evomerge.architecture import Fold, fold_of
from evomerge.errors import ArchitectureError
from tests.tiny import auto_class, tiny_config

FOLDS = {
    "llama": Fold(("down_proj", "o_proj"), offset=False),
    "qwen2": Fold(("down_proj", "o_proj"), offset=False),
    "qwen3": Fold(("down_proj", "o_proj"), offset=False),
    "gemma2": Fold(("post_attention_layernorm", "post_feedforward_layernorm"), offset=True),
    "gemma3_text": Fold(("post_attention_layernorm", "post_feedforward_layernorm"), offset=True),
    "gemma3": Fold(("post_attention_layernorm", "post_feedforward_layernorm"), offset=True),
    "gpt2": Fold(("c_proj",), offset=False),
    "mixtral": Fold(("o_proj", "w2"), offset=False),
    "mamba": Fold(("out_proj",), offset=False),
    "deepseek_v3": Fold(("down_proj", "o_proj"), offset=False),
    "gpt_oss": Fold(("down_proj", "o_proj"), offset=False),
    "phi": Fold(("dense", "fc2"), offset=False),
    "gpt_neox": Fold((".dense.", "dense_4h_to_h"), offset=False),
    "opt": Fold(("fc2", "out_proj"), offset=False),
    "glm4": Fold(("post_mlp_layernorm", "post_self_attn_layernorm"), offset=False),
    "jamba": Fold(("down_proj", "out_proj"), offset=False),
}


def model_of(kind: str) -> tuple[dict[str, Any], list[str]]:
    """The config and the tensors' names of a model that has no weights."""
    config = tiny_config(kind)
    with init_empty_weights():
        model = auto_class(kind).from_config(config)
    return config.to_dict(), list(revert_weight_conversion(model, model.state_dict()))


@pytest.mark.parametrize("kind", FOLDS)
def test_a_fold_is_found_by_the_structure_of_the_blocks(kind: str) -> None:
    assert fold_of(*model_of(kind)) == FOLDS[kind]


@pytest.mark.parametrize("kind", ["olmo2", "exaone4"])
def test_blocks_that_read_the_stream_without_a_norm_are_refused(kind: str) -> None:
    with pytest.raises(ArchitectureError, match=r"layer 0 reads the residual stream without a norm \(post_attention"):
        fold_of(*model_of(kind))


LLAMA = [
    *("input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight"),
    *("self_attn.o_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
]


def names(*rests: str, layers: int = 2, beside: Sequence[str] = ("model.norm.weight",)) -> list[str]:
    found = [f"model.layers.{layer}.{rest}" for layer in range(layers) for rest in rests]
    return ["model.embed_tokens.weight", *found, *beside, "lm_head.weight"]


CONFIG = {"model_type": "llama", "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("tensors", "changes", "reason"),
    [
        # As Gemma 3n adds to its blocks, and Gemma 4.
        (names(*LLAMA, "altup.prediction_coefs.weight"), {}, "no tensor of altup is known to be its last projection"),
        (names(*LLAMA, "per_layer_input_gate.weight"), {}, "layer 0 has per_layer_input_gate.weight"),
        (names(*LLAMA, "layer_scalar"), {}, "layer 0 has layer_scalar, and no tensor of the block itself"),
        (names(*LLAMA, beside=()), {}, "no norm comes between the last layer and the head"),
        (names(*LLAMA[2:]), {}, r"layer 0 reads the residual stream without a norm \(it has none\)"),
        (names(*LLAMA, "other_norm.weight"), {}, "not known which of layer 0's norms .* are behind a branch"),
        (names(*LLAMA), {"do_layer_norm_before": False}, "do_layer_norm_before: False, so no norm comes before"),
        (names(*LLAMA, beside=("model.norm.weight", "model.o_proj.weight")), {}, "not model.o_proj.weight"),
        (["model.embed_tokens.weight"], {"num_hidden_layers": 0}, "the model has no stack of layers"),
        (
            names(*LLAMA, "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
            {"model_type": "unheard_of"},
            'transformers has no model_type "unheard_of"',
        ),
        (
            [*names(*LLAMA), *(f"model.layers.0.{where}_feedforward_layernorm.weight" for where in ("pre", "post"))],
            {},
            "only some of the layers have norms behind their branches",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused_with_the_reason(
    tensors: list[str], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArchitectureError, match=f"cannot be folded into its weights: .*{reason}"):
        fold_of({**CONFIG, **changes}, tensors)


def test_filters_match_nothing_but_what_is_folded() -> None:
    found = fold_of(
        {**CONFIG, "model_type": "gpt_neox"},
        names(*LLAMA[:2], "mlp.dense_4h_to_h.bias", "mlp.dense_h_to_4h.bias", "self_attn.dense.bias"),
    )
    assert found.filters == (".dense.", "dense_4h_to_h")
    assert found.includes("model.layers.0.self_attn.dense.bias")
    assert not found.includes("model.layers.0.mlp.dense_h_to_4h.bias")


def test_masks_that_old_checkpoints_store_change_nothing() -> None:
    config, tensors = model_of("gpt2")
    masks = [f"transformer.h.{layer}.attn.{name}" for layer in range(4) for name in ("bias", "masked_bias")]
    assert fold_of(config, [*tensors, *masks]) == FOLDS["gpt2"]


def test_a_recipe_scales_what_is_folded_and_shifts_the_weights_of_norms_that_add_one() -> None:
    plain, norms = Fold(("o_proj", "w2"), offset=False), Fold(("norm",), offset=True)
    scaled = [{"filter": "o_proj", "value": 0.75}, {"filter": "w2", "value": 0.75}, {"value": 1.0}]
    assert plain.parameters(0.75) == {"scale": scaled}
    assert norms.parameters(0.75) == {
        "scale": [{"filter": "norm", "value": 0.75}, {"value": 1.0}],
        "shift": [{"filter": "norm", "value": -0.25}, {"value": 0.0}],
    }
    assert plain.parameters(1.0) == norms.parameters(1.0) == {}
