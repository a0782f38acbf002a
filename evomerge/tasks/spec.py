"""A task file's keys: one strict pydantic model for each type of task, and the checks across keys.

Everything here is known from the YAML file alone; nothing reads data.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import regex
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    model_validator,
)

from evomerge import document
from evomerge.document import Location, Source, Strict
from evomerge.errors import TaskError
from evomerge.tasks.data import SUFFIXES, is_hub_id, is_local
from evomerge.tasks.templates import Template, TemplateError


def _template(text: str) -> str:
    try:
        Template(text)
    except TemplateError as fault:
        raise ValueError(str(fault)) from None
    return text


def _pattern(text: str) -> str:
    try:
        groups = re.compile(text).groups
        regex.compile(text)  # which searches, with a bound on its time; its own extensions are no part of a task
    except (re.error, regex.error, RecursionError, OverflowError) as fault:
        raise ValueError(f"not a regular expression: {fault}") from None
    if groups > 1:
        raise ValueError(f"{groups} groups; one group holds the answer, write (?:...) for the others")
    return text


def _rows(rows: tuple[int, int]) -> tuple[int, int]:
    if rows[0] >= rows[1]:
        raise ValueError(f"rows {list(rows)} are empty; the end is exclusive and lies past the start")
    return rows


def _choices(choices: Any) -> Any:
    if isinstance(choices, list):
        if len(choices) < 2:
            raise ValueError(f"{len(choices)} choices; a list has two or more")
        for choice in choices:
            if not isinstance(choice, str):
                raise ValueError(f"the choice {choice!r} is not text; put it in quotation marks")
    elif isinstance(choices, str) and "{" not in choices:
        return f"{{{{ row[{choices!r}] }}}}"
    return choices


Index = Annotated[StrictInt, Field(ge=0)]
Rows = Annotated[tuple[Index, Index], AfterValidator(_rows)]
TemplateText = Annotated[str, AfterValidator(_template)]
FilledTemplate = Annotated[str, Field(min_length=1), AfterValidator(_template)]


class DataSpec(Strict):
    """Where rows come from: a local file, or a data set on the Hub."""

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: list[str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> DataSpec:
        if is_local(self.path):
            for key in ("name", "split", "revision"):
                if getattr(self, key) is not None:
                    raise ValueError(f'"{key}" is for data sets on the Hub; {self.path} is a local file')
            if self.columns is not None and not self.path.lower().endswith((".csv", ".tsv")):
                raise ValueError(f'"columns" is for CSV and TSV files; {self.path} names its own fields')
            if self.columns is not None and len(set(self.columns)) < len(self.columns):
                raise ValueError('"columns" names a column twice')
            return self
        kinds = ", ".join(SUFFIXES)
        if not is_hub_id(self.path):
            raise ValueError(f'"{self.path}" is neither a data file ({kinds}) nor a Hub id (owner/name)')
        if self.split is None:
            raise ValueError(
                f'"{self.path}" is no data file ({kinds}), and as a Hub id it needs its split: '
                f"write {{path: {self.path}, split: test}}"
            )
        if self.columns is not None:
            raise ValueError('"columns" is for CSV and TSV files')
        return self


class SplitSpec(Strict):
    """The rows of one split: ``[start, end]``, or a mapping with data of its own."""

    rows: Rows | None = None
    data: DataSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"rows": value} if isinstance(value, list) else value


class Splits(Strict):
    """The two splits: candidates are searched on one, and judged on the other."""

    search: SplitSpec
    holdout: SplitSpec


class FewShotSpec(SplitSpec):
    """Solved examples before each prompt."""

    separator: str = "\n\n"
    target: TemplateText | None = None

    @model_validator(mode="after")
    def _bounded(self) -> FewShotSpec:
        if self.rows is None and self.data is None:
            raise ValueError('"rows" is missing; name the rows that are the examples, such as [0, 4]')
        return self


class RegexSpec(Strict):
    """A metric that is a pattern."""

    regex: Annotated[str, AfterValidator(_pattern)]


class TaskSpec(Strict):
    """What all types have in common."""

    metrics: ClassVar[tuple[str, ...]]
    """The metrics of the type; the first is the default."""

    type: str
    name: Annotated[str, Field(pattern=r"^\w[\w. -]{0,99}$")] | None = None
    data: DataSpec | None = None
    system: TemplateText | None = None
    chat: StrictBool = False
    few_shot: FewShotSpec | None = None
    splits: Splits
    shuffle: Index | None = None


def _metric(*names: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in names:
            raise ValueError(f'unknown metric "{value}"{document.suggestion(value, names)}')
        return value

    return BeforeValidator(check)


_GENERATE = ("exact_match", "last_number")
_CHOICE = ("accuracy", "accuracy_norm")
_PERPLEXITY = ("nll_per_token", "bits_per_byte")


class GenerateSpec(TaskSpec):
    """The model writes, greedily; what it wrote is compared with the target."""

    metrics = _GENERATE

    prompt: FilledTemplate
    target: FilledTemplate
    metric: Annotated[
        Annotated[str, Tag("a name")] | Annotated[RegexSpec, Tag("a pattern")],
        # Told apart here, or pydantic would give the faults of both.
        Discriminator(lambda value: "a pattern" if isinstance(value, dict | RegexSpec) else "a name"),
        _metric(*_GENERATE),
    ] = _GENERATE[0]
    max_new_tokens: Annotated[StrictInt, Field(ge=1, le=131_072)] = 256
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(default_factory=list)


class ChoiceSpec(TaskSpec):
    """The model chooses: the choice with the highest log-likelihood given the prompt."""

    metrics = _CHOICE

    prompt: FilledTemplate
    choices: Annotated[
        Annotated[list[TemplateText], Tag("several")] | Annotated[TemplateText, Tag("one")],
        Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
        BeforeValidator(_choices),
    ]
    answer: Annotated[TemplateText, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
    metric: Annotated[str, _metric(*_CHOICE)] = _CHOICE[0]


class PerplexitySpec(TaskSpec):
    """The model reads: how likely it finds the target given the prompt."""

    metrics = _PERPLEXITY

    prompt: TemplateText = ""
    target: FilledTemplate
    metric: Annotated[str, _metric(*_PERPLEXITY)] = _PERPLEXITY[0]


TYPES: dict[str, type[GenerateSpec] | type[ChoiceSpec] | type[PerplexitySpec]] = {
    "generate": GenerateSpec,
    "multiple_choice": ChoiceSpec,
    "perplexity": PerplexitySpec,
}
AnySpec = GenerateSpec | ChoiceSpec | PerplexitySpec


def read_spec(source: Source) -> AnySpec:
    """Returns a task file's keys, checked.

    Raises:
        TaskError: with a line for every fault of the file.
    """
    raw = source.data
    if not isinstance(raw, dict):
        document.validate(source, TaskSpec, TaskError)  # says that it must be a mapping
    faults: list[str] = []
    kind = raw.get("type")
    if kind not in TYPES:
        if "type" in raw:
            faults.append(source.fault(("type",), f"unknown type {kind!r}{document.suggestion(str(kind), TYPES)}"))
        else:
            faults.append(source.fault((), f'"type" is missing; add one of {", ".join(TYPES)}'))
        near = difflib.get_close_matches(str(kind), TYPES, n=1)
        # The other keys are checked too, as those of the type that was most likely meant.
        kind = near[0] if near else ("multiple_choice" if "choices" in raw else "generate")
    model = TYPES[str(kind)]
    data = {**raw, "type": kind}
    for key in list(data):
        owners = [name for name, other in TYPES.items() if key in other.model_fields]
        if owners and key not in model.model_fields:
            faults.append(source.fault((key,), f"is for tasks of type {' or '.join(owners)}; this is {kind}"))
            del data[key]
    faults += across(source)
    try:
        spec = document.validate(dataclasses.replace(source, data=data), model, TaskError)
    except TaskError as fault:
        faults += fault.faults
    if faults:
        raise TaskError(sorted(dict.fromkeys(faults), key=_line))
    return spec


def _line(fault: str) -> int:
    found = re.search(r":(\d+): ", fault)
    return int(found[1]) if found else 0


def across(source: Source) -> Iterator[str]:
    """Yields the faults between keys, from the raw document, so that no other fault hides them."""
    raw = source.data
    if raw.get("system") is not None and raw.get("chat") is not True:
        yield source.fault(("system",), 'is a turn of a chat; add "chat: true", or put it into the prompt')
    shots = raw.get("few_shot")
    if raw.get("type") == "multiple_choice" and isinstance(shots, dict) and "target" in shots:
        yield source.fault(("few_shot", "target"), "is not for multiple_choice: its examples end in the choice")
    splits = raw.get("splits") if isinstance(raw.get("splits"), dict) else {}
    parts: dict[Location, Any] = {("splits", name): splits.get(name) for name in ("search", "holdout")}
    parts["few_shot",] = shots
    places: list[tuple[Location, SplitSpec]] = []
    for location, part in parts.items():
        if part is None:
            continue
        own = part if isinstance(part, dict) else {"rows": part}
        if own.get("data", raw.get("data")) is None:
            yield source.fault(location, 'has no data; add "data" here or to the task')
        known = {"rows": own.get("rows"), "data": own.get("data", raw.get("data"))}
        try:
            places.append((location, SplitSpec.model_validate(known)))
        except ValueError:
            continue  # the model's own check tells what is wrong with it
    for i, (location, one) in enumerate(places):
        for before, other in places[:i]:
            if one.data != other.data or one.data is None:
                continue
            mine, theirs = one.rows or (0, 10**18), other.rows or (0, 10**18)
            if max(mine[0], theirs[0]) < min(mine[1], theirs[1]):
                shared = f"{_spelled(one)} overlap {document.spelled(before)}, {_spelled(other)} of the same data"
                yield source.fault(location, f"{shared}; give it rows of its own")


def _spelled(split: SplitSpec) -> str:
    return f"rows {list(split.rows)}" if split.rows else "all rows"
