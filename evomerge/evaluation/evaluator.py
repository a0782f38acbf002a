"""`Evaluator`: one resident model, refilled for every candidate; a `Score` with one number an item."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.architecture import LanguagePart
from evomerge.checkpoint import read_object
from evomerge.errors import CheckpointError
from evomerge.evaluation.encoding import Encoded, encode
from evomerge.evaluation.scoring import Runner
from evomerge.merge import Plan, WeightStore, chat_template
from evomerge.metrics import accuracy, choice_length
from evomerge.runtime import LiveModel
from evomerge.tasks import Split, Task


@dataclass(frozen=True)
class Score:
    """What a model scored, item by item; higher is better.

    Attributes:
        items: for each task by name, one number an item, in the split's order: 0 or 1 for accuracies (1/k for
            a tie of k choices), the negative of what is measured for perplexity tasks.
        completions: for each `generate` task by name, what the model wrote, parallel to its items.
        seconds: for `build` (weights written in place) and `evaluate` (the tasks run).
    """

    items: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, float]
    completions: Mapping[str, tuple[str, ...]]

    @property
    def means(self) -> dict[str, float]:
        """The mean over the items of each task."""
        return task_means(self.items)


def task_means(items: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the mean over the items of each task."""
    return {name: math.fsum(values) / len(values) for name, values in items.items()}


class Evaluator:
    """Scores plans on tasks with one model in memory.

    All plans are scored with the tokenizer of the first, so that every candidate sees the same tokens.

    Args:
        first: any plan of the search; gives the model's shape and the tokenizer.
        tasks: what to score on, by distinct names.
        store: where weights are read.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``, see `empty_model`; ``meta`` finds what would stop an
            evaluation before its first candidate, with no memory for weights.
        dtype: in which the model runs, see `compute_dtype`.

    Raises:
        ArchitectureError: transformers cannot run such a model.
        CheckpointError: the tokenizer or the generation settings cannot be read.
    """

    def __init__(self, first: Plan, tasks: Sequence[Task], store: WeightStore, device: str, dtype: torch.dtype) -> None:
        self.tasks = tuple(tasks)
        self._store = store
        self._device = device
        self._dtype = dtype
        self._tokenizer: Any = None
        self._encoded: dict[Split, list[Encoded]] = {}
        self._occupy(first)

    def _occupy(self, plan: Plan) -> None:
        """Makes the resident model, for plans of this shape."""
        self._live = LiveModel(plan, self._device, self._dtype)
        # Only now: what is wrong with a config is better said by the model than by the tokenizer that reads it too.
        self._tokenizer = load_tokenizer(plan) if self._tokenizer is None else self._tokenizer
        accelerated = next(self._live.model.parameters()).device.type != "cpu"
        self._runner = Runner(
            self._live.model,
            self._tokenizer,
            _stop_ids(plan, self._tokenizer),
            most_rows=256 if accelerated else 128,
            most_tokens=131_072 if accelerated else 16_384,
        )
        self._shape = _shape(plan)

    def prepare(self, split: Split) -> None:
        """Reads and tokenizes a split's items, once.

        Raises:
            TaskError: the data or an item is at fault.
            CheckpointError: the tokenizer is not the model's.
        """
        if split not in self._encoded:
            config: Any = self._live.model.config
            limit = getattr(config.get_text_config(), "max_position_embeddings", None)
            found = [encode(task, task.items(split), self._tokenizer, limit) for task in self.tasks]
            known = len(self._live.model.get_input_embeddings().weight)  # type: ignore[operator]
            largest = max((max(row.prompt + row.target) for one in found for row in one.rows), default=0)
            if largest >= known:
                raise CheckpointError(
                    f"{self._tokenizer.name_or_path}: its tokenizer gives token {largest:,} for an item, but the model"
                    f" that config.json describes has {known:,} tokens; is it the model's own tokenizer?"
                )
            self._encoded[split] = found

    def score(self, plan: Plan, split: Split, progress: Callable[[str], None] = lambda _: None) -> Score:
        """Returns how the plan's model does on a split.

        Args:
            plan: the candidate.
            split: which items.
            progress: called with what begins: ``build``, then each task's name.

        Raises:
            MergeError: the candidate cannot be built.
            EvaluationError: it cannot be scored, for instance because its logits are not finite.
        """
        self.prepare(split)
        if _shape(plan) != self._shape:
            self._shape = ()
            for name in ("_live", "_runner"):  # before there is another: two may not fit
                self.__dict__.pop(name, None)
            self._occupy(plan)
        progress("build")
        started = time.perf_counter()
        self._live.fill(plan, self._store)
        self._wait()
        built = time.perf_counter()
        items, completions = {}, {}
        for encoded in self._encoded[split]:
            progress(encoded.task.name)
            if encoded.task.type == "generate":
                completions[encoded.task.name] = self._completed(encoded)
                pairs = zip(encoded.items, completions[encoded.task.name], strict=True)
                items[encoded.task.name] = tuple(encoded.task.score_completion(*pair) for pair in pairs)
            else:
                items[encoded.task.name] = self._likelihood_scores(encoded)
        self._wait()
        seconds = {"build": built - started, "evaluate": time.perf_counter() - built}
        return Score(items, seconds, completions)

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _completed(self, encoded: Encoded) -> tuple[str, ...]:
        return tuple(self._runner.completions(encoded.rows, encoded.task.max_new_tokens, encoded.task.stop))

    def _likelihood_scores(self, encoded: Encoded) -> tuple[float, ...]:
        task = encoded.task
        likelihoods = self._runner.log_likelihoods(encoded.rows)
        if task.type == "perplexity":
            return tuple(
                likelihood / len(row.target)
                if task.metric == "nll_per_token"
                else likelihood / math.log(2) / len(encoded.items[row.item].target.encode())
                for row, likelihood in zip(encoded.rows, likelihoods, strict=True)
            )
        by_item: list[list[float]] = [[] for _ in encoded.items]
        for row, likelihood in zip(encoded.rows, likelihoods, strict=True):
            size = choice_length(encoded.items[row.item].choices[row.choice])
            by_item[row.item].append(likelihood / size if task.metric == "accuracy_norm" else likelihood)
        return tuple(accuracy(values, item.answer) for item, values in zip(encoded.items, by_item, strict=True))


