"""What bench_eval.py and compare_lm_eval.py ask of evomerge and of lm-eval: the same items, of the same model."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.evaluation import Evaluator
from evomerge.runtime import GenerationRequest, LikelihoodRequest, TorchLanguageModel
from evomerge.runtime.tree import tree_size
from evomerge.tasks import Task

SHOTS = 5
QUESTION = {"prompt": "Question: {{ question }}\nAnswer:"}
NUMBERS = QUESTION | {"type": "multiple_choice", "choices": "{{ numbers }}", "answer": "{{ right }}"}
"""The choices are numbers, most of several tokens."""
LETTERS = NUMBERS | {
    "prompt": "{{ question }} A.{{ numbers[0] }} B.{{ numbers[1] }} C.{{ numbers[2] }} D.{{ numbers[3] }}\nAnswer:",
    "choices": [" A", " B", " C", " D"],
}
"""The choices are letters, of one token each."""
WRITTEN = QUESTION | {"type": "generate", "target": " {{ answer }}", "metric": "last_number", "stop": ["Question:"]}
CASES: dict[str, dict[str, Any]] = {
    "5-shot choices": NUMBERS | {"few_shot": {}},
    "0-shot choices": NUMBERS,
    "5-shot letters": LETTERS | {"few_shot": {}},
    "0-shot letters": LETTERS,
    "perplexity": {"type": "perplexity", "target": "{{ question }}\n{{ answer }}"},
    "generation": WRITTEN,
    "5-shot generation": WRITTEN | {"few_shot": {}},
}
"""The keys of each case's task file but its data and splits."""


def made_rows(count: int) -> list[dict[str, Any]]:
    """Returns word problems with worked answers, the same for the same `count`."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        who, other = draw.sample(["Ada", "Ben", "Chika", "Dora", "Emil", "Farid", "Grace", "Hugo"], 2)
        thing = draw.choice(["apples", "books", "pencils", "shells", "stamps", "tickets", "marbles", "lemons"])
        where = draw.choice(["a shed", "the library", "a market stall", "the attic", "an old suitcase"])
        boxes, each, given = draw.randint(3, 19), draw.randint(6, 40), draw.randint(2, 17)
        total = boxes * each
        question = (
            f"{who} found {boxes} boxes in {where}, each with {each} {thing} in it. After giving {given} {thing} to"
            f" {other}, who had asked for some, how many {thing} does {who} have left?"
        )
        answer = (
            f"The boxes hold {boxes} * {each} = {total} {thing} together.\nWithout those for {other},"
            f" {total} - {given} = {total - given} are left.\n#### {total - given}"
        )
        rows.append({"question": question, "answer": answer})
    return rows


def read_rows(path: Path | None, count: int) -> list[dict[str, Any]]:
    """Returns rows of questions, answers that end in "#### NUMBER", and four numbers to choose from.

    Args:
        path: a JSONL file of GSM8K's form; None for rows that are made up.
        count: how many rows.

    Raises:
        SystemExit: the file has too few rows.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    rows = [json.loads(line) for line in lines[:count]] if path else made_rows(count)
    if len(rows) < count:
        raise SystemExit(f"{path} has {len(rows)} rows; {count} are needed, {SHOTS + 1} of them beside the items")
    draw = random.Random(1)
    for row in rows:
        number = int(row["answer"].rpartition("####")[2].replace(",", ""))
        numbers = [number, number + draw.randint(1, 9), 2 * number + draw.randint(11, 19), number // 2 - 1]
        draw.shuffle(numbers)
        row |= {"numbers": [f" {one}" for one in numbers], "right": numbers.index(number)}
    return rows


def write_task(name: str, rows: Sequence[dict[str, Any]], folder: Path, new_tokens: int) -> Task:
    """Returns a case's task; its search items are all rows but the last, which show solved examples.

    Args:
        name: one of `CASES`.
        rows: see `read_rows`.
        folder: where the task file and its data are written.
        new_tokens: the most tokens of a completion.
    """
    items = len(rows) - SHOTS - 1
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = CASES[name] | {
        "data": "rows.jsonl",
        "splits": {"search": [0, items], "holdout": [items + SHOTS, items + SHOTS + 1]},
    }
    if "few_shot" in keys:
        keys["few_shot"] = {"rows": [items, items + SHOTS]}
    if keys["type"] == "generate":
        keys["max_new_tokens"] = new_tokens
    path = folder / f"{name.replace(' ', '-')}.yaml"
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return Task.load(path)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Returns a model and its tokenizer, for both sides."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    # All that is greedy; settings for sampling would only lead to warnings.
    module.generation_config.do_sample = False
    return module, AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True)
