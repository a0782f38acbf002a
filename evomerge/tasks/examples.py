"""One row of data to one example: its prompt, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.document import Location
from evomerge.metrics import number_in
from evomerge.tasks.spec import AnySpec, ChoiceSpec
from evomerge.tasks.templates import Template, TemplateError


@dataclass(frozen=True)
class Example:
    """One row, rendered.

    Attributes:
        row: the row's place in its data, from 0, whatever the shuffle.
        prompt: the prompt alone, without examples or chat.
        system: the chat's system turn, "" where there is none.
        target: what is right, as text; for multiple choice the right choice.
        choices: multiple choice only.
        answer: the index of the right choice, -1 for the other types.
    """

    row: int
    prompt: str
    system: str
    target: str
    choices: tuple[str, ...] = ()
    answer: int = -1

    def question(self, kind: str) -> tuple[str, ...]:
        """Returns what makes the question the same question: equal for two rows that ask the same.

        White space and the order of choices do not matter. A perplexity task asks for its target, so the
        target belongs to the question there; elsewhere it does not.
        """
        parts = [self.prompt, *sorted(self.choices)] + ([self.target] if kind == "perplexity" else [])
        return tuple(" ".join(part.split()) for part in parts)


class RowFault(Exception):
    """A row cannot be made an example.

    Attributes:
        location: the key of the task file whose template met the row.
        message: what is wrong.
    """

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location
        self.message = message


class Renderer:
    """The templates of a task, compiled once."""

    def __init__(self, spec: AnySpec) -> None:
        """Compiles the templates of `spec`, which are known to be valid."""
        self.spec = spec
        self._prompt = Template(spec.prompt)
        self._system = Template(spec.system or "")
        self._choices: Template | list[Template] = []
        if isinstance(spec, ChoiceSpec):
            several = isinstance(spec.choices, list)
            self._choices = [Template(c) for c in spec.choices] if several else Template(str(spec.choices))
            self._answer = Template(spec.answer)
        else:
            self._target = Template(spec.target)
            shots = spec.few_shot
            self._shot_target = Template(shots.target) if shots and shots.target else self._target

    def example(self, row: Mapping[str, Any], index: int, few_shot: bool) -> Example:
        """Returns the example that `row` makes.

        Args:
            row: the fields.
            index: the row's place in its data.
            few_shot: whether it stands before prompts as a solved example.

        Raises:
            RowFault: where a template cannot be rendered, or what it gives makes no sense.
        """
        prompt = _text(self._prompt, row, ("prompt",))
        system = _text(self._system, row, ("system",))
        if not prompt.strip() and self.spec.type != "perplexity":
            raise RowFault(("prompt",), "is empty")
        if isinstance(self.spec, ChoiceSpec):
            choices = self._choices_of(row)
            answer = _answer(self._answer, row, choices)
            return Example(index, prompt, system, choices[answer], choices, answer)
        template: Template = self._target
        location: Location = ("target",)
        if few_shot and self._shot_target is not self._target:
            template, location = self._shot_target, ("few_shot", "target")
        target = _text(template, row, location)
        if not target.strip():
            raise RowFault(location, "is empty")
        if self.spec.metric == "last_number" and not few_shot and number_in(target) is None:
            raise RowFault(location, f"{_short(target)} has no number, which last_number compares")
        return Example(index, prompt, system, target)

    def _choices_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        if isinstance(self._choices, list):
            texts = [_text(choice, row, ("choices", i)) for i, choice in enumerate(self._choices)]
        else:
            values = _value(self._choices, row, ("choices",))
            if not isinstance(values, list | tuple):
                found = _short(values)
                raise RowFault(("choices",), f"expected a list, found {found}; of JSON text, | fromjson makes one")
            texts = [str(value) for value in values if isinstance(value, str | int | float)]
            if len(texts) < len(values):
                raise RowFault(("choices",), f"expected texts, found {_short(values)}")
        for i, text in enumerate(texts):
            _encodable(text, ("choices",))
            if not text.strip():
                raise RowFault(("choices",), f"choice {i} is empty")
        if len(texts) < 2:
            raise RowFault(("choices",), f"expected two or more, found {_short(texts)}")
        stripped = [text.strip() for text in texts]
        for i, text in enumerate(stripped):
            if (first := stripped.index(text)) < i:
                raise RowFault(
                    ("choices",), f"choices {first} and {i} are both {_short(text)}; make them differ, or leave it out"
                )
        return tuple(texts)


def _answer(template: Template, row: Mapping[str, Any], choices: tuple[str, ...]) -> int:
    """Returns the index of the right choice: the value is an index from 0, a letter, or the choice's text."""
    value = _value(template, row, ("answer",))
    count = len(choices)
    meanings: dict[str, int] = {}
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value != int(value) or not 0 <= value < count:
            raise RowFault(("answer",), f"is {value!r}, but the choices count from 0 to {count - 1}")
        meanings["the index"] = int(value)
    elif isinstance(value, str | bool):
        text = str(value).strip()
        stripped = [choice.strip() for choice in choices]
        if text in stripped:
            meanings["the text of choice"] = stripped.index(text)
        if text.isascii() and text.isdigit() and int(text) < count:
            meanings["the index"] = int(text)
        if len(text) == 1 and "A" <= text.upper() <= "Z" and ord(text.upper()) - ord("A") < count:
            meanings["the letter of choice"] = ord(text.upper()) - ord("A")
    if not meanings:
        raise RowFault(
            ("answer",),
            f"is {_short(value)}; expected an index from 0 to {count - 1}, a letter from A to "
            f"{chr(ord('A') + min(count, 26) - 1)}, or one of the choices {_short(list(choices))}",
        )
    if len(set(meanings.values())) > 1:
        readings = " and ".join(f"{meaning} {index}" for meaning, index in meanings.items())
        raise RowFault(
            ("answer",), f"{_short(value)} is {readings}; make it a number, with | int or choices.index(...)"
        )
    return next(iter(meanings.values()))


def _text(template: Template, row: Mapping[str, Any], location: Location) -> str:
    try:
        text = template.render(row)
    except TemplateError as fault:
        raise RowFault(location, str(fault)) from None
    _encodable(text, location)
    return text


def _value(template: Template, row: Mapping[str, Any], location: Location) -> Any:
    try:
        return template.value(row)
    except TemplateError as fault:
        raise RowFault(location, str(fault)) from None


def _encodable(text: str, location: Location) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        bad = ascii(text[fault.start])
        raise RowFault(location, f"holds half a character ({bad}), which is not text; mend the data") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
