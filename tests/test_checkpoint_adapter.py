"""Adapters: merged as they are read, like PEFT's own merge; what cannot be merged is refused in words."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.checkpoint import Checkpoint, open_checkpoint
from evomerge.errors import CheckpointError
from evomerge.merge import WeightStore
from tests.tiny import auto_class, tiny_checkpoint

Q = "model.layers.%d.self_attn.q_proj"
DOWN = "model.layers.%d.mlp.down_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "llama", seed=0, dtype=torch.bfloat16)


def adapter(folder: Path, tensors: Mapping[str, Tensor], **settings: Any) -> str:
    """Writes an adapter as PEFT saves it; returns its folder."""
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def factors(module: str, out: int, into: int, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, into, generator=generator),
        f"{module}.lora_B.weight": torch.randn(out, rank, generator=generator),
    }


def weight(folder: Path, name: str) -> Tensor:
    return load_file(folder / "model.safetensors")[name].double()


def merged(model: Path, folder: str, name: str) -> Tensor:
    return open_checkpoint(f"{model}+{folder}").read(name)


def test_factors_are_added_at_their_scale_and_all_else_stays(model: Path, tmp_path: Path):
    parts = {**factors(Q % 1, 16, 16), **factors(DOWN % 2, 16, 32, seed=1)}
    adapted = open_checkpoint(f"{model}+{adapter(tmp_path, parts)}")
    plain = Checkpoint.open(str(model))
    assert list(adapted.tensors) == list(plain.tensors)
    for name in plain.tensors:
        expected = plain.read(name).double()
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in parts:
            a, b = (parts[f"{module}.lora_{factor}.weight"].double() for factor in "AB")
            expected = expected + 6 / 2 * b @ a
            assert not torch.equal(adapted.read(name), plain.read(name))
        assert adapted.read(name).dtype == torch.bfloat16
        assert torch.equal(adapted.read(name), expected.float().bfloat16()), name


def test_patterns_choose_rank_and_scale_by_the_end_of_a_modules_name(model: Path, tmp_path: Path):
    parts = {**factors(Q % 0, 16, 16, rank=4), **factors(Q % 1, 16, 16), **factors(DOWN % 1, 16, 32)}
    folder = adapter(
        tmp_path,
        parts,
        rank_pattern={"layers.0.self_attn.q_proj": 4},
        alpha_pattern={"down_proj": 8, "q_proj|k_proj": 3},
        use_rslora=True,
    )
    for module, scale in ((Q % 0, 3 / math.sqrt(4)), (Q % 1, 3 / math.sqrt(2)), (DOWN % 1, 8 / math.sqrt(2))):
        a, b = (parts[f"{module}.lora_{factor}.weight"].double() for factor in "AB")
        expected = weight(model, f"{module}.weight") + scale * b @ a
        assert torch.equal(merged(model, folder, f"{module}.weight"), expected.float().bfloat16())


def test_dora_brings_rows_to_their_lengths(model: Path, tmp_path: Path):
    magnitude = torch.rand(16, generator=torch.Generator().manual_seed(3)) + 0.5
    parts = {**factors(DOWN % 0, 16, 32), f"{DOWN % 0}.lora_magnitude_vector": magnitude}
    found = merged(model, adapter(tmp_path, parts, use_dora=True), f"{DOWN % 0}.weight").double()
    a, b = (parts[f"{DOWN % 0}.lora_{factor}.weight"].double() for factor in "AB")
    direction = weight(model, f"{DOWN % 0}.weight") + 3 * b @ a
    expected = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=0)
    torch.testing.assert_close(found.norm(dim=1), magnitude.double(), rtol=2**-7, atol=0)


def test_embeddings_have_factors_of_their_own(model: Path, tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    rows = weight(model, "model.embed_tokens.weight").shape[0]
    a, b = torch.randn(2, rows, generator=generator), torch.randn(16, 2, generator=generator)
    saved = torch.randn(rows, 16, generator=generator)
    name = "model.embed_tokens"
    parts = {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b, f"{name}.base_layer.weight": saved}
    found = merged(model, adapter(tmp_path, parts), f"{name}.weight")
    assert torch.equal(found, (saved.double() + 3 * (b.double() @ a.double()).T).float().bfloat16())


def test_saved_modules_and_biases_take_the_models_place(tmp_path: Path):
    model = tiny_checkpoint(tmp_path / "gpt2", kind="gpt2")
    name = "transformer.h.0.mlp.c_fc"
    wide, bias = torch.randn(16, 64), torch.randn(64)
    norm = torch.randn(16)
    parts = {
        f"{name}.lora_A.weight": torch.randn(2, 16),
        f"{name}.lora_B.weight": torch.randn(64, 2),
        f"{name}.bias": bias,
        "transformer.ln_f.modules_to_save.default.weight": norm,
    }
    folder = adapter(tmp_path / "lora", parts, fan_in_fan_out=True)
    own = weight(model, f"{name}.weight")
    assert own.shape == wide.shape
    delta = parts[f"{name}.lora_B.weight"].double() @ parts[f"{name}.lora_A.weight"].double()
    torch.testing.assert_close(
        merged(model, folder, f"{name}.weight").double(), own + 3 * delta.T, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(merged(model, folder, f"{name}.bias"), bias)
    assert torch.equal(merged(model, folder, "transformer.ln_f.weight"), norm)


def test_a_head_of_its_own_unties_the_model(tmp_path: Path):
    model = tiny_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    head = torch.randn(weight(model, "model.embed_tokens.weight").shape)
    adapted = open_checkpoint(f"{model}+{adapter(tmp_path / 'lora', {'lm_head.weight': head})}")
    assert torch.equal(adapted.read("lm_head.weight"), head)
    assert adapted.config["tie_word_embeddings"] is False


def test_the_bits_do_not_depend_on_the_number_of_threads(tmp_path: Path):
    model = tiny_checkpoint(tmp_path / "wide", hidden=512, layers=1)
    folder = adapter(tmp_path / "lora", factors(DOWN % 0, 512, 1024, rank=16), r=16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = merged(model, folder, f"{DOWN % 0}.weight")
        torch.set_num_threads(2)
        assert torch.equal(one, merged(model, folder, f"{DOWN % 0}.weight"))
    finally:
        torch.set_num_threads(threads)


def test_the_fingerprint_changes_with_any_number_and_the_scale(model: Path, tmp_path: Path):
    parts = factors(Q % 0, 16, 16)
    first = open_checkpoint(f"{model}+{adapter(tmp_path / 'a', parts)}").fingerprint()
    assert first == open_checkpoint(f"{model}+{adapter(tmp_path / 'same', parts)}").fingerprint()
    assert first != Checkpoint.open(str(model)).fingerprint()
    assert first != open_checkpoint(f"{model}+{adapter(tmp_path / 'b', parts, lora_alpha=7)}").fingerprint()
    parts[f"{Q % 0}.lora_A.weight"][0, 0] += 1e-3
    assert first != open_checkpoint(f"{model}+{adapter(tmp_path / 'c', parts)}").fingerprint()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "llava"])
def test_it_is_what_peft_merges(kind: str, tmp_path: Path):
    peft = pytest.importorskip("peft")
    folder = tiny_checkpoint(tmp_path / "model", kind=kind)
    targets = ["c_attn", "c_proj", "wte"] if kind == "gpt2" else ["q_proj", "down_proj", "embed_tokens"]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=5,
        target_modules=targets,
        use_rslora=kind == "qwen3",
        rank_pattern={targets[1]: 2},
        alpha_pattern={targets[0]: 3},
        modules_to_save=["ln_f" if kind == "gpt2" else "norm"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(auto_class(kind).from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "lora")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    adapted = open_checkpoint(f"{folder}+{tmp_path / 'lora'}")
    assert adapted.tensors.keys() == expected.keys()
    changed = 0
    for name in adapted.tensors:
        torch.testing.assert_close(adapted.read(name), expected[name], rtol=1e-5, atol=1e-5)
        changed += not torch.equal(adapted.read(name), Checkpoint.open(str(folder)).read(name))
    assert changed > 8


def test_dora_is_what_peft_merges(tmp_path: Path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path / "model")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True, init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "lora")
    expected = model.merge_and_unload().state_dict()
    adapted = open_checkpoint(f"{folder}+{tmp_path / 'lora'}")
    for name in adapted.tensors:
        torch.testing.assert_close(adapted.read(name), expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"target_parameters": ["experts"]}, "target_parameters is set"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"r": 0}, "r is 0; expected a number above 0"),
        ({"lora_alpha": 10**400}, "expected a number above 0"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern: q_proj is '4'"),
        ({"alpha_pattern": {"(": 4}}, "is not a regular expression"),
        ({"r": 3}, "its rank is 3 in adapter_config.json"),
        ({"use_dora": True}, "it has no magnitude vector"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(settings: dict[str, Any], words: str, model: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="lora") as caught:
        open_checkpoint(f"{model}+{adapter(tmp_path / 'lora', factors(Q % 0, 16, 16), **settings)}")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "no tensors"),
        (factors("model.layers.9.self_attn.q_proj", 16, 16), "it adapts model.layers.9.self_attn.q_proj.weight, but"),
        (factors(Q % 0, 16, 20), "the product of its factors has shape [16, 20]"),
        ({f"{Q % 0}.lora_A.weight": torch.zeros(2, 16)}, f"{Q % 0} has no lora_B, only lora_A"),
        (
            {f"{Q % 0}.lora_A.weight": torch.zeros(3, 16), f"{Q % 0}.lora_B.weight": torch.zeros(16, 2)},
            "A has shape [3",
        ),
        ({f"{Q % 0}.lora_A.weight": torch.zeros(16), f"{Q % 0}.lora_B.weight": torch.zeros(16, 2)}, "A has shape [16]"),
        ({"model.embed_tokens.weight": torch.zeros(7, 16)}, "resize the model's embeddings"),
        ({"score.weight": torch.zeros(7, 16)}, "does not have"),
        ({"model.norm.weight": torch.zeros(16, dtype=torch.int8)}, "is torch.int8; expected floating-point"),
        (factors(Q % 0, 16, 16) | {f"{Q % 0}.lora_A.weight": torch.zeros(2, 16).cfloat()}, "is torch.complex64"),
        ({f"{Q % 0}.lora_E": torch.zeros(7)}, "is not part of a plain LoRA"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(parts: dict[str, Tensor], words: str, model: Path, tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{model}+{adapter(tmp_path / 'lora', parts)}")
    assert words in str(caught.value)


def test_all_faults_are_told_and_the_rest_counted(model: Path, tmp_path: Path):
    parts = {name: tensor for i in range(10, 17) for name, tensor in factors(Q % i, 16, 16).items()}
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{model}+{adapter(tmp_path / 'lora', parts)}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert "and 2 more like these" in lines[-1]


def test_numbers_that_are_not_finite_are_found_when_the_model_is_loaded(model: Path, tmp_path: Path):
    parts = factors(Q % 0, 16, 16)
    parts[f"{Q % 0}.lora_B.weight"][3] = float("nan")
    reference = f"{model}+{adapter(tmp_path / 'lora', parts)}"
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has 16 values that are NaN"):
        WeightStore({reference: open_checkpoint(reference)}, "memory", torch.device("cpu")).load()


def test_model_and_adapter_have_revisions_of_their_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"models--org--name": model, "models--me--lora": Path(adapter(tmp_path / "lora", factors(Q % 0, 16, 16)))}
    for (name, folder), revision, commit in zip(folders.items(), ("v1", "v2"), ("a" * 40, "b" * 40), strict=True):
        shutil.copytree(folder, tmp_path / "hub" / name / "snapshots" / commit)
        (tmp_path / "hub" / name / "refs").mkdir()
        (tmp_path / "hub" / name / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = open_checkpoint("org/name@v1+me/lora@v2").read(f"{Q % 0}.weight")
    assert torch.equal(found, merged(model, str(tmp_path / "lora"), f"{Q % 0}.weight"))
    with pytest.raises(CheckpointError, match="me/lora@v1"):
        open_checkpoint("org/name@v1+me/lora@v1")


def test_what_is_missing_is_named(model: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(f"{model}+{tmp_path / 'nowhere'}")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        open_checkpoint(f"{model}+{model}")
    folder = adapter(tmp_path / "lora", {})
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(f"{model}+{folder}")
    with pytest.raises(CheckpointError, match="name both, as MODEL"):
        Checkpoint.open(folder)
