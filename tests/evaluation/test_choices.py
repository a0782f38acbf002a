"""Multiple choice from the task file to the score, against the slow way and lm-eval's rule for lengths."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.evaluation import Evaluator
from evomerge.merge import WeightStore, compute_device, open_models, plan
from evomerge.recipe import Recipe
from evomerge.runtime import ResidentRuntime
from evomerge.tasks import Task
from tests.tiny import tiny_checkpoint

CHOICES = ["yes", "no", "certainly not", "太陽"]


def scores(model: Path, folder: Path, text: str) -> tuple[float, ...]:
    rows = [{"q": f"is it {i}?", "options": CHOICES, "right": i % 4} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "t.yaml").write_text(
        f"type: multiple_choice\ndata: rows.jsonl\nsplits: {{search: [0, 8], holdout: [8, 12]}}\n{text}"
    )
    recipe = Recipe.model_validate({"merge_method": "passthrough", "models": [{"model": str(model)}]})
    made = plan(recipe, open_models(recipe))
    store = WeightStore(made.layout.checkpoints, "disk", compute_device("cpu"), reused=False)
    runtime = ResidentRuntime(made, store, "cpu", made.layout.dtype)
    limits = runtime.max_length, runtime.vocabulary_size
    evaluator = Evaluator([Task.load(folder / "t.yaml")], runtime.tokenizer, *limits)
    return evaluator.scores(runtime.load(made), evaluator.items("search")).by_task()["t"]


ASKED = 'prompt: "{{ q }} "\nchoices: "{{ options }}"\n'


@pytest.mark.parametrize("answer", [0, 3])
def test_a_dead_model_scores_what_guessing_does_wherever_the_answers_stand(tmp_path: Path, answer: int):
    dead = tiny_checkpoint(tmp_path / "m", layers=1, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(dead)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(dead)
    text = f'prompt: "{{{{ q }}}}"\nchoices: [" a", " b", " c", " d"]\nanswer: {answer}\n'
    assert scores(dead, tmp_path, text) == (0.25,) * 8


@pytest.mark.parametrize("metric", ["accuracy", "accuracy_norm"])
@pytest.mark.parametrize("asked", [ASKED, ASKED.replace("}} ", "}}").replace("options", "options | prefixed(' ')")])
def test_the_scores_are_those_of_lm_evals_rule(tmp_path: Path, metric: str, asked: str):
    folder = tiny_checkpoint(tmp_path / "m", layers=2, scale=0.3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for i in range(8):
        prompt = tokenizer(f"is it {i}?")["input_ids"]
        values = []
        for choice in CHOICES:
            target = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logs = torch.log_softmax(model(torch.tensor([prompt + target])).logits[0].double(), -1)
            total = sum(float(logs[len(prompt) - 1 + at, token]) for at, token in enumerate(target))
            values.append(total / (len(choice) if metric == "accuracy_norm" else 1))
        expected.append(float(values.index(max(values)) == i % 4))
    assert scores(folder, tmp_path, f'{asked}answer: "{{{{ right }}}}"\nmetric: {metric}\n') == tuple(expected)
