"""`Task`: what a model is asked and how its answers are scored, read from one YAML file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from evomerge import document, metrics
from evomerge.document import Location, Source
from evomerge.errors import EvaluationError, TaskError
from evomerge.tasks import data as data_files
from evomerge.tasks.examples import Example, Renderer, RowFault
from evomerge.tasks.spec import AnySpec, DataSpec, GenerateSpec, RegexSpec, SplitSpec, read_spec

TaskType = Literal["generate", "multiple_choice", "perplexity"]
Split = Literal["search", "holdout"]
SPLITS: tuple[Split, Split] = ("search", "holdout")

_RULES = 2
"""Part of every fingerprint; raised where the same items and settings come to be scored in another way."""

_BLANKS = " \t\u00a0\u3000"
"""What a tokenizer may join to the word behind it. A prompt that ends in them would end in a token that the model
hardly ever saw there, so in every type of task they begin the continuation; a line's end stays the prompt's."""


@dataclass(frozen=True)
class Item:
    """One question, ready for a model.

    Attributes:
        key: a hash of everything below, in hex; the same in every run. Two equal rows have the same key.
        prompt: the text to continue, with its few-shot examples; "" where it is a chat. Blanks at its end are
            not here: `choices` and perplexity's `target` begin with them, a completion is to.
        messages: the turns of the chat, each with ``role`` and ``content``: system, few-shot turns, user; ()
            where it is none.
        target: what is right; "" for multiple choice.
        choices: the texts to choose from; multiple choice only.
        answer: the index of the right choice; -1 for the other types.
    """

    key: str
    prompt: str
    messages: tuple[Mapping[str, str], ...]
    target: str
    choices: tuple[str, ...]
    answer: int

    def __str__(self) -> str:
        """Returns what messages call it: the end of its question, where few-shot examples do not stand."""
        asked = (self.messages[-1]["content"] if self.messages else self.prompt) or self.target
        return repr(asked if len(asked) <= 60 else f"...{asked[-57:]}")


@dataclass(frozen=True)
class Task:
    """A task: data, prompt, what is right, metric and splits.

    A score of any task is better the higher it is (`higher_is_better`): the evaluator negates perplexity's
    metrics, so that nothing else has to know them.

    Attributes:
        name: the file's stem unless the file says otherwise.
        type: ``generate``, ``multiple_choice`` or ``perplexity``.
        chat: whether the prompts are chats, for the tokenizer's chat template.
        max_new_tokens: where a completion ends at the latest; 0 where nothing is generated.
        stop: texts that end a completion.
        metric: ``exact_match``, ``last_number``, ``regex``; ``accuracy``, ``accuracy_norm`` (log-likelihood
            divided by the choice's characters, see `metrics.choice_length`); ``nll_per_token`` (nats),
            ``bits_per_byte`` (of the target in UTF-8).
        pattern: the regular expression of the metric ``regex``, else None.
        path: the task file.
    """

    name: str
    type: TaskType
    chat: bool
    max_new_tokens: int
    stop: tuple[str, ...]
    metric: str
    pattern: str | None
    path: Path
    _spec: AnySpec = field(repr=False, compare=False)
    _source: Source = field(repr=False, compare=False)
    _rows_read: dict[str, Sequence[data_files.Row]] = field(default_factory=dict, repr=False, compare=False)
    _examples_made: dict[Location, list[Example]] = field(default_factory=dict, repr=False, compare=False)
    _items_made: dict[str, tuple[Item, ...]] = field(default_factory=dict, repr=False, compare=False)

    higher_is_better: ClassVar[bool] = True

    @classmethod
    def load(cls, path: Path | str) -> Task:
        """Returns the task of a YAML file. Its data is not read yet.

        Raises:
            TaskError: with a line for every fault of the file.
        """
        path = Path(path)
        source = document.read(path, TaskError)
        spec = read_spec(source)
        generate = spec if isinstance(spec, GenerateSpec) else None
        pattern = spec.metric.regex if isinstance(spec.metric, RegexSpec) else None
        return cls(
            name=spec.name or path.stem,
            type=spec.type,  # type: ignore[arg-type]
            chat=spec.chat,
            max_new_tokens=generate.max_new_tokens if generate else 0,
            stop=tuple(generate.stop) if generate else (),
            metric="regex" if isinstance(spec.metric, RegexSpec) else spec.metric,
            pattern=pattern,
            path=path,
            _spec=spec,
            _source=source,
        )

    def items(self, split: Split) -> tuple[Item, ...]:
        """Returns the items of a split, in order; the data is read once.

        Raises:
            TaskError: where data cannot be read or a row cannot be rendered: file, row and field are named.
        """
        if split not in self._items_made:
            faults: list[str] = []
            shots = self._gathered(faults, ("few_shot",))
            examples = self._gathered(faults, ("splits", split))
            if faults:
                raise TaskError(list(dict.fromkeys(faults)))
            self._items_made[split] = tuple(self._item(example, shots) for example in examples)
        return self._items_made[split]

    def check(self) -> None:
        """Reads both splits and the few-shot examples, and sees that no question is in two of them.

        Questions are compared by content, without few-shot examples. The same question twice in one split is
        allowed.

        Raises:
            TaskError: with every fault that was found.
        """
        faults: list[str] = []
        places: list[Location] = [("few_shot",), *(("splits", split) for split in SPLITS)]
        rows: dict[Location, dict[tuple[str, ...], int]] = {}
        for place in places:
            examples = self._gathered(faults, place)
            asked = [(example.question(self.type), example.row) for example in examples]
            for before, known in rows.items():
                twice = [(question, row) for question, row in asked if question in known]
                if twice:
                    question, row = twice[0]
                    faults.append(self._shared(place, before, len(twice), question[0], (row, known[question])))
            rows[place] = dict(reversed(asked))
        if faults:
            raise TaskError(list(dict.fromkeys(faults)))

    def score_completion(self, item: Item, completion: str) -> float:
        """Returns the score, from 0.0 to 1.0, of what a model wrote for an item; for ``generate`` only.

        The completion is cut at the first of `stop`, where the generation did not already end there.

        Raises:
            TaskError: where the task is not of type ``generate``.
            EvaluationError: where the metric's pattern takes too long on this completion.
        """
        if self.type != "generate":
            raise TaskError([f"{self.path}: a {self.type} task scores log-likelihoods, not completions"])
        for stop in self.stop:
            completion = completion.partition(stop)[0]
        if self.pattern is not None:
            try:
                return metrics.regex_match(completion, item.target, self.pattern)
            except TimeoutError:
                fault = (
                    f"the pattern {self.pattern!r} searches for more than {metrics.PATTERN_SECONDS:g} s in what the"
                    f" model wrote for the item {item}; write it so that a text can match it in one way only: no"
                    " repetition inside a repetition, such as (a+)+"
                )
                raise EvaluationError(self._source.fault(("metric", "regex"), fault)) from None
        compare = metrics.last_number if self.metric == "last_number" else metrics.exact_match
        return compare(completion, item.target)

    def fingerprint(self, split: Split) -> str:
        """Returns a hash, in hex, of the split's items and of every setting that a score depends on.

        Two tasks with one fingerprint give a model the same scores; name and path do not matter.

        Raises:
            TaskError: as `items`.
        """
        settings = [_RULES, self.type, self.metric, self.pattern, self.chat, self.max_new_tokens, list(self.stop)]
        return _hash([settings, [item.key for item in self.items(split)]])

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self._spec)

    def _part(self, place: Location) -> SplitSpec | None:
        if place == ("few_shot",):
            return self._spec.few_shot
        return self._spec.splits.search if place[-1] == "search" else self._spec.splits.holdout

    def _data(self, place: Location) -> DataSpec:
        part = self._part(place)
        spec = (part.data if part else None) or self._spec.data
        assert spec is not None  # not input: read_spec refuses a part without data
        return spec

    def _gathered(self, faults: list[str], place: Location) -> list[Example]:
        """Returns the examples of a split or of few_shot; what is wrong with them goes to `faults`."""
        if self._part(place) is None:
            return []
        try:
            if place not in self._examples_made:
                self._examples_made[place] = self._examples(place)
            return self._examples_made[place]
        except TaskError as error:
            faults += error.faults
            return []

    def _examples(self, place: Location) -> list[Example]:
        part = self._part(place)
        assert part is not None
        rows = self._rows(place)
        spelled = self._data(place).path
        start, end = part.rows or (0, len(rows))
        if not len(rows):
            raise TaskError([self._source.fault(place, f"is empty: {spelled} has no rows")])
        if end > len(rows):
            own = place if isinstance(self._raw(place), list) else (*place, "rows")
            until = f"end at {len(rows):,} or less" if start < len(rows) else "give it rows that are there"
            fault = f"rows {[start, end]}, but {spelled} has {len(rows):,} rows; {until}"
            raise TaskError([self._source.fault(own, fault)])
        examples: list[Example] = []
        first: dict[tuple[Location, str], int] = {}
        count: dict[tuple[Location, str], int] = {}
        for index in data_files.shuffled(len(rows), self._spec.shuffle)[start:end]:
            try:
                examples.append(self._renderer.example(rows[index], index, few_shot=place == ("few_shot",)))
            except RowFault as fault:
                # One wrong template fails on every row in the same words: it is told once, with a count.
                known = (fault.location, fault.message)
                first.setdefault(known, index)
                count[known] = count.get(known, 0) + 1
        if first:
            faults = []
            for (location, message), index in list(first.items())[: data_files.MAX_FAULTS]:
                others = count[location, message] - 1
                more = f" (and {others:,} more rows)" if others else ""
                faults.append(self._source.fault(location, f"row {index} (from 0) of {spelled}: {message}{more}"))
            raise TaskError(faults)
        return examples

    def _raw(self, place: Location) -> Any:
        value = self._source.data
        for key in place:
            value = value[key]
        return value

    def _rows(self, place: Location) -> Sequence[data_files.Row]:
        spec = self._data(place)
        known = spec.model_dump_json()
        if known not in self._rows_read:
            file = self.path.parent / spec.path
            try:
                if data_files.is_local(spec.path):
                    self._rows_read[known] = data_files.read_rows(file, spec.columns)
                else:
                    self._rows_read[known] = data_files.load_hub(spec.path, spec.name, str(spec.split), spec.revision)
            except TaskError as error:
                part = self._part(place)
                own = (*place, "data") if part is not None and part.data is not None else ("data",)
                raise TaskError([self._placed(own, file, fault) for fault in error.faults]) from None
        return self._rows_read[known]

    def _placed(self, place: Location, file: Path, fault: str) -> str:
        """Returns a fault of data with a line: its own in the data file, or else that of the task's key."""
        has_line = re.match(r":\d+: ", fault.removeprefix(str(file))) is not None
        return fault if has_line else self._source.fault(place, fault)

    def _shared(self, place: Location, before: Location, count: int, question: str, rows: tuple[int, int]) -> str:
        """Returns the fault of questions that two places share."""
        text = repr(question if len(question) <= 80 else f"{question[:77]}...")
        one, other = self._data(place).path, self._data(before).path
        return self._source.fault(
            place,
            f"{count:,} of its questions are in {document.spelled(before)} too; the first is {text}, "
            f"row {rows[0]} (from 0) of {one} here and row {rows[1]} of {other} there; take them out of one",
        )

    def _item(self, example: Example, shots: Sequence[Example]) -> Item:
        prompt, blanks, messages = "", "", []
        if self.chat:
            if example.system:
                messages.append({"role": "system", "content": example.system})
            for shot in shots:
                messages.append({"role": "user", "content": shot.prompt})
                messages.append({"role": "assistant", "content": shot.target})
            messages.append({"role": "user", "content": example.prompt})
        else:
            separator = self._spec.few_shot.separator if self._spec.few_shot else ""
            whole = separator.join([*(shot.prompt + shot.target for shot in shots), example.prompt])
            prompt = whole.rstrip(_BLANKS)
            blanks = whole[len(prompt) :]
        target = "" if example.choices else example.target
        if self.type == "perplexity":
            target = blanks + target
        choices = tuple(blanks + choice for choice in example.choices)
        key = _hash([self.type, prompt, messages, target, choices, example.answer])
        return Item(key, prompt, tuple(messages), target, choices, example.answer)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()
