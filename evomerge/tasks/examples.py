"""Turns one row of data into one example: its prompt and its right answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from evomerge.document import Location, shown, suggestion
from evomerge.metrics import METRICS
from evomerge.tasks.pictures import Picture, pictures_in
from evomerge.tasks.spec import AnySpec, ChoiceSpec, GenerateSpec, PerplexitySpec
from evomerge.tasks.templates import TemplateError


@dataclass(frozen=True)
class Example:
    """One row, rendered.

    Attributes:
        row: the row's index in its data, from 0, before shuffling.
        prompt: the prompt alone, without few-shot examples or chat.
        system: the chat's system turn, "" if there is none.
        target: the right answer as text; for multiple choice the right choice.
        choices: multiple choice only.
        answer: the index of the right choice, -1 for the other types.
        pictures: what the model sees, in order.
    """

    row: int
    prompt: str
    system: str
    target: str
    choices: tuple[str, ...] = ()
    answer: int = -1
    pictures: tuple[Picture, ...] = ()

    def question(self, kind: str) -> tuple[str, ...]:
        """Returns what identifies the question: equal for two rows that ask the same.

        White space and the order of choices do not matter. A perplexity task asks for its target, so the
        target belongs to the question there; elsewhere it does not.
        """
        parts = [self.prompt, *sorted(self.choices)] + ([self.target] if kind == "perplexity" else [])
        parts += [picture.key for picture in self.pictures]
        return tuple(" ".join(part.split()) for part in parts)


class RowFault(Exception):
    """A row does not make an example.

    Attributes:
        location: the key of the task file whose template has the fault.
        message: the fault.
    """

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location
        self.message = message


def make_example(spec: AnySpec, row: Mapping[str, Any], index: int, few_shot: bool, folder: Path) -> Example:
    """Returns the example that `row` makes.

    Args:
        spec: the task's keys.
        row: the fields.
        index: the row's index in its data.
        few_shot: whether it is a solved example before the prompts.
        folder: where the paths of its images begin.

    Raises:
        RowFault: a template cannot be rendered, or its result makes no sense.
    """
    columns = () if isinstance(spec, PerplexitySpec) else spec.images or ()
    pictures = tuple(picture for column in columns for picture in _seen(row, column, folder))
    # Templates have no use for an image's bytes, which would be sent to the process that renders them.
    row = {key: value for key, value in row.items() if key not in columns}
    prompt = _made(spec.prompt.render, row, ("prompt",)) if spec.prompt else ""
    system = _made(spec.system.render, row, ("system",)) if spec.system else ""
    if not prompt.strip() and spec.type != "perplexity":
        raise RowFault(("prompt",), "is empty")
    if isinstance(spec, ChoiceSpec):
        choices = _choices(spec, row)
        answer = _answer(_made(spec.answer.value, row, ("answer",)), choices)
        return Example(index, prompt, system, choices[answer], choices, answer, pictures)
    template, location = spec.target, cast(Location, ("target",))
    if few_shot and spec.few_shot and spec.few_shot.target:
        template, location = spec.few_shot.target, ("few_shot", "target")
    target = _made(template.render, row, location)
    if not target.strip():
        raise RowFault(location, "is empty")
    if isinstance(spec, GenerateSpec) and not few_shot:
        try:
            METRICS[spec.metric.name].check_target(target, spec.metric.option)
        except ValueError as fault:
            raise RowFault(location, str(fault)) from None
    return Example(index, prompt, system, target, pictures=pictures)


def _seen(row: Mapping[str, Any], column: str, folder: Path) -> tuple[Picture, ...]:
    if column not in row:
        raise RowFault(("images",), f'there is no column "{column}"{suggestion(column, row)}')
    try:
        return pictures_in(row[column], folder)
    except ValueError as fault:
        raise RowFault(("images",), f"{column}: {fault}") from None


def _choices(spec: ChoiceSpec, row: Mapping[str, Any]) -> tuple[str, ...]:
    where = ("choices",)
    if isinstance(spec.choices, list):
        values = [_made(choice.render, row, (*where, i)) for i, choice in enumerate(spec.choices)]
    else:
        values = _made(spec.choices.value, row, where)
    if not isinstance(values, list):
        raise RowFault(where, f"expected a list, found {shown(values)}; for JSON text, add | fromjson")
    if len(values) < 2 or not all(isinstance(value, str | int | float) for value in values):
        raise RowFault(where, f"expected two or more texts, found {shown(values)}")
    stripped = [str(value).strip() for value in values]
    for i, text in enumerate(stripped):
        if not text:
            raise RowFault(where, f"choice {i} is empty")
        if (first := stripped.index(text)) < i:
            raise RowFault(where, f"choices {first} and {i} are both {shown(text)}; change or remove one")
    return tuple(map(str, values))


def _answer(value: Any, choices: Sequence[str]) -> int:
    """Returns the index of the right choice: `value` is an index from 0, a letter, or the choice's text."""
    last = len(choices) - 1
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: last + 1]
    meanings: dict[str, int] = {}
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value in range(last + 1):
            meanings["the index"] = int(value)
    elif isinstance(value, str | bool):
        text = str(value).strip()
        stripped = [choice.strip() for choice in choices]
        if text in stripped:
            meanings["the text of choice"] = stripped.index(text)
        if text.isascii() and text.isdigit() and int(text) <= last:
            meanings["the index"] = int(text)
        if len(text) == 1 and text.isascii() and text.upper() in letters:
            meanings["the letter of choice"] = letters.index(text.upper())
    if not meanings:
        expected = (
            f"an index from 0 to {last}, a letter from A to {letters[-1]}, or one of the choices {shown(choices)}"
        )
        raise RowFault(("answer",), f"is {shown(value)}; expected {expected}")
    if len(set(meanings.values())) > 1:
        readings = " and ".join(f"{meaning} {index}" for meaning, index in meanings.items())
        advice = "make it a number, with | int or choices.index(...)"
        raise RowFault(("answer",), f"{shown(value)} is {readings}; {advice}")
    return next(iter(meanings.values()))


def _made(render: Callable[[Mapping[str, Any]], Any], row: Mapping[str, Any], location: Location) -> Any:
    """Returns what a template makes of a row."""
    try:
        made = render(row)
        text = "".join(map(str, made)) if isinstance(made, list) else str(made)
        text.encode()
    except TemplateError as fault:
        raise RowFault(location, str(fault)) from None
    except UnicodeEncodeError as fault:
        bad = ascii(text[fault.start])
        raise RowFault(location, f"has half a character ({bad}), which is not text; fix the data") from None
    return made
