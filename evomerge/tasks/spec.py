"""A task file's keys: one strict pydantic model for each type of task, and the checks across keys.

All checks here need the YAML file alone; nothing reads data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

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
from evomerge.metrics import METRICS, check_language_code
from evomerge.tasks.data import SUFFIXES, is_hub_id, is_local
from evomerge.tasks.templates import Template


def _rows(rows: tuple[int, int]) -> tuple[int, int]:
    if rows[0] >= rows[1]:
        raise ValueError(f"rows {list(rows)} are empty; the end is exclusive, so make it greater than the start")
    return rows


def _filled(text: Any) -> Any:
    if text == "":
        raise ValueError("is empty; write a template, such as {{ question }}")
    return text


def _column(text: Any) -> Any:
    """Returns a template for the column `text`, unless it is a template itself."""
    return f"{{{{ row[{text!r}] }}}}" if isinstance(text, str) and "{" not in text else text


Index = Annotated[StrictInt, Field(ge=0)]
Rows = Annotated[tuple[Index, Index], AfterValidator(_rows)]
FilledTemplate = Annotated[Template, BeforeValidator(_filled)]
Columns = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=list[str] | str
    ),
]


class DataSpec(Strict):
    """Where rows come from; the path alone may stand for the mapping.

    Attributes:
        path: a JSONL, CSV, TSV or Parquet file, beside the task file; or the id of a data set on the Hub.
        name: the configuration of a data set on the Hub.
        split: the split of a data set on the Hub, which needs one.
        revision: the branch, tag or commit of a data set on the Hub.
        columns: the names of the columns of a CSV or TSV file without a header; with a data set on the Hub, of such a
            file that is read instead.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> DataSpec:
        local, kinds = is_local(self.path), ", ".join(SUFFIXES)
        if not local and not is_hub_id(self.path):
            raise ValueError(f'"{self.path}" is neither a data file ({kinds}) nor a Hub id (owner/name)')
        if not local and self.split is None:
            raise ValueError(
                f'"{self.path}" is not a data file ({kinds}); a Hub data set needs its split: '
                f"write {{path: {self.path}, split: test}}"
            )
        for key in ("name", "split", "revision"):
            if local and getattr(self, key) is not None:
                raise ValueError(f'"{key}" is for data sets on the Hub; {self.path} is a local file')
        if self.columns is not None and local and not self.path.lower().endswith((".csv", ".tsv")):
            raise ValueError(f'"columns" is for CSV and TSV files; {self.path} names its own fields')
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError('"columns" names a column twice')
        return self


Data = Annotated[
    DataSpec,
    BeforeValidator(
        lambda value: {"path": value} if isinstance(value, str) else value, json_schema_input_type=DataSpec | str
    ),
]
"""Where rows come from, or its path alone."""


class SplitSpec(Strict):
    """The rows of one split; ``[start, end]`` alone may stand for the mapping.

    Attributes:
        rows: the first row, counted from 0, and the one after the last; by default all.
        data: where they come from, if not from the task's data.
    """

    rows: Rows | None = None
    data: Data | None = None


def _from_rows(value: Any) -> Any:
    return {"rows": value} if isinstance(value, list) else value


SplitRows = Annotated[SplitSpec, BeforeValidator(_from_rows, json_schema_input_type=SplitSpec | Rows)]
"""The rows of one split, or ``[start, end]``."""


class Splits(Strict):
    """The two splits, which must not share a question.

    Attributes:
        search: what a search scores candidates on.
        holdout: what the final models are scored on.
    """

    search: SplitRows
    holdout: SplitRows


class FewShotSpec(SplitSpec):
    """Solved examples before each prompt; ``[start, end]`` alone may stand for the mapping.

    Attributes:
        rows: the rows of the examples: the first, counted from 0, and the one after the last.
        data: where they come from, if not from the task's data.
        separator: what is between an example and what follows it.
        target: a template for what an example ends in, if not in the task's target.
    """

    separator: str = "\n\n"
    target: Template | None = None

    @model_validator(mode="after")
    def _bounded(self) -> FewShotSpec:
        if self.rows is None and self.data is None:
            raise ValueError('"rows" is missing; add the rows of the examples, such as [0, 4]')
        return self


DEFAULT_METRIC = "exact_match"
"""How completions are scored where a task does not say."""


class MetricSpec(Strict):
    """A metric of completions: its name, or ``{NAME: OPTION}``.

    Attributes:
        name: a name from the table of metrics.
        option: what the metric is given beside completion and target.
    """

    name: str
    option: Any = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1:
            return {"name": next(iter(value)), "option": next(iter(value.values()))}
        raise ValueError(f"expected a name, or {{NAME: OPTION}}, found {document.shown(value)}")

    @model_validator(mode="after")
    def _known(self) -> MetricSpec:
        fault = METRICS.fault(self.name)
        if fault:
            raise ValueError(fault)
        try:
            METRICS[self.name].check_option(self.option)
        except ValueError as fault:
            raise ValueError(f"{self.name}: {fault}") from None
        return self


