"""A search over models with adapters and vocabularies of their own: what is written scores what was recorded."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from evomerge.study import prepare
from tests.study.search_case import write_case
from tests.study.test_study import assert_written_winner_scores_what_was_recorded
from tests.tiny import VOCABULARY, tiny_checkpoint


def test_the_winner_of_a_search_over_a_union_with_an_adapter_scores_the_same_when_it_is_written(tmp_path: Path):
    recipe = write_case(tmp_path, evaluations=3)
    chat = tiny_checkpoint(tmp_path / "chat", seed=9, layers=2, extra_tokens=["<|im_end|>"])
    lora = tmp_path / "lora"
    lora.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 1}))
    text = recipe.read_text().replace("dtype: bfloat16", "dtype: bfloat16\ntokenizer: {source: union}")
    text = text.replace(f"model: {tmp_path}/a\n", f"model: {tmp_path}/a+{lora}\n")
    recipe.write_text(text.replace(f"model: {tmp_path}/b\n", f"model: {chat}\n"))
    spec = prepare(recipe)
    assert spec.parents == (f"{tmp_path}/a+{lora}", str(chat))
    assert_written_winner_scores_what_was_recorded(spec, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<|im_end|>") == VOCABULARY
