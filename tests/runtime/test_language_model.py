"""What a torch module is asked, no more than needed: positions of the head, tokens after a stop text."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.runtime import GenerationRequest, LikelihoodRequest, TorchLanguageModel, budget
from tests.tiny import VOCABULARY, tiny_checkpoint, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "mamba"])
def test_only_the_targets_positions_go_through_the_head_and_their_bound_holds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / "m", kind=kind, layers=1))
    prompts = ["a", "what is it?", "a much longer prompt than all of the others here", "xyz", "what is it? no"]
    asked = [LikelihoodRequest(ids(prompt), ids(target)) for prompt in prompts for target in ("x", "y", " yes")]
    expected = TorchLanguageModel(module, TOKENIZER, ()).loglikelihoods(asked)
    monkeypatch.setattr(budget, "LOGIT_BYTES", 4 * VOCABULARY * 5)
    positions: list[int] = []
    model = TorchLanguageModel(module, TOKENIZER, ())
    model.loglikelihoods(asked)  # Which also tries what the module can do.
    hook = module.lm_head.register_forward_hook(lambda _, __, logits: positions.append(logits[..., 0].numel()))
    found = model.loglikelihoods(asked)
    hook.remove()
    assert found == pytest.approx(expected, abs=1e-4)
    # The two targets of one token are read from the same position; so is, in one pack, the first of the third.
    least, most = len(prompts) * len(" yes"), len(prompts) * (1 + len(" yes"))
    assert sum(positions) == most if kind == "mamba" else least <= sum(positions) < most
    assert max(positions) <= 5


def test_batches_are_of_similar_length_and_within_their_limits(tmp_path: Path):
    module = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / "m", layers=1))
    shapes: list[torch.Size] = []
    module.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    generator = torch.Generator().manual_seed(0)
    asked = [
        LikelihoodRequest(tuple(torch.randint(3, VOCABULARY, (1 + i % 400,), generator=generator).tolist()), (6, 7))
        for i in range(450)
    ]
    model = TorchLanguageModel(module, TOKENIZER, ())
    model.loglikelihoods(asked[:2])
    shapes.clear()
    before = model.tokens
    model.loglikelihoods(asked)
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True)
    assert sum(rows for rows, _ in shapes) == 450
    assert all(rows * (width + 1) <= 16_384 for rows, width in shapes)
    assert sum(rows * width for rows, width in shapes) < 1.3 * (model.tokens - before).prompt


class Writer(torch.nn.Module):
    """Writes the same tokens whatever it is asked, one a step."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = tiny_config("llama")
        self.left = list(tokens)

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        logits[:, -1, self.left.pop(0)] = 1
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("text", ["以上が答えです", "end", "🙂🙂", "\n\nQ:"])
def test_a_stop_text_of_more_tokens_than_characters_ends_a_completion_at_once(text: str):
    module = Writer([int(one) for one in ids("そう。" + text + "x" * 50)])
    model = TorchLanguageModel(module, TOKENIZER, ())
    assert model.generate([GenerationRequest((5,), 60, (text, "never"))]) == ["そう。"]
    assert len(module.left) == 50
    assert model.tokens.new == len(ids("そう。" + text))
