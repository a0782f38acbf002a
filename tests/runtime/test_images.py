"""Prompts with images, against transformers' own generation and forward pass, one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from evomerge.errors import CheckpointError, EvaluationError, TaskError
from evomerge.evaluation import Evaluator
from evomerge.merge import Plan, Planner, WeightStore, open_models
from evomerge.recipe import Recipe
from evomerge.runtime import GenerationRequest, LanguageModel, ResidentRuntime, Runtime, StackRuntime
from evomerge.tasks import Task
from tests.tiny import IMAGE_KINDS, seeing_checkpoint, tiny_checkpoint

ROWS = [
    {"image": f"{i}.png", "q": "colour?" if i % 2 else "what is it, and where?", "c": ["a", "bcd", " ef"], "a": i % 3}
    for i in range(6)
]
COMMON = "data: rows.jsonl\nimages: image\nchat: true\nprompt: '{{ q }}'\nsplits: {search: [0, 4], holdout: [4, 6]}\n"
TASKS = {
    "written": f"type: generate\ntarget: x\nmax_new_tokens: 6\n{COMMON}",
    "chosen": f"type: multiple_choice\nchoices: c\nanswer: '{{{{ a }}}}'\n{COMMON}",
}


def passthrough(*models: Path) -> Plan:
    slices = [{"sources": [{"model": str(model), "layer_range": [0, 2]}]} for model in models]
    one = {"models": [{"model": str(models[0])}]}
    recipe = Recipe.model_validate({"merge_method": "passthrough", **({"slices": slices} if len(models) > 1 else one)})
    return Planner(open_models(recipe)).plan(recipe)


def resident(plan: Plan) -> Runtime:
    store = WeightStore(plan.layout.checkpoints, "disk", torch.device("cpu"))
    return ResidentRuntime(plan, store, "cpu", torch.float32)


def evaluator(folder: Path, runtime: Runtime, **texts: str) -> Evaluator:
    for name, text in (texts or TASKS).items():
        (folder / f"{name}.yaml").write_text(text)
    tasks = [Task.load(folder / f"{name}.yaml") for name in texts or TASKS]
    return Evaluator(tasks, runtime.tokenizer, runtime.max_length, runtime.vocabulary_size, runtime.processor)


class Case:
    """A tiny model, small pictures of two shapes, and transformers' own view of both."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.model = seeing_checkpoint(folder / "model", kind=kind)
        self.plan = passthrough(self.model)
        for i, row in enumerate(ROWS):
            image = Image.new("RGB", (8, 8) if i % 2 else (12, 16), (40 * i, 20, 255 - 40 * i))
            ImageDraw.Draw(image).line((0, i, 7, 7 - i), fill=(255, 255, 0))
            image.save(folder / row["image"])
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        self.module = AutoModelForImageTextToText.from_pretrained(self.model)
        self.runtime = resident(self.plan)
        self.processor = self.runtime.processor()

    def inputs(self, row: dict[str, Any], answer: str = "") -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        content = [{"type": "image"}, {"type": "text", "text": row["q"]}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        image = Image.open(self.folder / row["image"])
        return dict(self.processor(text=text + answer, images=image, add_special_tokens=False, return_tensors="pt"))


@pytest.fixture(scope="module", params=IMAGE_KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("images"), request.param)


def completions(case: Case, model: LanguageModel, items: list[int]) -> list[str]:
    found = evaluator(case.folder, case.runtime)
    every = [item for item in found.items("search") if item.task == "written"]
    scores = found.scores(model, [every[index] for index in items])
    return [scores.completions[every[index]] for index in items]


def test_completions_are_those_of_transformers_generate(case: Case):
    settings = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=2, pad_token_id=0)
    expected = []
    for row in ROWS[:4]:
        inputs = case.inputs(row)
        with torch.no_grad():
            whole = case.module.generate(**inputs, generation_config=settings)
        new = whole[0, inputs["input_ids"].shape[1] :]
        expected.append(case.runtime.tokenizer.decode(new, skip_special_tokens=True))
    model = case.runtime.load(case.plan)
    assert completions(case, model, [0, 1, 2, 3]) == expected
    # Nor do other items or their order change a completion.
    assert completions(case, model, [2]) == expected[2:3]
    assert completions(case, model, [3, 0]) == [expected[3], expected[0]]


