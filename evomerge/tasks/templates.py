"""Jinja templates that turn one row of data into text or a value, in the sandbox of `sandbox.py`.

A row's null that would be printed as "None" is a fault, as is a missing field.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes

from evomerge.document import suggestion
from evomerge.tasks.sandbox import Sandbox, TemplateError, bounded, sized

__all__ = ["Template", "TemplateError"]

T = TypeVar("T")

_REFUSED = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)

_PRINTABLE = (
    str,
    int,
    float,
    Decimal,
    list,
    tuple,
    Mapping,
    datetime.date,
    datetime.time,
    datetime.timedelta,
)
"""What prints the same in every run: an object's address in memory does not."""


class Template:
    """One template of a task file, compiled.

    Every field of a row is a variable; the variable ``row`` is the whole row, for fields whose names are not
    identifiers: ``{{ row["answer number"] }}``. White space is kept as written. Beside Jinja's filters there
    are ``fromjson`` (the value of a JSON text) and ``prefixed`` (a list with a text before each member).

    Attributes:
        text: the template as written.
    """

    def __init__(self, text: str) -> None:
        """Compiles `text`.

        Raises:
            TemplateError: where it is not a template, or uses what is refused here.
        """
        self.text = text
        try:
            self._lone, self._template = bounded(self._compiled, timed=False)
        except jinja2.TemplateSyntaxError as fault:
            raise TemplateError(_syntax_message(fault)) from None

    def _compiled(self) -> tuple[bool, jinja2.Template]:
        tree = _ENVIRONMENT.tree(self.text)
        for node in tree.find_all(_REFUSED):
            raise TemplateError(f"a template may not use {type(node).__name__.lower()} (line {node.lineno} of it)")
        lone = _only_expression(tree)
        return lone is not None, _ENVIRONMENT.from_string(lone or tree)

    def render(self, row: Mapping[str, Any]) -> str:
        """Returns the text that the template makes of a row.

        Raises:
            TemplateError: where a field is missing or null, an operation is refused or fails, or the text
                would be too long.
        """
        if self._lone:
            return _guarded(lambda: str(_printed(self._value(row))), row)
        return _guarded(lambda: self._template.render({**row, "row": row}), row)

    def value(self, row: Mapping[str, Any]) -> Any:
        """Returns what the template's one expression gives, as it is: a list stays a list.

        A template with text around an expression gives a text, as `render`.

        Raises:
            TemplateError: as `render`.
        """
        return _guarded(lambda: sized(self._value(row)), row) if self._lone else self.render(row)

    def _value(self, row: Mapping[str, Any]) -> Any:
        module: Any = self._template.make_module({**row, "row": row})
        return module.evomerge_value


def _only_expression(tree: nodes.Template) -> nodes.Template | None:
    """Returns a template that keeps the value of the one ``{{ expression }}`` that `tree` is, else None."""
    if len(tree.body) != 1 or not isinstance(tree.body[0], nodes.Output):
        return None
    output = tree.body[0]
    if len(output.nodes) != 1 or isinstance(output.nodes[0], nodes.TemplateData):
        return None
    target = nodes.Name("evomerge_value", "store", lineno=1)
    assign = nodes.Assign(target, output.nodes[0], lineno=1)
    kept = nodes.Template([assign], lineno=1)
    return kept.set_environment(_ENVIRONMENT)  # type: ignore[return-value]


def _guarded(render: Callable[[], T], row: Mapping[str, Any]) -> T:
    """Returns what `render` returns; a missing field is told with the nearest."""
    try:
        return bounded(render)
    except jinja2.UndefinedError as fault:
        missing = re.fullmatch(r"'(.*)' is undefined", str(fault.message))
        if missing is None:
            raise TemplateError(str(fault.message)) from None
        near = suggestion(missing[1], map(str, row))
        fields = ", ".join(map(str, row)) or "no fields"
        near = near if "did you mean" in near else ""
        raise TemplateError(f'"{missing[1]}" is not a field{near}; the row has {fields}') from None


def _printed(value: Any) -> Any:
    """Returns the value that is about to be printed; refuses nulls, what is too long and what is no data."""
    if value is None:
        raise TemplateError('a null would be printed as "None"; use rows without nulls or | default("", true)')
    if not isinstance(value, (jinja2.Undefined, *_PRINTABLE)):
        hint = "; add | list or | join" if isinstance(value, Iterator) else ""
        raise TemplateError(f"a {type(value).__name__} is not text or a number, and cannot be printed{hint}")
    return sized(value)


def _prefixed(values: Any, prefix: str) -> list[str]:
    return [sized(prefix + str(_printed(value))) for value in values]


def _from_json(text: str) -> Any:
    return sized(json.loads(text))


def _syntax_message(fault: jinja2.TemplateSyntaxError) -> str:
    message = str(fault.message).rstrip(".")
    unknown = re.fullmatch(r"No filter named '(.*)'", message)
    near = suggestion(unknown[1], set(_ENVIRONMENT.filters) - {"sized"}) if unknown else ""
    return f"not a valid template (line {fault.lineno} of it): {message}{near}"


_ENVIRONMENT = Sandbox(_printed, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters |= {"fromjson": _from_json, "prefixed": _prefixed}