def load_tokenizer(plan: Plan) -> Any:
    """Returns the result's tokenizer, with the recipe's chat template where it gives one.

    Raises:
        CheckpointError: the folder has no tokenizer that transformers can load.
    """
    from transformers import AutoTokenizer

    donor = plan.layout.donor
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(donor.folder), trust_remote_code=False)
    # The tokenizers library raises plain Exceptions, and a wrong file leads to any error.
    except Exception as fault:
        settings = donor.folder / "tokenizer_config.json"
        if settings.is_file() and read_object(settings).get("auto_map"):
            raise CheckpointError(
                f"{donor.reference}: its tokenizer needs code of its own, which evomerge never runs; where its"
                f" tokenizer.json says all, take auto_map and tokenizer_class out of {settings}"
            ) from None
        raise CheckpointError(
            f"{donor.reference}: its tokenizer cannot be loaded"
            f" ({(str(fault).splitlines() or [type(fault).__name__])[0]});"
            " the folder needs tokenizer.json or the files that its tokenizer's class reads"
        ) from None
    template = chat_template(plan)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _shape(plan: Plan) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((info.name, info.shape) for info in plan.layout.tensors)


def _stop_ids(plan: Plan, tokenizer: Any) -> list[int]:
    """Returns every token that ends a completion: those of the generation settings, config and tokenizer."""
    text = LanguagePart.of(plan.layout.config, (info.name for info in plan.layout.tensors)).config
    settings = plan.layout.donor.folder / "generation_config.json"
    parts = [plan.layout.config, text, read_object(settings) if settings.is_file() else {}]
    named = [part.get("eos_token_id") for part in parts]
    named.append(getattr(tokenizer, "eos_token_id", None))
    found = [one for value in named if value is not None for one in (value if isinstance(value, list) else [value])]
    wrong = [one for one in found if type(one) is not int]
    if wrong:
        raise CheckpointError(
            f"{plan.layout.donor.reference}: eos_token_id is {wrong[0]!r} in its config.json or generation_config.json;"
            " expected a token's number, or a list of them"
        )
    return found
