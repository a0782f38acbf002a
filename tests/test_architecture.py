"""Layers by their names and the config's depth alone, for architectures that nobody listed."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, T5Config

from evomerge.architecture import Architecture, config_of_stack, differences
from evomerge.checkpoint import Checkpoint, CheckpointWriter, TensorInfo
from evomerge.errors import ArchitectureError
from tests.tiny import KINDS, tiny_checkpoint


def llama_names(depth: int, prefix: str = "model.") -> list[str]:
    layers = [
        f"{prefix}layers.{i}.{part}.weight"
        for i in range(depth)
        for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm")
    ]
    return ["lm_head.weight", f"{prefix}embed_tokens.weight", *layers, f"{prefix}norm.weight"]


def positions(config: dict[str, Any], names: list[str]) -> dict[str, str]:
    """Where each tensor outside the layers takes part."""
    architecture = Architecture.of(config, names)
    return {name: architecture.position(name) for name in names if architecture.layer_of(name) is None}


# Real models, written by transformers

LLAMA = ({"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"})
TIED = (LLAMA[0], {"model.norm.weight"})
OUTSIDE = {
    **dict.fromkeys(KINDS, LLAMA),
    "gemma2": TIED,
    "gemma3_text": TIED,
    "gpt2": (
        {"transformer.wte.weight", "transformer.wpe.weight"},
        {"transformer.ln_f.weight", "transformer.ln_f.bias"},
    ),
    "phi": (
        {"model.embed_tokens.weight"},
        {"model.final_layernorm.weight", "model.final_layernorm.bias", "lm_head.weight", "lm_head.bias"},
    ),
    "mamba": ({"backbone.embeddings.weight"}, {"backbone.norm_f.weight"}),
}


def renamed(architecture: Architecture, name: str, layer: int) -> str:
    """The name of the same tensor of another layer."""
    _, dot, rest = name.removeprefix(architecture.stack).partition(".")
    return f"{architecture.stack}{layer}{dot}{rest}"


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_real_models(kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint(tmp_path, kind=kind, layers=3, tokenizer=False)))
    architecture = Architecture.of(checkpoint.config, checkpoint.tensors)
    assert architecture.num_layers == 3
    sides: dict[str, set[str]] = {"before": set(), "layers": set(), "after": set()}
    for name in checkpoint.tensors:
        sides[architecture.position(name)].add(name)
    assert (sides["before"], sides["after"]) == OUTSIDE[kind]
    counts = Counter(architecture.layer_of(name) for name in sides["layers"])
    assert set(counts) == {0, 1, 2}
    if kind == "deepseek_v3":  # Its first layer is dense; the others have experts.
        assert counts[0] < counts[1] == counts[2]
        return
    assert len(set(counts.values())) == 1
    # Each layer's names are those of any other, renamed.
    first = {name for name in sides["layers"] if architecture.layer_of(name) == 0}
    last = {name for name in sides["layers"] if architecture.layer_of(name) == 2}
    assert {renamed(architecture, name, 2) for name in first} == last
    assert {renamed(architecture, name, 0) for name in last} == first


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_a_model_that_transformers_loads(kind: str, tmp_path: Path) -> None:
    source = Checkpoint.open(str(tiny_checkpoint(tmp_path / "in", kind=kind, layers=3, tokenizer=False)))
    architecture = Architecture.of(source.config, source.tensors)
    layers = [0, 1, 1, 2, 1]
    origin = {}
    for name in source.tensors:
        here = architecture.layer_of(name)
        places = [i for i, layer in enumerate(layers) if layer == here]
        origin |= {renamed(architecture, name, i): name for i in places} if here is not None else {name: name}
    layout = [TensorInfo(name, source.tensors[old].dtype, source.tensors[old].shape) for name, old in origin.items()]
    config = config_of_stack(source.config, [(source.config, layer) for layer in layers])
    with CheckpointWriter(tmp_path / "out", layout) as writer:
        for name, old in origin.items():
            writer.write(name, source.read(old))
        writer.commit(config=config)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    assert model.config.num_hidden_layers == 5
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


# Names

CASES: list[tuple[str, dict[str, Any], list[str], int, dict[str, str]]] = [
    (
        "gpt2 as the Hub has it",
        {"n_layer": 2},
        ["wte.weight", "h.0.ln_1.weight", "h.1.ln_1.weight", "ln_f.weight"],
        2,
        {"wte.weight": "before", "ln_f.weight": "after"},
    ),
    (
        "bert",
        {"num_hidden_layers": 2},
        [
            "bert.embeddings.LayerNorm.weight",
            "bert.encoder.layer.0.output.dense.weight",
            "bert.encoder.layer.1.output.dense.weight",
            "bert.pooler.dense.weight",
            "cls.predictions.transform.LayerNorm.weight",
        ],
        2,
        {
            "bert.embeddings.LayerNorm.weight": "before",
            "bert.pooler.dense.weight": "after",
            "cls.predictions.transform.LayerNorm.weight": "after",
        },
    ),
    (
        "bloom",
        {"n_layer": 1},
        ["word_embeddings_layernorm.weight", "h.0.mlp.weight", "ln_f.weight", "word_embeddings.weight"],
        1,
        {
            "word_embeddings_layernorm.weight": "before",
            "word_embeddings.weight": "before",
            "ln_f.weight": "after",
        },
    ),
    (
        "opt",
        {"num_hidden_layers": 1},
        [
            "model.decoder.embed_positions.weight",
            "model.decoder.project_in.weight",
            "model.decoder.layers.0.fc1.weight",
            "model.decoder.project_out.weight",
            "model.decoder.final_layer_norm.weight",
        ],
        1,
        {
            "model.decoder.embed_positions.weight": "before",
            "model.decoder.project_in.weight": "before",
            "model.decoder.project_out.weight": "after",
            "model.decoder.final_layer_norm.weight": "after",
        },
    ),
    (
        "lfm2, whose final norm is called embedding_norm",
        {"num_hidden_layers": 1},
        ["model.embed_tokens.weight", "model.layers.0.conv.weight", "model.embedding_norm.weight"],
        1,
        {"model.embed_tokens.weight": "before", "model.embedding_norm.weight": "after"},
    ),
    (
        "pythia",
        {"num_hidden_layers": 1},
        [
            "gpt_neox.embed_in.weight",
            "gpt_neox.layers.0.mlp.weight",
            "gpt_neox.final_layer_norm.bias",
            "embed_out.weight",
        ],
        1,
        {
            "gpt_neox.embed_in.weight": "before",
            "gpt_neox.final_layer_norm.bias": "after",
            "embed_out.weight": "after",
        },
    ),
    (
        "a layer past the depth, which predicts further tokens",
        {"num_hidden_layers": 2},
        [*llama_names(2), "model.layers.2.eh_proj.weight"],
        2,
        {
            "lm_head.weight": "after",
            "model.embed_tokens.weight": "before",
            "model.norm.weight": "after",
            "model.layers.2.eh_proj.weight": "after",
        },
    ),
    (
        "a vision tower of the same depth beside the language model",
        {"vision_config": {"num_hidden_layers": 2}, "text_config": {"num_hidden_layers": 2}},
        [
            *llama_names(2, "model.language_model."),
            "model.vision_tower.encoder.layers.0.mlp.weight",
            "model.vision_tower.encoder.layers.1.mlp.weight",
            "model.vision_tower.head.weight",
            "model.vision_tower.norm.weight",
            "model.multi_modal_projector.norm.weight",
        ],
        2,
        {
            "lm_head.weight": "after",
            "model.language_model.embed_tokens.weight": "before",
            "model.language_model.norm.weight": "after",
            "model.vision_tower.encoder.layers.0.mlp.weight": "before",
            "model.vision_tower.encoder.layers.1.mlp.weight": "before",
            "model.vision_tower.head.weight": "before",
            "model.vision_tower.norm.weight": "before",
            "model.multi_modal_projector.norm.weight": "before",
        },
    ),
    (
        "no stack",
        {"hidden_size": 8},
        ["features.0.weight", "features.1.weight", "norm.weight", "head.weight"],
        0,
        dict.fromkeys(["features.0.weight", "features.1.weight", "norm.weight", "head.weight"], "before"),
    ),
]


@pytest.mark.parametrize(
    ("config", "names", "depth", "outside"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_positions_by_names(config: dict[str, Any], names: list[str], depth: int, outside: dict[str, str]) -> None:
    assert Architecture.of(config, names).num_layers == depth
    assert positions(config, names) == outside


def test_a_deeper_vision_tower_is_not_the_stack() -> None:
    vision = [f"visual.blocks.{i}.mlp.weight" for i in range(32)]
    config = {"num_hidden_layers": 3, "vision_config": {"depth": 32}}
    architecture = Architecture.of(config, [*vision, *llama_names(3)])
    assert architecture.stack == "model.layers."
    assert architecture.layer_of("visual.blocks.1.mlp.weight") is None


def test_a_vision_tower_of_the_same_depth_and_a_shorter_name_is_not_the_stack() -> None:
    vision = [f"visual.h.{i}.mlp.weight" for i in range(3)]
    assert Architecture.of({"num_hidden_layers": 3}, [*vision, *llama_names(3)]).stack == "model.layers."


def test_experts_belong_to_the_outer_layer() -> None:
    # As many experts as layers: both numbers fit the depth.
    names = [f"model.layers.{i}.mlp.experts.{e}.w1.weight" for i in range(4) for e in range(4)]
    architecture = Architecture.of({"num_hidden_layers": 4}, names)
    assert architecture.layer_of("model.layers.3.mlp.experts.1.w1.weight") == 3


def test_a_depth_that_the_tensors_lack_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"states 4 layers.*model\.layers\.0 to model\.layers\.2 \(3"):
        Architecture.of({"num_hidden_layers": 4}, llama_names(3))
    with pytest.raises(ArchitectureError, match="no numbered tensors"):
        Architecture.of({"num_hidden_layers": 10**12}, ["a.weight"])
    hole = [name for name in llama_names(5) if ".2." not in name]
    with pytest.raises(ArchitectureError, match="states 4 layers"):
        Architecture.of({"num_hidden_layers": 4}, hole)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    names = [f"{side}.block.{i}.layer.0.weight" for side in ("encoder", "decoder") for i in range(6)]
    config = json.loads(T5Config().to_json_string(use_diff=False))
    with pytest.raises(ArchitectureError, match=r"encoder-decoder.*t5.*decoder\.block\.0.*encoder\.block\.0"):
        Architecture.of(config, names)


# Tied heads


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "text_config": {"num_hidden_layers": 1}}, True),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        # Configs leave out what is the default of their class.
        ({"model_type": "gemma"}, True),
        ({"model_type": "llama"}, False),
        ({"model_type": "of_my_own"}, False),
        ({}, False),
    ],
)
def test_tied_heads(config: dict[str, Any], tied: bool) -> None:
    architecture = Architecture.of({"num_hidden_layers": 1, **config}, llama_names(1))
    assert architecture.tied == ({"lm_head.weight"} if tied else set())


def test_a_head_without_its_embedding_is_not_tied() -> None:
    names = [name for name in llama_names(1) if "embed" not in name]
    assert not Architecture.of({"num_hidden_layers": 1, "tie_word_embeddings": True}, names).tied


# The config of a stack


def test_lists_of_layers_follow_the_stack() -> None:
    text = {
        "num_hidden_layers": 3,
        "layer_types": ["sliding", "full", "sliding"],
        "intermediate_size": [10, 20, 30],
        "mlp_only_layers": [1],
        "eos_token_id": [1, 2, 3],
        "hidden_size": 3,
        "rope_scaling": {"short_factor": [1, 2, 3]},
    }
    config = {
        "architectures": ["A", "B", "C"],
        "text_config": text,
        "vision_config": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]},
    }
    before = copy.deepcopy(config)
    result = config_of_stack(config, [(config, layer) for layer in [0, 1, 2, 1, 2]])
    assert config == before
    assert result == {
        "architectures": ["A", "B", "C"],
        "text_config": {
            **text,
            "num_hidden_layers": 5,
            "layer_types": ["sliding", "full", "sliding", "full", "sliding"],
            "intermediate_size": [10, 20, 30, 20, 30],
            "mlp_only_layers": [1, 3],
        },
        "vision_config": before["vision_config"],
    }
    result["text_config"]["rope_scaling"]["short_factor"].append(4)
    assert config == before


def test_transformers_takes_the_config_of_a_stack(tmp_path: Path) -> None:
    source = Checkpoint.open(str(tiny_checkpoint(tmp_path, kind="gemma3_text", layers=6, tokenizer=False)))
    kinds = source.config["layer_types"]
    assert len(set(kinds)) == 2
    config = config_of_stack(source.config, [(source.config, 5), (source.config, 0)])
    loaded = AutoConfig.for_model(**config)
    assert (loaded.num_hidden_layers, loaded.layer_types) == (2, [kinds[5], kinds[0]])


# Differences


def model(name: str, depth: int = 2, vocabulary: int = 100, width: int = 8, **config: Any) -> Any:
    """What `differences` needs of a checkpoint."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(llama_names(depth), (width, width))
    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = (vocabulary, width)
    tensors = {name: TensorInfo(name, torch.float32, shape) for name, shape in shapes.items()}
    return SimpleNamespace(
        reference=name, config={"num_hidden_layers": depth, "tie_word_embeddings": False, **config}, tensors=tensors
    )


