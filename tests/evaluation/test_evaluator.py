"""Any items of tasks, scored on a model that is nothing but its answers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from evomerge.errors import CheckpointError
from evomerge.evaluation import Evaluator, ItemId
from evomerge.runtime import GenerationRequest, LikelihoodRequest, TokenCounts
from evomerge.tasks import Task
from tests.tiny import VOCABULARY, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TYPES = {
    "written": "type: generate\nmetric: exact_match\nmax_new_tokens: 4\nstop: ['.']\ntarget: \"{{ a }}\"\n",
    "chosen": 'type: multiple_choice\nmetric: accuracy\nchoices: [" 1", " 22", " 333"]\nanswer: "{{ right }}"\n',
    "likely": 'type: perplexity\nmetric: nll_per_token\ntarget: " {{ a }}"\n',
    "dense": 'type: perplexity\nmetric: bits_per_byte\ntarget: " {{ a }}"\n',
}


class Answers:
    """Writes the prompt's first three characters; a target token's log-likelihood is minus the prompt's length."""

    def __init__(self) -> None:
        self.tokens = TokenCounts(100, 100)
        self.asked: list[LikelihoodRequest | GenerationRequest] = []

    def loglikelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        self.asked += requests
        self.tokens += TokenCounts(sum(len(one.prompt) for one in requests), 0)
        return [-float(len(one.prompt) * len(one.target)) for one in requests]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[str]:
        self.asked += requests
        self.tokens += TokenCounts(sum(len(one.prompt) for one in requests), 3 * len(requests))
        return [TOKENIZER.decode(one.prompt[:3]) for one in requests]


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    # The prompts "q00", "q0011", ...: of other lengths in every task, and right for every second item.
    rows = [{"q": f"q0{i}" + "x" * i, "a": f"q0{i}" if i % 2 else "no", "right": i % 3} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in TYPES.items():
        head = 'data: rows.jsonl\nprompt: "{{ q }}"\nsplits: {search: [0, 4], holdout: [4, 6]}\n'
        (tmp_path / f"{name}.yaml").write_text(head + text)
    tasks = [Task.load(tmp_path / f"{name}.yaml") for name in TYPES]
    return Evaluator(tasks, TOKENIZER, 100, VOCABULARY)


def test_every_item_has_one_number_by_the_metric_of_its_task(evaluator: Evaluator):
    found = evaluator.scores(Answers(), evaluator.items("search")).by_task()
    lengths = [3 + i for i in range(4)]
    assert found["written"] == (0.0, 1.0, 0.0, 1.0)
    # The shortest choice is the likeliest.
    assert found["chosen"] == (1.0, 0.0, 0.0, 1.0)
    assert found["likely"] == tuple(-float(length) for length in lengths)
    # A token is a byte.
    assert found["dense"] == pytest.approx([-length / math.log(2) for length in lengths])


def test_any_items_score_as_they_do_among_all(evaluator: Evaluator):
    items = evaluator.items("search")
    assert items[:5] == (*(ItemId("search", "written", i) for i in range(4)), ItemId("search", "chosen", 0))
    whole = evaluator.scores(Answers(), items)
    model, begun = Answers(), []
    some = [items[14], items[2], items[0], items[14], items[2]]
    part = evaluator.scores(model, some, begun.append)
    assert part.values == {item: whole.values[item] for item in some}
    assert part.completions == {item: whole.completions[item] for item in (items[2], items[0])}
    assert list(part.values) == [items[0], items[2], items[14]]
    assert len(model.asked) == 3
    assert begun == ["written", "dense"]
    assert part.means == {"written": 0.0, "dense": whole.values[items[14]]}
    both = evaluator.scores(Answers(), [*evaluator.items("holdout"), *items])
    assert {item: value for item, value in both.values.items() if item.split == "search"} == whole.values


def test_the_cost_is_what_the_model_ran_for_these_items_alone(evaluator: Evaluator):
    cost = evaluator.scores(Answers(), [ItemId("holdout", "written", 0), ItemId("holdout", "likely", 1)]).cost
    # The prompts of seven and eight characters.
    assert (cost.prompt_tokens, cost.new_tokens) == (7 + 8, 3)
    assert cost.seconds > 0


def test_a_token_that_the_model_does_not_have_is_refused_before_any_is_scored(evaluator: Evaluator):
    small = Evaluator(evaluator.tasks, TOKENIZER, None, 80)
    with pytest.raises(CheckpointError, match=r"gives token \d+ for an item, but .* has 80 tokens"):
        small.items("search")
