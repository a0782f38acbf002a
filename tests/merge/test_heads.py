"""Heads that a config ties to the embedding, and files that say otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.merge import Plan, into_directory, open_models, plan
from evomerge.recipe import Recipe
from tests.test_architectures import assert_same_values, live
from tests.tiny import tiny_checkpoint

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MEAN = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def with_head(folder: Path, head: torch.Tensor) -> None:
    save_file({**stored(folder), HEAD: head.contiguous()}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def tied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, a and b, whose configs tie the head."""
    for seed, name in enumerate("ab"):
        tiny_checkpoint(tmp_path / name, seed, layers=2, tie_word_embeddings=True, tokenizer=False)
        assert HEAD not in stored(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(text: str) -> Plan:
    recipe = Recipe.parse(text, "r.yaml")
    return plan(recipe, open_models(recipe))


def test_a_head_of_its_own_is_kept_whatever_the_config_says(tied: Path) -> None:
    for name in "ab":
        with_head(tied / name, stored(tied / name)[EMBEDDING].flip(0))
    made = planned(MEAN)
    assert made.layout.config["tie_word_embeddings"] is False
    into_directory(made, tied / "out")
    a, b, out = (stored(tied / name) for name in ("a", "b", "out"))
    torch.testing.assert_close(out[HEAD], (a[HEAD] + b[HEAD]) / 2)
    loaded = AutoModelForCausalLM.from_pretrained(tied / "out")
    assert torch.equal(loaded.lm_head.weight, out[HEAD])
    assert torch.equal(loaded.model.embed_tokens.weight, out[EMBEDDING])
    assert_same_values(loaded, live(made))


@pytest.mark.parametrize("own", ["a", "b"])
def test_a_model_without_a_head_takes_part_with_its_embedding(own: str, tied: Path) -> None:
    with_head(tied / own, stored(tied / own)[EMBEDDING].flip(0))
    into_directory(planned(MEAN), tied / "out")
    a, b, out = (stored(tied / name) for name in ("a", "b", "out"))
    torch.testing.assert_close(out[HEAD], (a.get(HEAD, a[EMBEDDING]) + b.get(HEAD, b[EMBEDDING])) / 2)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tied / "out").lm_head.weight, out[HEAD])


def test_a_head_that_is_the_embedding_is_not_written(tied: Path) -> None:
    with_head(tied / "a", stored(tied / "a")[EMBEDDING])
    made = planned(MEAN)
    assert HEAD not in [info.name for info in made.layout.tensors]
    assert made.layout.config["tie_word_embeddings"] is True


def test_the_predictor_of_further_tokens_stays_past_the_layers_of_a_stack(tied: Path) -> None:
    further = "model.layers.2.eh_proj.weight"
    save_file({**stored(tied / "a"), further: torch.ones(4, 4)}, tied / "a" / "model.safetensors", {"format": "pt"})
    text = "merge_method: passthrough\nslices:\n" + "  - sources: [{model: a, layer_range: [0, 2]}]\n" * 2
    names = [info.name for info in planned(text).layout.tensors]
    assert len(names) == len(set(names))
    assert further.replace("2", "4") in names
    assert further not in names
