"""`Task`: what a model is asked and how its answers are scored, from one YAML file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from evomerge import document
from evomerge.document import Location, Source
from evomerge.errors import EvaluationError, TaskError
from evomerge.metrics import METRICS, PATTERN_SECONDS, is_written_in
from evomerge.tasks import data as data_files
from evomerge.tasks.examples import Example, RowFault, make_example
from evomerge.tasks.local import LocalFiles, label, replacement
from evomerge.tasks.pictures import Picture
from evomerge.tasks.spec import AnySpec, DataSpec, GenerateSpec, SplitSpec, read_spec
from evomerge.tasks.test_sets import is_test_set

TaskType = Literal["generate", "multiple_choice", "perplexity"]
Split = Literal["search", "holdout"]
_FEW_SHOT = ("few_shot",)

_RULES = 2
"""Part of every fingerprint; increased when the same items and settings are scored in another way."""

_BLANKS = " \t\u00a0\u3000"
"""What a tokenizer may join to the word after it. A prompt that ends in blanks would end in a token that the model
rarely saw there, so in every type of task they begin the continuation; a line end stays in the prompt."""


@dataclass(frozen=True)
class Item:
    """One question, ready for a model.

    Attributes:
        key: a hash of everything below, in hex; the same in every run. Two equal rows have the same key.
        prompt: the text to continue, with its few-shot examples; "" for a chat. Blanks at its end are moved:
            `choices` and perplexity's `target` begin with them, and a completion is expected to.
        messages: the turns of the chat, each with ``role`` and ``content``: system, few-shot turns, user; ()
            if it is not a chat.
        target: the right answer; "" for multiple choice.
        choices: the texts to choose from; multiple choice only.
        answer: the index of the right choice; -1 for the other types.
        pictures: what the model sees, in the order of the turns' images. The content of every turn is then a list of
            parts, as chat templates for images expect.
        texts: prompts with their continuations, where another library makes them; () where they follow from the above.
    """

    key: str
    prompt: str
    messages: tuple[Mapping[str, Any], ...]
    target: str
    choices: tuple[str, ...]
    answer: int
    pictures: tuple[Picture, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Returns what messages call it: the end of its question, after the few-shot examples."""
        asked = self.question or self.target
        return repr(asked if len(asked) <= 60 else f"...{asked[-57:]}")

    @property
    def question(self) -> str:
        """The prompt; of a chat, the text of its last turn."""
        content = self.messages[-1]["content"] if self.messages else self.prompt
        return str(content if isinstance(content, str) else content[-1]["text"])


