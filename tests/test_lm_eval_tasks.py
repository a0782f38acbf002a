"""lm-eval's own tasks through our runtime, against lm-eval's own model and scores on the same items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing

from evomerge.errors import TaskError
from evomerge.evaluation import Evaluator
from evomerge.merge import Planner, WeightStore, open_models
from evomerge.recipe import Recipe
from evomerge.runtime import ResidentRuntime
from evomerge.tasks import LmEvalTask
from tests.tiny import tiny_checkpoint, tiny_tokenizer

COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl, test: {folder}/test.jsonl}}
training_split: train
validation_split: validation
test_split: test
fewshot_split: train
doc_to_text: "Q: {{{{q}}}}\\nA:"
"""
TASKS = {
    "tiny_choice": """\
output_type: multiple_choice
doc_to_choice: "{{c}}"
doc_to_target: "{{a}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: brier_score}]
num_fewshot: 2
""",
    "tiny_written": """\
output_type: generate_until
doc_to_target: "{{t}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: last, filter: [{function: regex, regex_pattern: "(.)$"}, {function: take_first}]}
""",
    "tiny_text": """\
output_type: loglikelihood_rolling
doc_to_target: "{{t}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "tiny_likely": """\
output_type: loglikelihood
doc_to_target: " {{t}}"
metric_list: [{metric: perplexity, higher_is_better: false}, {metric: acc}]
""",
}


class Case:
    def __init__(self, folder: Path, *, adds_bos: bool = False) -> None:
        self.model = tiny_checkpoint(folder / "model", scale=0.3)
        if adds_bos:
            tokenizer = tiny_tokenizer()
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<s> $0", special_tokens=[("<s>", 1)]
            )
            tokenizer.save_pretrained(self.model)
        for split, count in (("train", 6), ("validation", 4), ("test", 7)):
            rows = [
                {"q": f"what is {split} {i}?", "c": ["a", "bcd ef", "x"], "a": i % 3, "t": f"it is {i} of {split}"}
                for i in range(count)
            ]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for name, text in TASKS.items():
            common = COMMON.format(folder=folder)
            if name == "tiny_text":
                common = common.replace('doc_to_text: "Q: {{q}}\\nA:"', 'doc_to_text: ""')
            (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
        untrained = COMMON.format(folder=folder).replace("training_split: train\nvalidation_split: validation\n", "")
        text = TASKS["tiny_choice"].replace("num_fewshot: 2", "num_fewshot: 0")
        (folder / "tiny_tested.yaml").write_text(f"task: tiny_tested\n{untrained}{text}")
        self.manager = TaskManager(include_path=str(folder), include_defaults=False)
        recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": str(self.model)}]})
        self.plan = Planner(open_models(recipe)).plan(recipe)
        store = WeightStore(self.plan.layout.checkpoints, "disk", torch.device("cpu"))
        self.runtime = ResidentRuntime(self.plan, store, "cpu", torch.float32)

    def task(self, text: str) -> LmEvalTask:
        return LmEvalTask(f"lm_eval:{text}", self.manager)

    def scores(self, text: str) -> tuple[list[float], list[str]]:
        task, runtime = self.task(text), self.runtime
        evaluator = Evaluator([task], runtime.tokenizer, runtime.max_length, runtime.vocabulary_size)
        found = evaluator.scores(runtime.load(self.plan), evaluator.items("holdout"))
        return list(found.values.values()), list(found.completions.values())

    def lm_eval(self, name: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(self.model), "dtype": "float32", "device": "cpu"},
            tasks=[name],
            task_manager=self.manager,
            bootstrap_iters=0,
            log_samples=True,
        )
        return found["results"][name], found["samples"][name]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("lm_eval"))


def test_choices_score_as_in_lm_eval(case: Case):
    _, samples = case.lm_eval("tiny_choice")
    for metric in ("acc", "acc_norm"):
        values, _ = case.scores(f"tiny_choice,metric={metric}")
        assert values == [sample[metric] for sample in samples]
    assert case.task("tiny_choice").metric == "acc"


def test_completions_are_filtered_and_scored_as_in_lm_eval(case: Case):
    _, samples = case.lm_eval("tiny_written")
    for name in ("strict", "last"):
        own = [sample for sample in samples if sample["filter"] == name]
        values, completions = case.scores(f"tiny_written,filter={name}")
        assert values == [sample["exact_match"] for sample in own]
        assert completions == [sample["resps"][0][0] for sample in own]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_texts_score_as_in_lm_eval(tmp_path: Path, adds_bos: bool):
    case = Case(tmp_path, adds_bos=adds_bos)
    _, samples = case.lm_eval("tiny_text")
    values, _ = case.scores("tiny_text,metric=bits_per_byte")
    expected = [likelihood / length for likelihood, length in (sample["bits_per_byte"] for sample in samples)]
    assert [value * 0.6931471805599453 for value in values] == pytest.approx(expected, abs=1e-5)
    _, samples = case.lm_eval("tiny_likely")
    values, _ = case.scores("tiny_likely")
    assert values == pytest.approx([sample["perplexity"] for sample in samples], abs=1e-4)


def test_it_is_searched_on_training_documents_and_judged_on_test_documents(case: Case):
    task = case.task("tiny_choice,search=5,num_fewshot=1")
    task.check()
    assert not task.searches_test_set
    assert [f"train {i}?" in item.prompt for i, item in enumerate(task.items("search"))] == [True] * 5
    assert ["what is test" in item.prompt for item in task.items("holdout")] == [True] * 7
    assert task.items("holdout")[0].prompt.count("Q:") == 2
    assert task.fingerprint("search") != case.task("tiny_choice,search=4,num_fewshot=1").fingerprint("search")
    assert task.fingerprint("search") == case.task("tiny_choice,search=5,num_fewshot=1").fingerprint("search")


def test_where_there_are_test_documents_alone_the_task_says_so_and_halves_them(case: Case):
    task = case.task("tiny_tested")
    assert task.searches_test_set
    assert [len(task.items(split)) for split in ("search", "holdout")] == [4, 3]
    assert not {item.key for item in task.items("search")} & {item.key for item in task.items("holdout")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny_choise", 'tiny_choise is no task; did you mean "tiny_choice"'),
        ("tiny_choice,shots=5", 'there is no option "shots"'),
        ("tiny_choice,num_fewshot=many", "num_fewshot is 'many'; expected a whole number, 0 or more"),
        ("tiny_choice,search=0", "search is '0'; expected a whole number, 1 or more"),
        (
            "tiny_choice,metric=brier_score",
            'metric "brier_score" has no number for a single item; metrics that have one: acc, acc_norm',
        ),
        ("tiny_likely,metric=acc", "metrics that have one: perplexity"),
        ("tiny_written,filter=first", 'there is no filter "first"'),
    ],
)
def test_what_is_wrong_with_a_reference_is_said(case: Case, text: str, expected: str):
    with pytest.raises(TaskError) as caught:
        case.task(text)
    assert f"lm_eval:{text}" in str(caught.value)
    assert expected in str(caught.value)
