"""What every runtime does, against the slow way: one sequence at a time, all logits, transformers' own generate."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from evomerge.errors import ArchitectureError, EvaluationError
from evomerge.merge import Plan, Planner, WeightStore, open_models
from evomerge.recipe import Recipe
from evomerge.runtime import GenerationRequest, LikelihoodRequest, ResidentRuntime, Runtime, StackRuntime, TokenCounts
from tests.tiny import VOCABULARY, tiny_checkpoint, tiny_tokenizer

RUNTIMES: dict[str, Callable[[Plan], Runtime]] = {
    "resident": lambda first: ResidentRuntime(
        first, WeightStore(first.layout.checkpoints, "disk", torch.device("cpu")), "cpu", torch.float32
    ),
    "stack": lambda first: StackRuntime(first, "cpu", torch.float32),
}

PROMPTS = ["a", "what is it?", "a much longer prompt than all of the others here", "xyz", "what is it? no", "été"]
TARGETS = ["x", " yes", "a long answer", "y"]
TOKENIZER = tiny_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


LIKELIHOODS = [LikelihoodRequest(ids(prompt), ids(target)) for prompt in PROMPTS for target in TARGETS]


def writing(new: int = 12, *stop: str) -> list[GenerationRequest]:
    return [GenerationRequest(ids(prompt), new, stop) for prompt in PROMPTS]


class Case:
    """Two models of a kind, and runtimes of each sort that begin with the first."""

    def __init__(self, folder: Path, kind: str, **config: Any) -> None:
        self.folder = folder
        self.kind = kind
        for seed, name in enumerate("ab"):
            tiny_checkpoint(folder / name, seed=seed, kind=kind, scale=0.3, **config)
        both = {"merge_method": "linear", "models": [{"model": self.path(name)} for name in "ab"]}
        self.planner = Planner(open_models(Recipe.model_validate(both)))
        self.module = AutoModelForCausalLM.from_pretrained(folder / "a")

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def plan(self, name: str) -> Plan:
        data = {"merge_method": "passthrough", "models": [{"model": self.path(name)}]}
        return self.planner.plan(Recipe.model_validate(data))

    def stack(self) -> Plan:
        slices = [{"sources": [{"model": self.path(name), "layer_range": [0, 4]}]} for name in "ab"]
        return self.planner.plan(Recipe.model_validate({"merge_method": "passthrough", "slices": slices}))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text", "mamba"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    config = {"sliding_window": 8} if request.param == "gemma3_text" else {}
    return Case(tmp_path_factory.mktemp("case"), request.param, **config)


@pytest.fixture(params=RUNTIMES)
def make(request: pytest.FixtureRequest) -> Callable[[Plan], Runtime]:
    return RUNTIMES[request.param]


@contextmanager
def batches_seen(refuse: Callable[[int], BaseException | None] = lambda rows: None) -> Iterator[list[int]]:
    """Yields the rows of every batch that any torch model embeds; `refuse` gives what is raised for so many."""
    seen: list[int] = []

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding) and module.num_embeddings == VOCABULARY:
            seen.append(len(inputs[0]))
            error = refuse(seen[-1])
            if error is not None:
                raise error

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def test_likelihoods_are_those_of_transformers_summed_in_float64(case: Case, make):
    found = make(case.plan("a")).load(case.plan("a")).loglikelihoods(LIKELIHOODS)
    for request, likelihood in zip(LIKELIHOODS, found, strict=True):
        with torch.no_grad():
            logs = torch.log_softmax(
                case.module(torch.tensor([request.prompt + request.target])).logits[0].double(), -1
            )
        expected = sum(float(logs[len(request.prompt) - 1 + i, token]) for i, token in enumerate(request.target))
        assert likelihood == pytest.approx(expected, abs=1e-4)


def greedy(case: Case, request: GenerationRequest) -> list[int]:
    """The new tokens of transformers' own generation, with the one that ends it."""
    prompt = torch.tensor([request.prompt])
    settings = GenerationConfig(do_sample=False, max_new_tokens=request.max_new_tokens, eos_token_id=2, pad_token_id=0)
    with torch.no_grad():
        whole = case.module.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    return whole[0, len(request.prompt) :].tolist()


def test_completions_are_those_of_transformers(case: Case, make):
    found = make(case.plan("a")).load(case.plan("a")).generate(writing())
    assert found == [TOKENIZER.decode(greedy(case, one), skip_special_tokens=True) for one in writing()]


def test_completions_after_a_shared_beginning_are_those_of_transformers(case: Case, make):
    model = make(case.plan("a")).load(case.plan("a"))
    asked = [GenerationRequest(ids(f"a beginning of all of these prompts: {text}"), 9, ()) for text in PROMPTS]
    assert model.generate(asked) == [TOKENIZER.decode(greedy(case, one), skip_special_tokens=True) for one in asked]


def test_an_answer_depends_on_no_other_request(case: Case, make):
    model = make(case.plan("a")).load(case.plan("a"))
    together = model.loglikelihoods(LIKELIHOODS)
    assert model.loglikelihoods(LIKELIHOODS[::-1]) == pytest.approx(together[::-1], rel=1e-5)
    assert [model.loglikelihoods([one])[0] for one in LIKELIHOODS] == pytest.approx(together, rel=1e-5)
    mixed = [*writing(12), *writing(3), *writing(7, "e")]
    written = model.generate(mixed)
    assert model.generate(mixed[::-1]) == written[::-1]
    assert [model.generate([one])[0] for one in mixed] == written
    assert model.loglikelihoods([]) == model.generate([]) == []


