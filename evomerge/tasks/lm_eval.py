"""Tasks of EleutherAI's lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), by ``lm_eval:NAME``.

lm-eval makes the prompts, filters what a model wrote and scores it; the models are run by evomerge. So a task's scores
are those that lm-eval reports, item by item.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evomerge.document import suggestion
from evomerge.errors import TaskError
from evomerge.tasks.local import LocalFiles
from evomerge.tasks.task import Item, Split, Task, TaskType, hash_of

PREFIX = "lm_eval:"

SEARCH_ITEMS = 200
"""The items to search on where a task says nothing: as many as a night's search on one GPU can afford."""

_TYPES: dict[str, TaskType] = {
    "multiple_choice": "multiple_choice",
    "loglikelihood": "multiple_choice",
    "loglikelihood_rolling": "perplexity",
    "generate_until": "generate",
}


def open_task(reference: str | Path, files: LocalFiles = MappingProxyType({})) -> Task:
    """Returns the task of a file, or lm-eval's task that ``lm_eval:NAME`` names.

    Args:
        reference: the file, or ``lm_eval:NAME``.
        files: see `Task.load`.

    Raises:
        TaskError: see `Task.load` and `LmEvalTask`.
    """
    return LmEvalTask(str(reference)) if is_lm_eval(reference) else Task.load(reference, files)


def is_lm_eval(reference: str | Path) -> bool:
    """Returns whether a reference names one of lm-eval's tasks, and not a file."""
    return str(reference).startswith(PREFIX)