class Task:
    """A task: data, prompt, right answer, metric and splits.

    A higher score is better in every task: the evaluation negates the metrics of perplexity.

    Attributes:
        path: the task file.
        name: the file's stem unless the file says otherwise.
        type: ``generate``, ``multiple_choice`` or ``perplexity``.
        chat: whether the prompts are chats, for the tokenizer's chat template.
        max_new_tokens: the maximum length of a completion; 0 if nothing is generated.
        stop: texts that end a completion.
        metric: for ``generate`` a name in `METRICS`; ``accuracy``, ``accuracy_norm`` (log-likelihood divided by the
            choice's characters, see `metrics.choice_length`); ``nll_per_token`` (nats), ``bits_per_byte`` (of the
            target in UTF-8).
        option: the metric's option; None where the file gives none.
        language: the ISO 639-1 code of the language that a completion must be in; None where any will do.
        data_sets: the data sets on the Hub that the file names.
        replaced: the keys of the local files that are read instead, see `evomerge.tasks.local`.
        searches_test_set: whether some search items are of a test set that published scores are of.
    """

    def __init__(self, path: Path, spec: AnySpec, source: Source, files: LocalFiles) -> None:
        """Makes the task of the checked keys `spec`, which `source` has as they were written."""
        self.path = path
        self.name = spec.name or path.stem
        self.type = cast(TaskType, spec.type)
        self.chat = spec.chat
        self.max_new_tokens = spec.max_new_tokens if isinstance(spec, GenerateSpec) else 0
        self.stop = tuple(spec.stop) if isinstance(spec, GenerateSpec) else ()
        self.metric: str = spec.metric.name if isinstance(spec, GenerateSpec) else spec.metric
        self.option = spec.metric.option if isinstance(spec, GenerateSpec) else None
        self.language = spec.require_language if isinstance(spec, GenerateSpec) else None
        self._spec = spec
        self._source = source
        self._parts: dict[Location, SplitSpec] = {
            _FEW_SHOT: spec.few_shot or SplitSpec(rows=None),
            ("splits", "search"): spec.splits.search,
            ("splits", "holdout"): spec.splits.holdout,
        }
        used = [location for location in self._parts if location != _FEW_SHOT or spec.few_shot]
        on_hub = [one for one in dict.fromkeys(map(self._named, used)) if not data_files.is_local(one.path)]
        self._local = self._replacements(on_hub, files)
        self.data_sets = tuple(map(label, on_hub))
        self.replaced = frozenset(key for one in on_hub if (key := replacement(one, files)))
        self.searches_test_set = is_test_set(self._named(("splits", "search")))
        self._rows_read: dict[DataSpec, Sequence[data_files.Row]] = {}
        self._examples_made: dict[Location, list[Example]] = {}
        self._items_made: dict[Split, tuple[Item, ...]] = {}

    @classmethod
    def load(cls, path: Path | str, files: LocalFiles = MappingProxyType({})) -> Task:
        """Returns the task of a YAML file. Its data is not read yet.

        Args:
            path: the file.
            files: local files in place of data sets on the Hub, such as ``{"openai/gsm8k:test": "test.jsonl"}``.

        Raises:
            TaskError: with a line for every fault of the file.
        """
        source = document.read(Path(path), TaskError)
        return cls(Path(path), read_spec(source), source, files)

    def items(self, split: Split) -> tuple[Item, ...]:
        """Returns the items of a split, in order; the data is read once.

        Raises:
            TaskError: data cannot be read or a row cannot be rendered; the error names file, row and field.
        """
        if split not in self._items_made:
            faults: list[str] = []
            shots = self._gathered(faults, _FEW_SHOT)
            examples = self._gathered(faults, ("splits", split))
            if faults:
                raise TaskError(list(dict.fromkeys(faults)))
            self._items_made[split] = tuple(self._item(example, shots) for example in examples)
        return self._items_made[split]

    def check(self) -> None:
        """Reads both splits and the few-shot examples, and checks that no question is in two of them.

        Questions are compared by content, without few-shot examples. The same question twice in one split is
        allowed.

        Raises:
            TaskError: with every fault found.
        """
        faults: list[str] = []
        rows: dict[Location, dict[tuple[str, ...], int]] = {}
        for location in self._parts:
            asked = [(example.question(self.type), example.row) for example in self._gathered(faults, location)]
            for before, known in rows.items():
                shared = [(question, row, known[question]) for question, row in asked if question in known]
                if shared:
                    faults.append(self._shared(location, before, shared))
            rows[location] = dict(reversed(asked))
        if faults:
            raise TaskError(list(dict.fromkeys(faults)))

    def score_completion(self, item: Item, completion: str) -> float:
        """Returns the score, from 0.0 to 1.0, of what a model wrote for an item; for ``generate`` only.

        The completion is cut at the first of `stop`, if the generation did not already end there. In another language
        than the task requires, it scores 0.0; see `metrics.is_written_in`.

        Raises:
            TaskError: the task is not of type ``generate``.
            EvaluationError: the metric's pattern takes too long on this completion.
        """
        if self.type != "generate":
            raise TaskError([f"{self.path}: a {self.type} task scores log-likelihoods, not completions"])
        for stop in self.stop:
            completion = completion.partition(stop)[0]
        if self.language is not None and not is_written_in(completion, self.language):
            return 0.0
        try:
            return METRICS[self.metric].score(completion, item.target, self.option)
        except TimeoutError:
            fault = (
                f"the pattern {self.option!r} searches for more than {PATTERN_SECONDS:g} s in what the model wrote for"
                f" the item {item}; write it so that a text can match in one way only: no repetition inside a"
                " repetition, such as (a+)+"
            )
            raise EvaluationError(self._source.fault(("metric", "regex"), fault)) from None

    def score_answers(self, item: Item, answers: Sequence[Any]) -> float:
        """Returns an item's number, where another library scores the answers to its texts, see `LmEvalTask`."""
        raise NotImplementedError

    def fingerprint(self, split: Split) -> str:
        """Returns a hash, in hex, of the split's items and of every setting that a score depends on.

        Two tasks with one fingerprint give a model the same scores; name and path do not matter.

        Raises:
            TaskError: as `items`.
        """
        settings = [_RULES, self.type, self.metric, self.option, self.chat, self.max_new_tokens, list(self.stop)]
        if self.language is not None:  # Without the key, fingerprints are those of versions that did not know it.
            settings.append(self.language)
        return hash_of([settings, [item.key for item in self.items(split)]])

    def hub_rows(self, split: Split) -> dict[str, Any] | None:
        """Returns which rows of which data set on the Hub a split has; None if its rows are in a file."""
        data, rows = self._data(("splits", split)), self._parts["splits", split].rows
        if data_files.is_local(data.path):
            return None
        return {**data.model_dump(include={"path", "name", "split", "revision"}), "rows": rows and list(rows)}

    def _data(self, location: Location) -> DataSpec:
        """Returns where the rows of a part are read."""
        spec = self._named(location)
        return self._local.get(spec, spec)

    def _replacements(self, specs: Sequence[DataSpec], files: LocalFiles) -> dict[DataSpec, DataSpec]:
        """Returns the local files that are read in place of data sets on the Hub."""
        found: dict[DataSpec, DataSpec] = {}
        by_file: dict[str, DataSpec] = {}
        for spec in specs:
            if key := replacement(spec, files):
                file = str(Path(files[key]).absolute())
                other = by_file.setdefault(file, spec)
                if other != spec:
                    both = f"{label(other)} and {label(spec)}"
                    raise TaskError(
                        [f"{file}: given for {key}, which {self.path} reads as {both}; name a file for each"]
                    )
                table = file.lower().endswith((".csv", ".tsv"))
                found[spec] = DataSpec(path=file, columns=spec.columns if table else None)
        return found

    def _named(self, location: Location) -> DataSpec:
        """Returns the data that the task file names for a part."""
        spec = self._parts[location].data or self._spec.data
        assert spec is not None  # not input: read_spec refuses a part without data
        return spec

    def _gathered(self, faults: list[str], location: Location) -> list[Example]:
        """Returns the examples of a split or of few_shot; adds their faults to `faults`."""
        if location == _FEW_SHOT and self._spec.few_shot is None:
            return []
        try:
            if location not in self._examples_made:
                self._examples_made[location] = self._examples(location)
            return self._examples_made[location]
        except TaskError as error:
            faults += error.faults
            return []

    def _examples(self, location: Location) -> list[Example]:
        rows = self._rows(location)
        path = self._data(location).path
        start, end = self._parts[location].rows or (0, len(rows))
        if not len(rows):
            raise TaskError([self._source.fault(location, f"is empty: {path} has no rows")])
        if end > len(rows):
            until = f"end at {len(rows):,} or less" if start < len(rows) else "give it rows that exist"
            fault = f"rows {[start, end]}, but {path} has {len(rows):,} rows; {until}"
            raise TaskError([self._source.fault(self._key(location, "rows") or location, fault)])
        examples: list[Example] = []
        faults: dict[tuple[Location, str], list[int]] = {}
        for index in data_files.shuffled(len(rows), self._spec.shuffle)[start:end]:
            try:
                examples.append(self._example(location, rows[index], index))
            except RowFault as fault:
                # A wrong template fails on every row with the same message: it is reported once, with a count.
                faults.setdefault((fault.location, fault.message), []).append(index)
        if faults:
            lines = []
            for (key, message), indices in list(faults.items())[: data_files.MAX_FAULTS]:
                more = f" (and {len(indices) - 1:,} more rows)" if len(indices) > 1 else ""
                lines.append(self._source.fault(key, f"row {indices[0]} (from 0) of {path}: {message}{more}"))
            raise TaskError(lines)
        return examples

    def _example(self, location: Location, row: data_files.Row, index: int) -> Example:
        file = self.path.parent / self._data(location).path
        return make_example(self._spec, row, index, few_shot=location == _FEW_SHOT, folder=file.parent)

    def _key(self, location: Location, key: str) -> Location | None:
        """Returns the location of a key of a part, or None if the part does not have it."""
        return (*location, key) if (*location, key) in self._source.lines else None

    def _rows(self, location: Location) -> Sequence[data_files.Row]:
        spec = self._data(location)
        if spec not in self._rows_read:
            file = self.path.parent / spec.path
            try:
                if data_files.is_local(spec.path):
                    self._rows_read[spec] = data_files.read_rows(file, spec.columns)
                else:
                    self._rows_read[spec] = data_files.load_hub(spec.path, spec.name, str(spec.split), spec.revision)
            except TaskError as error:
                key = self._key(location, "data") or ("data",)
                # A fault without a line in the data file gets the line of the task file's key.
                lined = re.compile(re.escape(str(file)) + r":\d+: ")
                lines = [fault if lined.match(fault) else self._source.fault(key, fault) for fault in error.faults]
                raise TaskError(lines) from None
        return self._rows_read[spec]

    def _shared(self, location: Location, before: Location, shared: Sequence[tuple[tuple[str, ...], int, int]]) -> str:
        """Returns the fault of questions that two parts share, each with its row in both."""
        question, row, known = shared[0]
        return self._source.fault(
            location,
            f"{len(shared):,} of its questions are in {document.spelled(before)} too; the first is "
            f"{document.shown(question[0])}, row {row} (from 0) of {self._data(location).path} here and "
            f"row {known} of {self._data(before).path} there; remove them from one",
        )

    def _item(self, example: Example, shots: Sequence[Example]) -> Item:
        prompt, blanks = "", ""
        messages: list[dict[str, Any]] = []
        pictures = tuple(picture for one in (*shots, example) for picture in one.pictures)
        if self.chat:
            if example.system:
                messages.append(_turn("system", example.system))
            for shot in shots:
                messages.append(_turn("user", shot.prompt, shot.pictures))
                messages.append(_turn("assistant", shot.target))
            messages.append(_turn("user", example.prompt, example.pictures))
            if not pictures:
                messages = [{**turn, "content": turn["content"][0]["text"]} for turn in messages]
        else:
            separator = self._spec.few_shot.separator if self._spec.few_shot else ""
            whole = separator.join([*(shot.prompt + shot.target for shot in shots), example.prompt])
            prompt = whole.rstrip(_BLANKS)
            blanks = whole[len(prompt) :]
        target = "" if example.choices else example.target
        if self.type == "perplexity":
            target = blanks + target
        choices = tuple(blanks + choice for choice in example.choices)
        seen = [[picture.key for picture in pictures]] if pictures else []
        key = hash_of([self.type, prompt, messages, target, choices, example.answer, *seen])
        return Item(key, prompt, tuple(messages), target, choices, example.answer, pictures)


def _turn(role: str, text: str, pictures: Sequence[Picture] = ()) -> dict[str, Any]:
    images = [{"type": "image"} for _ in pictures]
    return {"role": role, "content": [*images, {"type": "text", "text": text}]}


def hash_of(value: Any) -> str:
    """Returns a hash, in hex, of plain data."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()