def test_completions_end_before_stop_texts_of_several_tokens(case: Case, make):
    model = make(case.plan("a")).load(case.plan("a"))
    full = model.generate(writing())
    stop = full[1][4:6]
    assert len(ids(stop)) > 1
    assert model.generate(writing(12, stop, "never written")) == [text.split(stop)[0] for text in full]


def test_completions_end_at_every_token_that_the_checkpoint_says(make, tmp_path: Path):
    tiny_checkpoint(tmp_path / "m", scale=0.3)
    settings = tmp_path / "m" / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": list(range(VOCABULARY))}))
    made = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "m")}]})
    plan = Planner(open_models(made)).plan(made)
    model = make(plan).load(plan)
    assert model.generate(writing()) == [""] * len(PROMPTS)
    assert model.tokens.new == len(PROMPTS)


def test_tokens_are_counted_as_they_are_run(case: Case, make):
    model = make(case.plan("a")).load(case.plan("a"))
    assert model.tokens == TokenCounts(0, 0)
    model.loglikelihoods([*LIKELIHOODS, *LIKELIHOODS])
    # The targets "x" and "y" are read from one run, and equal requests are one. The last token is not read.
    runs = [ids(prompt) + ids(target)[:-1] for prompt in PROMPTS for target in TARGETS[:3]]
    shared = {run[: end + 1] for run in runs for end in range(len(run))}
    assert model.tokens == TokenCounts(sum(map(len, runs)) if case.kind == "mamba" else len(shared), 0)
    tokens = [greedy(case, one) for one in writing()]
    text = TOKENIZER.decode(tokens[1])
    stop = text[4:6]
    for requests, expected in (
        (writing(1), len(PROMPTS)),
        (writing(12), sum(map(len, tokens))),
        (
            writing(12, stop),
            sum(next((n for n in range(12) if stop in TOKENIZER.decode(t[:n])), len(t)) for t in tokens),
        ),
    ):
        before = model.tokens
        model.generate([*requests, *requests])
        assert model.tokens - before == TokenCounts(sum(len(one.prompt) for one in requests), expected)
        assert before + (model.tokens - before) == model.tokens


def test_another_plan_answers_otherwise_and_the_first_again_with_the_same_bits(case: Case, make):
    runtime = make(case.plan("a"))
    answers = []
    for plan in (case.plan("a"), case.plan("b"), case.stack(), case.plan("a")):
        model = runtime.load(plan)
        answers.append((model.loglikelihoods(LIKELIHOODS), model.generate(writing())))
    first, other, deeper, again = answers
    assert first == again
    assert first[0] != other[0] != deeper[0] != first[0]
    assert first[1] != other[1]


def test_a_plan_that_cannot_be_run_does_not_end_the_runtime(case: Case, make):
    plan = case.plan("a")
    runtime = make(plan)
    before = runtime.load(plan).loglikelihoods(LIKELIHOODS)
    with pytest.raises(ArchitectureError, match="are missing or incomplete"):
        runtime.load(replace(plan, layout=replace(plan.layout, jobs=plan.layout.jobs[1:])))
    assert runtime.load(plan).loglikelihoods(LIKELIHOODS) == before


def test_logits_that_are_not_finite_are_an_error_and_no_answer(make, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path / "m", tie_word_embeddings=False, layers=1)
    broken = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        broken.lm_head.weight.fill_(3e38)
    broken.save_pretrained(folder)
    made = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": str(folder)}]})
    plan = Planner(open_models(made)).plan(made)
    model = make(plan).load(plan)
    with pytest.raises(EvaluationError, match="not finite"):
        model.generate(writing())
    with pytest.raises(EvaluationError, match="not finite"):
        model.loglikelihoods(LIKELIHOODS)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("[enforce fail] can't allocate memory")])
def test_where_memory_is_short_batches_are_halved_for_good_and_the_answers_stay(case: Case, make, error):
    model = make(case.plan("a")).load(case.plan("a"))
    likelihoods, written = model.loglikelihoods(LIKELIHOODS), model.generate(writing())
    counted = model.tokens
    for ask in (
        lambda: model.loglikelihoods(LIKELIHOODS) == pytest.approx(likelihoods, rel=1e-5),
        lambda: model.generate(writing()) == written,
    ):
        with batches_seen(lambda rows: error if rows > 2 else None) as seen:
            assert ask()
            assert ask()
        assert max(seen[len(seen) // 2 :]) <= 2
    # What is run again because memory ran out counts again.
    assert model.tokens.new == 3 * counted.new
    assert 3 * counted.prompt <= model.tokens.prompt < 4 * counted.prompt


def test_one_request_that_does_not_fit_is_an_error_and_other_errors_are_not_swallowed(case: Case, make):
    model = make(case.plan("a")).load(case.plan("a"))
    with (
        batches_seen(lambda _: torch.OutOfMemoryError()),
        pytest.raises(EvaluationError, match="of 61 tokens does not"),
    ):
        model.loglikelihoods(LIKELIHOODS)
    with (
        batches_seen(lambda _: RuntimeError("mat1 and mat2 cannot be multiplied")),
        pytest.raises(RuntimeError, match="mat1"),
    ):
        model.loglikelihoods(LIKELIHOODS)


def test_the_tokenizer_and_the_limits_are_the_models(case: Case, make):
    runtime = make(case.plan("a"))
    assert runtime.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(case.path("a")).get_vocab()
    limit = getattr(case.module.config, "max_position_embeddings", None)
    assert (runtime.max_length, runtime.vocabulary_size) == (limit, VOCABULARY)
