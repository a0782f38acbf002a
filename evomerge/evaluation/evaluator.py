"""`Evaluator`: any items of some tasks, scored on a language model; `Scores` has one number for each item."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evomerge.evaluation.encoding import Encoded, encode
from evomerge.metrics import accuracy, choice_length
from evomerge.runtime import LanguageModel
from evomerge.tasks import Split, Task


class ItemId(NamedTuple):
    """One item of the evaluator's tasks.

    Attributes:
        split: its split.
        task: its task's name.
        index: its index in the split, from 0.
    """

    split: Split
    task: str
    index: int  # type: ignore[assignment]  # tuple's own method of this name is not needed


@dataclass(frozen=True)
class Cost:
    """What scoring took.

    Attributes:
        seconds: from the first request to the last score.
        prompt_tokens: tokens that the model read, see `TokenCounts`.
        new_tokens: tokens that it generated.
    """

    seconds: float
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Scores:
    """What a model scored, item by item; higher is better.

    Attributes:
        values: each item's number: 0 or 1 for accuracies (1/k for a tie of k choices), the negative of what is
            measured for perplexity tasks.
        completions: what the model wrote, for items of `generate` tasks.
        cost: what scoring took.
    """

    values: Mapping[ItemId, float]
    completions: Mapping[ItemId, str]
    cost: Cost

    def by_task(self) -> dict[str, tuple[float, ...]]:
        """Returns the numbers of each task's items, in the order of their indices."""
        found: dict[str, list[float]] = {}
        for item, value in self.values.items():
            found.setdefault(item.task, []).append(value)
        return {task: tuple(values) for task, values in found.items()}

    def completions_by_task(self) -> dict[str, tuple[str, ...]]:
        """Returns the completions of each `generate` task's items, in the order of their indices."""
        found: dict[str, list[str]] = {}
        for item, text in self.completions.items():
            found.setdefault(item.task, []).append(text)
        return {task: tuple(texts) for task, texts in found.items()}

    @property
    def means(self) -> dict[str, float]:
        """The mean over the items of each task."""
        return {name: math.fsum(values) / len(values) for name, values in self.by_task().items()}


class Evaluator:
    """Scores language models on tasks.

    Args:
        tasks: what to score on, by distinct names.
        tokenizer: transformers' tokenizer of all the models.
        max_length: the most tokens that a model takes; None where it has no limit.
        vocabulary_size: the token ids that the models know.
        processor: loads their processor of images, see `Runtime.processor`; called where a task shows some.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Any,
        max_length: int | None,
        vocabulary_size: int,
        processor: Callable[[], Any] = lambda: None,
    ) -> None:
        self.tasks = tuple(tasks)
        self._tokens = tokenizer, max_length, vocabulary_size, processor
        self._encoded: dict[Split, dict[ItemId, Encoded]] = {}

    def items(self, split: Split) -> tuple[ItemId, ...]:
        """Returns all items of a split, task by task; they are read and tokenized once.

        Raises:
            TaskError: the data or an item is not valid.
            CheckpointError: the tokenizer is not the model's.
        """
        return tuple(self._split(split))

    def scores(
        self, model: LanguageModel, items: Sequence[ItemId], progress: Callable[[str], None] = lambda _: None
    ) -> Scores:
        """Returns how a model does on some items; neither their order nor repetition changes a score.

        Args:
            model: a model with the evaluator's tokenizer.
            items: which of those that `items` returns.
            progress: called with each task's name as it begins.

        Raises:
            EvaluationError: the model cannot be scored, for instance because its logits are not finite.
        """
        started, before = time.perf_counter(), model.tokens
        values: dict[ItemId, float] = {}
        completions: dict[ItemId, str] = {}
        for task in self.tasks:
            # In order: the batches that a model forms, and with them the last bits of scores, are always the same.
            own = sorted({item for item in items if item.task == task.name})
            if not own:
                continue
            progress(task.name)
            encoded = [self._split(item.split)[item] for item in own]
            ask: Callable[[Any], list[Any]] = model.generate if task.type == "generate" else model.loglikelihoods
            answers = iter(ask([request for one in encoded for request in one.requests]))
            for item, one in zip(own, encoded, strict=True):
                answered = [next(answers) for _ in one.requests]
                values[item] = _score(task, one, answered)
                if task.type == "generate":
                    completions[item] = answered[0]
        spent = model.tokens - before
        return Scores(values, completions, Cost(time.perf_counter() - started, spent.prompt, spent.new))

    def _split(self, split: Split) -> Mapping[ItemId, Encoded]:
        if split not in self._encoded:
            self._encoded[split] = {
                ItemId(split, task.name, index): one
                for task in self.tasks
                for index, one in enumerate(encode(task, task.items(split), *self._tokens))
            }
        return self._encoded[split]


def _score(task: Task, encoded: Encoded, answers: Sequence[Any]) -> float:
    """Returns an item's number, of the answers to its requests."""
    item = encoded.item
    if item.texts:
        return task.score_answers(item, answers)
    if task.type == "generate":
        return task.score_completion(item, answers[0])
    if task.metric == "nll_per_token":
        return float(answers[0] / len(encoded.requests[0].target))
    if task.type == "perplexity":
        return float(answers[0] / math.log(2) / len(item.target.encode()))
    if task.metric == "accuracy_norm":
        answers = [answer / choice_length(choice) for answer, choice in zip(answers, item.choices, strict=True)]
    return accuracy(answers, item.answer)