def test_likelihoods_are_those_of_the_whole_sequence(case: Case):
    found = evaluator(case.folder, case.runtime)
    model = case.runtime.load(case.plan)
    answers = []
    for item, row in zip([item for item in found.items("search") if item.task == "chosen"], ROWS, strict=False):
        requests = found._split("search")[item].requests
        before = model.tokens
        values = model.loglikelihoods(requests)
        answers.append(values)
        # The prompt and its image run once for all choices.
        read = (model.tokens - before).prompt
        assert read == len(requests[0].prompt) + sum(len(one.target) - 1 for one in requests)
        for choice, request, value in zip(row["c"], requests, values, strict=True):
            inputs = case.inputs(row, choice)
            ids = inputs["input_ids"][0].tolist()
            assert ids == [*request.prompt, *request.target]
            with torch.no_grad():
                logs = case.module(**inputs).logits[0].double().log_softmax(-1)
            expected = sum(
                float(logs[i - 1, ids[i]]) for i in range(len(request.prompt), len(request.prompt + request.target))
            )
            assert value == pytest.approx(expected, abs=1e-4)
    # The same question about another picture.
    assert max(abs(one - other) for one, other in zip(answers[1], answers[3], strict=True)) > 1e-3


def test_plain_text_is_answered_as_if_no_image_had_been_seen(case: Case):
    ids = tuple(case.runtime.tokenizer("what is it? a long question")["input_ids"])
    request = GenerationRequest(ids, 6, ())
    model = case.runtime.load(case.plan)
    before = model.generate([request])
    completions(case, model, [0, 1])
    assert model.generate([request]) == before


def test_a_stack_by_reference_sees_the_same(case: Case):
    plan = passthrough(case.model, case.model)
    stack = StackRuntime(plan, "cpu", torch.float32)
    expected = completions(case, resident(plan).load(plan), [0, 1, 2, 3])
    assert completions(case, stack.load(plan), [0, 1, 2, 3]) == expected


def test_stop_texts_end_completions(case: Case):
    model = case.runtime.load(case.plan)
    whole = completions(case, model, [1])[0]
    task = TASKS["written"] + f"stop: {json.dumps(whole[2])}\n"
    found = evaluator(case.folder, case.runtime, stopped=task)
    scores = found.scores(model, found.items("search")[1:2])
    assert list(scores.completions.values()) == [whole.partition(whole[2])[0]]


def test_a_model_of_nan_is_no_score(case: Case):
    model = case.runtime.load(case.plan)
    found = evaluator(case.folder, case.runtime)
    weight = case.runtime._resident[next(iter(case.runtime._resident))][0].model.get_output_embeddings().weight
    kept = weight.detach().clone()
    weight.data.fill_(float("nan"))
    try:
        for task in ("written", "chosen"):
            with pytest.raises(EvaluationError, match="not finite"):
                found.scores(model, [item for item in found.items("search") if item.task == task])
    finally:
        weight.data.copy_(kept)


def test_a_language_model_is_told_that_it_takes_no_images(case: Case, tmp_path: Path):
    runtime = resident(passthrough(tiny_checkpoint(tmp_path / "text", chat_template=True)))
    with pytest.raises(CheckpointError, match=r"shows images, but the folder has no preprocessor_config\.json"):
        evaluator(case.folder, runtime).items("search")


def test_a_damaged_processor_is_named(tmp_path: Path):
    folder = seeing_checkpoint(tmp_path / "model")
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model: its image processor cannot be loaded"):
        resident(passthrough(folder)).processor()


def test_a_template_without_a_place_for_images_is_refused(case: Case):
    runtime = resident(case.plan)
    processor = case.processor
    kept = processor.chat_template
    processor.chat_template = "{% for message in messages %}{{ message['content'][-1]['text'] }}{% endfor %}"
    try:
        found = evaluator(case.folder, runtime)
        found._tokens = (*found._tokens[:3], lambda: processor)
        with pytest.raises(TaskError, match="has its chat template a place for each"):
            found.items("search")
    finally:
        processor.chat_template = kept
