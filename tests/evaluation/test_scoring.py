"""Scoring in batches against the slow way: one sequence at a time, all logits, transformers' own generate."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from evomerge.errors import EvaluationError
from evomerge.evaluation import scoring
from evomerge.evaluation.encoding import Row, batches
from evomerge.evaluation.scoring import Runner
from tests.tiny import VOCABULARY, tiny_checkpoint, tiny_config, tiny_tokenizer

PROMPTS = ["a", "what is it?", "a much longer prompt than all of the others here", "xyz", "what is it? no", "été"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text", "mamba"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    config = {"sliding_window": 8} if request.param == "gemma3_text" else {}
    folder = tiny_checkpoint(tmp_path_factory.mktemp("m") / "m", kind=request.param, scale=0.3, **config)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def runner(loaded, most_rows: int = 4, stop_ids: tuple[int, ...] = (2,)) -> Runner:
    return Runner(*loaded, stop_ids, most_rows=most_rows, most_tokens=10_000)


def rows(tokenizer, targets: list[str]) -> list[Row]:
    return [
        Row(i, j, tuple(tokenizer(prompt)["input_ids"]), tuple(tokenizer(target)["input_ids"]))
        for i, prompt in enumerate(PROMPTS)
        for j, target in enumerate(targets)
    ]


@pytest.mark.parametrize("most_rows", [1, 4, 64])
def test_completions_are_those_of_transformers(loaded, most_rows: int):
    model, tokenizer = loaded
    found = runner(loaded, most_rows).completions(rows(tokenizer, [""]), 12, ())
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        greedy = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0)
        with torch.no_grad():
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


def test_completions_end_at_stop_texts_and_stop_tokens(loaded):
    tokenizer = loaded[1]
    full = runner(loaded, stop_ids=()).completions(rows(tokenizer, [""]), 12, ())
    stop = full[1][4:6]
    found = runner(loaded, stop_ids=()).completions(rows(tokenizer, [""]), 12, (stop,))
    assert found == [text.split(stop)[0] for text in full]
    every = tuple(range(len(tokenizer)))
    assert runner(loaded, stop_ids=every).completions(rows(tokenizer, [""]), 12, ()) == [""] * len(PROMPTS)


@pytest.mark.parametrize("most_rows", [1, 4, 64])
def test_likelihoods_are_those_of_one_sequence_at_a_time(loaded, most_rows: int):
    model, tokenizer = loaded
    asked = rows(tokenizer, ["x", " yes", "a long answer", "y"])
    found = runner(loaded, most_rows).log_likelihoods(asked)
    for row, likelihood in zip(asked, found, strict=True):
        ids = torch.tensor([row.prompt + row.target])
        with torch.no_grad():
            logs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        expected = sum(float(logs[len(row.prompt) - 1 + i, token]) for i, token in enumerate(row.target))
        assert likelihood == pytest.approx(expected, abs=1e-4)


def test_logits_that_are_not_finite_are_an_error_and_no_score(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path / "m")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    broken = Runner(model, tokenizer, (2,), most_rows=4, most_tokens=1000)
    with pytest.raises(EvaluationError, match="not finite"):
        broken.completions(rows(tokenizer, [""]), 4, ())
    with pytest.raises(EvaluationError, match="not finite"):
        broken.log_likelihoods(rows(tokenizer, ["ab"]))


def test_a_batch_that_does_not_fit_is_halved(loaded, monkeypatch: pytest.MonkeyPatch):
    tokenizer = loaded[1]
    expected = runner(loaded, 1).completions(rows(tokenizer, [""]), 5, ())
    small = runner(loaded, 64)
    whole = small._forward

    def short_of_memory(**inputs):
        if inputs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError
        return whole(**inputs)

    monkeypatch.setattr(small, "_forward", short_of_memory)
    assert small.completions(rows(tokenizer, [""]), 5, ()) == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError("[enforce fail] can't allocate memory")])
def test_the_smaller_batch_is_kept_after_memory_was_short(loaded, error, monkeypatch: pytest.MonkeyPatch):
    tokenizer = loaded[1]
    made = runner(loaded, 64)
    whole, tried = made._forward, []

    def short_of_memory(**inputs):
        tried.append(inputs["input_ids"].shape[0])
        if tried[-1] > 2:
            raise error
        return whole(**inputs)

    monkeypatch.setattr(made, "_forward", short_of_memory)
    asked = rows(tokenizer, ["a long answer"])
    expected = runner(loaded, 1).log_likelihoods(asked)
    assert made.log_likelihoods(asked) == pytest.approx(expected, abs=1e-4)
    assert max(tried) > 2
    tried.clear()
    made.log_likelihoods(asked)
    assert max(tried) <= 2


def test_one_row_that_does_not_fit_is_an_error_and_other_errors_are_not_swallowed(loaded, monkeypatch):
    asked = rows(loaded[1], ["a"])
    made = runner(loaded, 64)

    def fails(error):
        def forward(**_):
            raise error

        monkeypatch.setattr(made, "_forward", forward)

    fails(torch.OutOfMemoryError())
    with pytest.raises(EvaluationError, match="a single sequence of 49 tokens does not fit"):
        made.log_likelihoods(asked)
    fails(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        made.log_likelihoods(asked)


def test_only_the_targets_positions_go_through_the_head_and_their_bound_holds(loaded, monkeypatch):
    model, tokenizer = loaded
    asked = rows(tokenizer, ["x", "y", " yes"])
    expected = runner(loaded, 64).log_likelihoods(asked)
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * model.config.vocab_size * 5)
    positions: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: positions.append(logits[..., 0].numel()))
    try:
        found = runner(loaded, 64).log_likelihoods(asked)
    finally:
        hook.remove()
    assert found == pytest.approx(expected, abs=1e-4)
    # The two targets of one token are read from the same position.
    assert sum(positions) == len(PROMPTS) * (1 + len(" yes"))
    assert max(positions) <= 5


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
    tokenizer = tiny_tokenizer()
    written = [int(one) for one in tokenizer("そう。" + text + "x" * 50)["input_ids"]]
    model = Writer(written)
    made = Runner(model, tokenizer, (), most_rows=4, most_tokens=1000)
    assert made.completions([Row(0, 0, (5,), ())], 60, (text, "never")) == ["そう。"]
    assert len(model.left) == 50


def test_batches_hold_every_row_once_within_their_limits():
    made = [Row(i, 0, (1,) * (1 + i * 7 % 50), (1,) * (i % 13)) for i in range(100)]
    found = batches(made, new_tokens=10, most_rows=9, most_tokens=300, most_targets=50)
    assert sorted(row.item for batch in found for row in batch) == list(range(100))
    for batch in found:
        assert len(batch) <= 9
        assert sum(len(row.target) for row in batch) <= 50
        assert len(batch) * (max(map(len, batch)) + 10) <= 300
    assert batches(list(reversed(made)), new_tokens=10, most_rows=9, most_tokens=300, most_targets=50) == found