class Answered:
    """What one side says about a task's items, and what it took.

    Attributes:
        answers: for each request a log-likelihood, or a completion.
        scores: a number for each item.
        processor: user and system seconds.
        wall: seconds.
        tokens: those that went through the model, padding included.
    """

    answers: list[Any]
    scores: list[float]
    processor: float
    wall: float
    tokens: int


class Ours:
    """evomerge's side.

    Args:
        module: the model.
        tokenizer: its tokenizer.

    Attributes:
        requests: what the last task asked.
        written: the tokens that it wrote.
    """

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.requests: list[Any] = []
        self.written = 0
        self._module = module
        self._tokenizer = tokenizer

    def __call__(self, task: Task) -> Answered:
        """Returns the answers and scores of a task's search items; tokenizing them counts as work."""
        task.items("search")
        recorder = Recorder(self._module, self._tokenizer)
        size = len(self._module.get_input_embeddings().weight)

        def work() -> tuple[list[Any], list[float]]:
            evaluator = Evaluator([task], self._tokenizer, None, size)
            scores = evaluator.scores(recorder, evaluator.items("search"))
            return recorder.answers, list(scores.values.values())

        found = measured(self._module, work)
        self.requests, self.written = recorder.requests, recorder.tokens.new
        return found


class Recorder(TorchLanguageModel):
    """A model that keeps what it was asked and what it answered.

    Args:
        module: the model.
        tokenizer: its tokenizer.
    """

    def __init__(self, module: Any, tokenizer: Any) -> None:
        ends = module.generation_config.eos_token_id
        ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
        super().__init__(module, tokenizer, ends)
        self.requests: list[Any] = []
        self.answers: list[Any] = []

    def loglikelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """See `TorchLanguageModel`."""
        found = super().loglikelihoods(requests)
        self.requests += requests
        self.answers += found
        return found

    def generate(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """See `TorchLanguageModel`."""
        found = super().generate(requests)
        self.requests += requests
        self.answers += found
        return found


class Theirs:
    """lm-eval's side, its `hf` model.

    Args:
        module: the model.
        tokenizer: its tokenizer.
        batch_size: lm-eval's.
        options: further arguments of HFLM.
    """

    def __init__(self, module: Any, tokenizer: Any, batch_size: int | str, **options: Any) -> None:
        self._module = module
        with _quiet():
            self._model = HFLM(module, tokenizer=tokenizer, batch_size=batch_size, **options)

    def __call__(self, task: Task, items: int | None = None) -> Answered:
        """Returns the answers and scores of a task's search items, of the first `items` of them if that is given."""
        chosen = task.items("search")[:items]
        if task.type == "multiple_choice":
            asked = [("loglikelihood", (one.prompt, choice)) for one in chosen for choice in one.choices]
        elif task.type == "perplexity":
            asked = [("loglikelihood_rolling", (one.target,)) for one in chosen]
        else:
            settings = {"until": list(task.stop), "max_gen_toks": task.max_new_tokens, "do_sample": False}
            asked = [("generate_until", (one.prompt, settings)) for one in chosen]
        kind = asked[0][0]
        instances = [Instance(kind, {}, arguments, index) for index, (_, arguments) in enumerate(asked)]

        def work() -> tuple[list[Any], list[float]]:
            with _quiet():
                answers = getattr(self._model, kind)(instances, disable_tqdm=True)
            if kind == "loglikelihood":
                answers = [likelihood for likelihood, _ in answers]
                count = len(answers) // len(chosen)
                rows = [answers[start : start + count] for start in range(0, len(answers), count)]
                return answers, [float(max(row) == row[one.answer]) for row, one in zip(rows, chosen, strict=True)]
            if kind == "loglikelihood_rolling":
                return answers, answers
            return answers, [task.score_completion(one, text) for one, text in zip(chosen, answers, strict=True)]

        return measured(self._module, work)


def _quiet() -> contextlib.ExitStack:
    """Returns a context in which nothing is printed: lm-eval shows progress bars that cannot be turned off."""
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    return stack


def measured(module: Any, work: Callable[[], tuple[list[Any], list[float]]]) -> Answered:
    """Returns what `work` answers, with the time that it takes and the tokens that it runs through `module`."""
    tokens = 0

    def count(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += (named["input_ids"] if "input_ids" in named else arguments[0]).numel()

    hook = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        wall, processor = time.perf_counter(), time.process_time()
        answers, scores = work()
        return Answered(answers, scores, time.process_time() - processor, time.perf_counter() - wall, tokens)
    finally:
        hook.remove()


def least_tokens(requests: Sequence[Any], written: int) -> int:
    """Returns how many distinct beginnings all that a model reads has: requests, and what it has `written`."""
    read = {one.prompt + (one.target[:-1] if isinstance(one, LikelihoodRequest) else ()) for one in requests}
    # The last token of a completion is not read.
    return tree_size(sorted(read)) + max(0, written - len(read))