class TaskSpec(Strict):
    """The keys of all types.

    Attributes:
        type: ``generate``, ``multiple_choice`` or ``perplexity``.
        name: what results call the task; by default the file's name without its ending.
        data: where rows come from; a split may have its own.
        system: a template for the system message of a chat.
        chat: ask in the model's chat template.
        few_shot: solved examples before each prompt.
        splits: the rows for the search and for the holdout.
        shuffle: a seed: rows are counted in an order drawn from it.
    """

    type: str
    name: Annotated[str, Field(pattern=r"^\w[\w. -]{0,99}$")] | None = None
    data: Data | None = None
    system: Template | None = None
    chat: StrictBool = False
    few_shot: Annotated[
        FewShotSpec | None, BeforeValidator(_from_rows, json_schema_input_type=FewShotSpec | Rows | None)
    ] = None
    splits: Splits
    shuffle: Index | None = None


class GenerateSpec(TaskSpec):
    """The model completes the prompt, greedily; the completion is compared with the target.

    Attributes:
        prompt: a template for what the model continues.
        target: a template for the right answer.
        metric: how a completion is compared with the target.
        images: the column of an image, or the columns of several, that come before the prompt's text.
        require_language: a language's code, such as ja; a completion in another language scores 0.
        max_new_tokens: the most tokens of a completion.
        stop: a text, or a list of texts, that end a completion.
    """

    prompt: FilledTemplate
    target: FilledTemplate
    metric: MetricSpec = Field(default_factory=lambda: MetricSpec.model_validate(DEFAULT_METRIC))
    images: Columns | None = None
    require_language: Annotated[str, AfterValidator(check_language_code)] | None = None
    max_new_tokens: Annotated[StrictInt, Field(ge=1, le=131_072)] = 256
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=list[str] | str
        ),
    ] = Field(default_factory=list)


class ChoiceSpec(TaskSpec):
    """The model picks the choice with the highest log-likelihood given the prompt.

    Attributes:
        prompt: a template for what the choices continue.
        choices: a template for each choice; or one that gives the list of them, or the name of its column.
        answer: a template for the number of the right choice, counted from 0.
        images: the column of an image, or the columns of several, that come before the prompt's text.
        metric: ``accuracy``, or ``accuracy_norm``: the log-likelihood is divided by the choice's characters.
    """

    prompt: FilledTemplate
    choices: Annotated[
        Annotated[list[Template], Field(min_length=2), Tag("several")] | Annotated[Template, Tag("one")],
        Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
        BeforeValidator(_column),
    ]
    answer: Annotated[
        Template,
        BeforeValidator(
            lambda value: str(value) if type(value) is int else value, json_schema_input_type=Template | int
        ),
    ]
    images: Columns | None = None
    metric: Literal["accuracy", "accuracy_norm"] = "accuracy"


class PerplexitySpec(TaskSpec):
    """The model reads the target; its likelihood given the prompt is measured.

    Attributes:
        prompt: a template for the text before the target.
        target: a template for the text whose likelihood is measured.
        metric: ``nll_per_token``: nats per token; ``bits_per_byte``: bits per byte of the target in UTF-8.
    """

    prompt: Template | None = None
    target: FilledTemplate
    metric: Literal["nll_per_token", "bits_per_byte"] = "nll_per_token"


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
        document.validate(source, TaskSpec, TaskError)  # reports that it must be a mapping
    faults: list[str] = []
    kind = str(raw.get("type"))
    if kind not in TYPES:
        missing = f'"type" is missing; add one of {", ".join(TYPES)}'
        unknown = f"unknown type {document.shown(raw.get('type'))}{document.suggestion(kind, TYPES)}"
        faults.append(source.fault(("type",), unknown) if "type" in raw else source.fault((), missing))
        # The other keys are checked too, as keys of the type that was most likely meant.
        near = difflib.get_close_matches(kind, TYPES, n=1)
        kind = near[0] if near else ("multiple_choice" if "choices" in raw else "generate")
    model = TYPES[kind]
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
    """Yields the faults between keys, from the raw document, so that other faults do not hide them."""
    raw = source.data
    if raw.get("system") is not None and raw.get("chat") is not True:
        yield source.fault(("system",), 'needs a chat; add "chat: true", or move the text into the prompt')
    if raw.get("images") is not None and raw.get("chat") is not True:
        text = 'needs a chat; add "chat: true": the model\'s chat template says where its images are'
        yield source.fault(("images",), text)
    splits = raw.get("splits") if isinstance(raw.get("splits"), dict) else {}
    parts: dict[Location, Any] = {("splits", name): splits.get(name) for name in ("search", "holdout")}
    parts["few_shot",] = shots = raw.get("few_shot")
    if raw.get("type") == "multiple_choice" and isinstance(shots, dict) and "target" in shots:
        yield source.fault(("few_shot", "target"), "is not for multiple_choice: its examples end in the choice")
    valid: dict[Location, SplitSpec] = {}
    for location, part in parts.items():
        own = part if isinstance(part, dict) else {"rows": part}
        data = own.get("data", raw.get("data"))
        if part is not None and data is None:
            yield source.fault(location, 'has no data; add "data" here or to the task')
        elif part is not None:
            with contextlib.suppress(ValueError):  # the model's own check reports it
                valid[location] = SplitSpec.model_validate({"rows": own.get("rows"), "data": data})
    for (before, other), (location, one) in itertools.combinations(valid.items(), 2):
        mine, theirs = one.rows or (0, sys.maxsize), other.rows or (0, sys.maxsize)
        if one.data == other.data and max(mine[0], theirs[0]) < min(mine[1], theirs[1]):
            shared = f"{_range(one)} overlap {document.spelled(before)}, {_range(other)} of the same data"
            yield source.fault(location, f"{shared}; give it other rows")


def _range(split: SplitSpec) -> str:
    return f"rows {list(split.rows)}" if split.rows else "all rows"