class LmEvalTask(Task):
    """A task of lm-eval's.

    The search items are the first of its training documents, or where it has none, of its validation documents; the
    holdout is what lm-eval itself evaluates on.

    Args:
        reference: ``lm_eval:NAME``, or with options, ``lm_eval:NAME,num_fewshot=5,metric=acc_norm,search=100``:
            ``num_fewshot`` is the number of solved examples (default: the task's own), ``metric`` what is scored
            (default: the task's first), ``filter`` which of its filters reads an answer (default: the first),
            ``search`` and ``holdout`` the most items of each.
        manager: lm-eval's TaskManager; None for one that knows the tasks of the package.

    Attributes:
        searches_test_set: whether the search items are documents that lm-eval evaluates on, as it has no others.

    Raises:
        TaskError: lm-eval is not installed, has no such task, or the task cannot be scored item by item.
    """

    def __init__(self, reference: str, manager: Any = None) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as fault:
            raise TaskError([f"{reference}: needs lm-eval ({fault}); pip install evomerge[lm-eval]"]) from None
        name, *options = reference.removeprefix(PREFIX).split(",")
        known = {"num_fewshot": None, "metric": None, "filter": None, "search": str(SEARCH_ITEMS), "holdout": None}
        given: dict[str, str | None] = dict(known)
        for option in options:
            key, _, value = option.partition("=")
            if key.strip() not in known:
                raise TaskError([f'{reference}: there is no option "{key}"{suggestion(key, known)}'])
            given[key.strip()] = value.strip()
        counts = {key: self._count(reference, key, given[key]) for key in ("num_fewshot", "search", "holdout")}
        manager = manager or TaskManager()
        if name not in manager.all_subtasks:
            group = name in manager.all_tasks
            why = (
                "is a group of tasks; name one of them"
                if group
                else f"is no task{suggestion(name, manager.all_subtasks)}"
            )
            raise TaskError([f"{reference}: {name} {why}"])
        try:
            (self._inner,) = manager.load([name])["tasks"].values()
        # Of any library that its data needs.
        except Exception as fault:
            raise TaskError([f"{reference}: lm-eval cannot load it: {' '.join(str(fault).split())}"]) from None
        inner = self._inner
        self.path = Path(reference)
        self.name = name
        self.type = _TYPES[inner.OUTPUT_TYPE]
        self.chat = False
        self.language = None
        self.data_sets, self.replaced = (), frozenset()
        settings = dict(inner.config.generation_kwargs or {}) if self.type == "generate" else {}
        until = settings.get("until") or []
        self.stop = tuple([until] if isinstance(until, str) else until)
        self.max_new_tokens = int(settings.get("max_gen_toks", 256)) if self.type == "generate" else 0
        shots = counts["num_fewshot"]
        self._shots = int(inner.config.num_fewshot or 0) if shots is None else shots
        self._most = {"search": counts["search"], "holdout": counts["holdout"]}
        self.searches_test_set = not inner.has_training_docs() and not (
            inner.has_validation_docs() and inner.has_test_docs()
        )
        filters = [one.name for one in inner._filters]
        self._filter = given["filter"] or filters[0]
        if self._filter not in filters:
            raise TaskError([f'{reference}: there is no filter "{self._filter}"{suggestion(self._filter, filters)}'])
        self._documents: dict[str, dict[str, Any]] = {}  # by their items' keys
        self._items_made: dict[Split, tuple[Item, ...]] = {}
        self._choose_metric(given["metric"])
        self.option = None

    @staticmethod
    def _count(reference: str, key: str, value: str | None) -> int | None:
        least = 0 if key == "num_fewshot" else 1
        if value is None or (value.isascii() and value.isdigit() and int(value) >= least):
            return None if value is None else int(value)
        raise TaskError([f"{reference}: {key} is {value!r}; expected a whole number, {least} or more"])

    def _choose_metric(self, wanted: str | None) -> None:
        """Chooses what is scored, by scoring an answer to one item."""
        item = self.items("holdout")[0]
        answers: list[Any] = ["" if self.type == "generate" else -1.0 for _ in item.texts]
        found = self._results(item, answers)
        numbers = [name for name, value in found.items() if _number(name, value) is not None]
        self.metric = wanted or next(iter(numbers), "")
        if self.metric not in numbers:
            listed = ", ".join(numbers) or "none"
            raise TaskError(
                [
                    f'{self.path}: metric "{wanted or ", ".join(found)}" has no number for a single item;'
                    f" metrics that have one: {listed}"
                ]
            )
        # What becomes a perplexity is, for one item, a log-likelihood, of which higher is better.
        likelihood = self._inner.OUTPUT_TYPE.startswith("loglikelihood")
        higher = likelihood or self._inner.higher_is_better().get(self.metric, True)
        self._sign = 1.0 if higher else -1.0

    def items(self, split: Split) -> tuple[Item, ...]:
        """See `Task.items`."""
        if split not in self._items_made:
            inner = self._inner
            # As lm-eval does it, so that its first items have the same solved examples.
            inner.set_fewshot_seed(1234)
            documents = list(self._split(split))[: self._most[split]]
            self._items_made[split] = tuple(self._asked(index, one) for index, one in enumerate(documents))
        return self._items_made[split]

    def _split(self, split: Split) -> Iterable[dict[str, Any]]:
        inner = self._inner
        found: Iterable[dict[str, Any]]
        if split == "holdout":
            found = inner.eval_docs
        elif inner.has_training_docs():
            found = inner.training_docs()
        else:
            found = inner.validation_docs() if inner.has_validation_docs() else inner.test_docs()
        if self.searches_test_set:
            # Disjoint at least.
            found = list(found)[split == "holdout" :: 2]
        return found

    def _asked(self, index: int, document: dict[str, Any]) -> Item:
        inner = self._inner
        context = inner.fewshot_context(document, self._shots)
        made = inner.construct_requests(doc=document, ctx=context, metadata=(self.name, index, 1))
        instances = made if isinstance(made, list) else [made]
        texts = tuple(self._texts(instance) for instance in instances)
        item = Item(hash_of([self.type, texts, repr(document)]), texts[0][0], (), "", (), -1, texts=texts)
        self._documents[item.key] = {"document": document, "instances": instances}
        return item

    def _texts(self, instance: Any) -> tuple[str, str]:
        """Returns the prompt and the continuation of a request; the spaces between them belong to the second."""
        if len(instance.args) > 2:
            raise TaskError([f"{self.path}: shows images or sounds, which lm-eval's tasks cannot do here"])
        first, second = (*instance.args, "")[:2] if len(instance.args) == 1 else instance.args
        if self.type == "generate":
            return first, ""
        if self.type == "perplexity":
            return "", first
        head = first.rstrip()
        return head, first[len(head) :] + second

    def check(self) -> None:
        """Makes both splits; they are different splits of the data, or have different documents.

        Raises:
            TaskError: the data cannot be read.
        """
        self.items("search")
        self.items("holdout")

    def score_answers(self, item: Item, answers: Sequence[Any]) -> float:
        """Returns an item's number, as lm-eval computes it from the answers to the item's texts."""
        found = _number(self.metric, self._results(item, answers)[self.metric])
        assert found is not None
        return self._sign * found

    def _results(self, item: Item, answers: Sequence[Any]) -> dict[str, Any]:
        inner, kept = self._inner, self._documents[item.key]
        for instance, answer in zip(kept["instances"], answers, strict=True):
            # Whether an answer is the likeliest text of all is not computed.
            instance.resps = [(answer, False) if self.type == "multiple_choice" else answer]
        for one in inner._filters:
            if one.name == self._filter:
                one.apply(kept["instances"])
        responses = [instance.filtered_resps[self._filter] for instance in kept["instances"]]
        found: dict[str, Any] = inner.process_results(kept["document"], responses)
        if inner.OUTPUT_TYPE in ("loglikelihood", "multiple_choice"):
            # They need what is not computed.
            found.pop("exact_match", None)
        if inner.OUTPUT_TYPE == "loglikelihood":
            found.pop("acc", None)
        return found

    def fingerprint(self, split: Split) -> str:
        """See `Task.fingerprint`."""
        from importlib.metadata import version

        settings = [version("lm_eval"), self.metric, self._filter, self.max_new_tokens, list(self.stop)]
        return hash_of([self.name, settings, [item.key for item in self.items(split)]])


def _number(name: str, value: Any) -> float | None:
    """Returns what a metric gives for one item as a number, of which the mean makes sense; None if it gives none."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, tuple) and name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        likelihood, length = value
        return float(likelihood / length / (math.log(2) if name == "bits_per_byte" else 1.0))
    return None
