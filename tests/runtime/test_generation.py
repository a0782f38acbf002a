"""Completions of prompts that share a beginning and take each other's rows, against transformers' own generation."""

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from evomerge.runtime import GenerationRequest, TorchLanguageModel
from tests.runtime.test_tree import KINDS
from tests.tiny import VOCABULARY, tiny_checkpoint, tiny_tokenizer

TOKENIZER = tiny_tokenizer()

# Models that keep more than keys and values.
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {},
    "bamba": {
        "layers": 2,
        "attn_layer_indices": [1],
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
        "mamba_n_groups": 1,
    },
    "lfm2": {"layers": 2, "layer_types": ["conv", "full_attention"]},
}


class Case:
    """A tiny model, requests, and transformers' completion of each alone."""

    def __init__(self, folder: Path, kind: str, shared: int) -> None:
        tiny_checkpoint(folder, kind=kind, scale=0.3, **{**KINDS, **RECURRENT}.get(kind, {}))
        self.module = AutoModelForCausalLM.from_pretrained(folder)
        generator = torch.Generator().manual_seed(1)

        def some(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

        shots = some(shared)
        self.asked = [GenerationRequest((*shots, *some(1 + 5 * i)), (3, 9, 14)[i % 3], ()) for i in range(9)]
        self.expected = [self.greedy(request) for request in self.asked]

    def greedy(self, request: GenerationRequest) -> str:
        prompt = torch.tensor([request.prompt])
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=request.max_new_tokens, eos_token_id=2, pad_token_id=0
        )
        with torch.no_grad():
            whole = self.module.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        return TOKENIZER.decode(whole[0, len(request.prompt) :], skip_special_tokens=True)

    def model(self, most: int | None = None) -> TorchLanguageModel:
        """A model that holds at most so many tokens at the same time."""
        model = TorchLanguageModel(self.module, TOKENIZER, [2])
        if most is not None:
            model._generation._budget._most = most
        return model


@pytest.mark.parametrize("shared", [0, 40])
@pytest.mark.parametrize("kind", [*KINDS, *RECURRENT, "deepseek_v3"])
def test_completions_are_those_of_each_alone_whatever_rows_they_take(kind: str, shared: int, tmp_path: Path):
    case = Case(tmp_path / "m", kind, shared)
    sizes: list[int] = []
    hook = case.module.get_input_embeddings().register_forward_pre_hook(lambda _, ids: sizes.append(len(ids[0])))
    for most in (None, 40 + 3 * 60):
        model = case.model(most)
        sizes.clear()
        assert model.generate(case.asked) == case.expected
        if most:
            assert max(sizes) < len(case.asked)
        assert model.generate(case.asked[::-1]) == case.expected[::-1]
        assert model.generate(case.asked[4:6]) == case.expected[4:6]
    hook.remove()


def test_a_shared_beginning_is_run_once(tmp_path: Path):
    case = Case(tmp_path / "m", "llama", 40)
    model = case.model()
    model.generate(case.asked)
    assert model.tokens.prompt == 40 + sum(len(one.prompt) - 40 for one in case.asked)


def test_rows_of_ended_completions_are_taken_by_waiting_ones(tmp_path: Path):
    case = Case(tmp_path / "m", "llama", 0)
    steps: list[int] = []
    model = case.model(3 * 60)
    case.module.register_forward_pre_hook(
        lambda _, __, inputs: steps.append(len(inputs["input_ids"])) if inputs["input_ids"].shape[1] == 1 else None,
        with_kwargs=True,
    )
    model.generate(case.asked)
    assert 14 <= len(steps) < 3 * 14
    assert any(before < after for before, after in pairwise(steps))


def test_what_cannot_take_rows_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "evomerge")
    case = Case(tmp_path / "m", "mamba", 0)
    model = case.model()
    model.generate(case.asked)
    model.generate(case.asked)
    assert caplog.text.count("only prompts of equal length are run together") == 1


def test_where_memory_runs_out_between_steps_the_others_are_written_in_smaller_batches(tmp_path: Path):
    case = Case(tmp_path / "m", "llama", 40)
    model = case.model()
    rows: list[int] = []

    def scarce(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows.append(len(inputs[0]))
        # When some completions have ended.
        if len(rows) == 8:
            raise torch.OutOfMemoryError

    hook = case.module.get_input_embeddings().register_forward_pre_hook(scarce)
    assert model.generate(case.asked) == case.expected
    assert model.generate(case.asked) == case.expected
    hook.remove()
    assert max(rows[:8]) == len(case.asked)
    assert max(rows[8:]) <= len(case.asked) // 2


def test_the_same_call_gives_the_same_bits(tmp_path: Path):
    case = Case(tmp_path / "m", "qwen2", 40)
    seen: list[torch.Tensor] = []
    case.module.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.clone()))
    for _ in range(2):
        case.model(40 + 3 * 60).generate(case.asked)
    first, again = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