def without(checkpoint: Any, *names: str) -> Any:
    for name in names:
        del checkpoint.tensors[name]
    return checkpoint


def test_checkpoints_that_agree(tmp_path: Path) -> None:
    assert differences(model("a"), model("b")) == []
    first = tiny_checkpoint(tmp_path / "a", 1, layers=2, tokenizer=False)
    other = tiny_checkpoint(tmp_path / "b", 2, base=first, dtype=torch.bfloat16, tokenizer=False)
    assert differences(Checkpoint.open(str(first)), Checkpoint.open(str(other))) == []


def test_a_tied_head_that_one_stores_is_no_difference() -> None:
    stored = model("a", tie_word_embeddings=True)
    left_out = without(model("b", tie_word_embeddings=True), "lm_head.weight")
    assert differences(stored, left_out) == differences(left_out, stored) == []
    untied = model("c")
    assert differences(left_out, untied) == ["c has lm_head.weight that b lacks"]


def test_vocabularies_are_told_once() -> None:
    assert differences(model("a"), model("b", vocabulary=102)) == [
        "the vocabularies differ in size: lm_head.weight has 100 rows in a and 102 in b; "
        "say in the recipe which tokenizer to use (tokenizer_source)"
    ]


def test_depths_are_told_once() -> None:
    assert differences(model("a", 2), model("b", 3)) == ["a has 2 layers, b has 3"]


def test_tensors_of_one_only_are_told_each_way() -> None:
    other = without(model("b"), *[f"model.layers.{i}.input_layernorm.weight" for i in range(2)])
    other.tensors["model.layers.1.bias"] = TensorInfo("model.layers.1.bias", torch.float32, (8,))
    assert differences(model("a"), other) == [
        "a has 2 tensors (model.layers.0.input_layernorm.weight, model.layers.1.input_layernorm.weight) that b lacks",
        "b has model.layers.1.bias that a lacks",
    ]


def test_shapes_are_told_up_to_the_limit() -> None:
    told = differences(model("a"), model("b", width=4), most=2)
    assert len(told) == 3
    assert "has shape [100, 8] in a and [100, 4] in b" in told[0]
    assert told[2] == "and 7 more differences"
    assert len(differences(model("a"), model("b", width=4), most=9)) == 9
