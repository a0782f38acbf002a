"""Jinja over one row of data, in a sandbox: a template can shape text and do nothing else.

Jinja's own sandbox keeps a template from reaching Python's internals and from changing the row. It does not
bound time or memory, so this file does: only the filters and methods listed here exist, each operation that
can make text grow is measured before it is done, loops have a budget of steps, and macros, includes and
recursive loops are refused. A row's null that would be printed as "None" is a fault, as is a missing field.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from decimal import Decimal
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from evomerge.document import suggestion

T = TypeVar("T")

MAX_TEXT = 1_000_000
"""Characters (or list members) that one operation or a whole rendering may make; no context holds more."""

MAX_STEPS = 10_000
"""Steps of all loops of one rendering together."""

MAX_TEMPLATE = 100_000
"""Characters of a template; few-shot examples belong in data."""

MAX_BITS = 4_096
"""Bits of a whole number; larger ones take long to print."""

_FILTERS = """
    abs capitalize count d default dictsort first float groupby int items last length list lower map max min
    reject rejectattr reverse select selectattr sort title trim unique upper wordcount
"""
"""Jinja's own filters that are kept: none can make text grow or draw random numbers."""

_TEXT_METHODS = """
    capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace
    isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit
    rstrip split splitlines startswith strip swapcase title upper
"""

_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    bytes: frozenset(),
    int: frozenset(),
    float: frozenset({"is_integer"}),
}

_REFUSED = (
    *(nodes.Macro, nodes.CallBlock, nodes.Block, nodes.Extends, nodes.Include, nodes.Import),
    *(nodes.FromImport, nodes.FilterBlock, nodes.AssignBlock),
)

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

_steps_left: ContextVar[list[int]] = ContextVar("_steps_left")


class TemplateError(ValueError):
    """A template is not valid, or cannot be rendered with a row; the text says why."""


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
        if len(text) > MAX_TEMPLATE:
            raise TemplateError(f"a template of {len(text):,} characters; at most {MAX_TEMPLATE:,}")
        try:
            tree = _ENVIRONMENT.parse(text)
            for node in tree.find_all(_REFUSED):
                kind = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).lower()
                raise TemplateError(f"a template may not use {kind} (line {node.lineno} of it); write it out")
            if any(loop.recursive for loop in tree.find_all(nodes.For)):
                raise TemplateError("a template may not use a recursive loop; write it out")
            tree = _Bounded().visit(tree)
            self._expression = _only_expression(tree)
            self._template = _ENVIRONMENT.from_string(self._expression or tree)
        except jinja2.TemplateSyntaxError as fault:
            raise TemplateError(_syntax_message(fault)) from None
        except (RecursionError, MemoryError, SyntaxError):
            raise TemplateError("the template is nested too deeply") from None

    def render(self, row: Mapping[str, Any]) -> str:
        """Returns the text that the template makes of a row.

        Raises:
            TemplateError: where a field is missing or null, an operation is refused or fails, or the text
                would be too long.
        """
        if self._expression is not None:
            return _guarded(lambda: str(_printed(self._value(row))), row)
        return _guarded(lambda: _joined_up(self._template.generate({**row, "row": row})), row)

    def value(self, row: Mapping[str, Any]) -> Any:
        """Returns what the template's one expression gives, as it is: a list stays a list.

        A template with text around an expression gives a text, as `render`.

        Raises:
            TemplateError: as `render`.
        """
        if self._expression is None:
            return self.render(row)
        return _guarded(lambda: _within_limits(self._value(row)), row)

    def _value(self, row: Mapping[str, Any]) -> Any:
        module: Any = self._template.make_module({**row, "row": row})
        return module.evomerge_value


class _Bounded(NodeTransformer):
    """Sends what Jinja does without asking its environment, loops and ``~``, through filters of ours."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        several = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(several, "join", [], [], None, None, lineno=node.lineno)


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
    """Returns what `render` returns, with its failures told as ours and its loops counted."""
    token = _steps_left.set([MAX_STEPS])
    try:
        return render()
    except TemplateError:
        raise
    except jinja2.UndefinedError as fault:
        missing = re.fullmatch(r"'(.*)' is undefined", str(fault.message))
        if missing is None:
            raise TemplateError(str(fault.message)) from None
        near = suggestion(missing[1], map(str, row))
        fields = ", ".join(map(str, row)) or "no fields"
        near = near if "did you mean" in near else ""
        raise TemplateError(f'"{missing[1]}" is not a field{near}; the row has {fields}') from None
    except RecursionError:
        raise TemplateError("the value is nested too deeply") from None
    except SecurityError as fault:
        raise TemplateError(str(fault)) from None
    except Exception as fault:
        # A template is a small program over data of any shape: any exception is the template's or the row's.
        raise TemplateError(f"{type(fault).__name__}: {fault}") from None
    finally:
        _steps_left.reset(token)


def _joined_up(chunks: Iterable[str]) -> str:
    text, length = [], 0
    for chunk in chunks:
        length += len(chunk)
        _check(length)
        text.append(chunk)
    return "".join(text)


def _check(size: int) -> int:
    if size > MAX_TEXT:
        raise TemplateError(f"the template makes more than {MAX_TEXT:,} characters; make it shorter")
    return size


def _measured(value: Any) -> int:
    """Returns about how many characters a value prints as; refuses what is too long before it is printed."""
    size, waiting = 0, [value]
    while waiting:
        one = _defined(waiting.pop())
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        size = _check(size + (len(one) if isinstance(one, str | bytes) else 4))
    return size


def _defined(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises UndefinedError, with the field's name
    return value


def _within_limits(value: Any) -> Any:
    _measured(value)
    return value


def _printed(value: Any) -> Any:
    """Returns the value that is about to be printed; refuses nulls, what is too long and what is no data."""
    if value is None:
        raise TemplateError('a null would be printed as "None"; use rows without nulls or | default("", true)')
    if not isinstance(_defined(value), _PRINTABLE):
        hint = "; add | list or | join" if isinstance(value, Iterator) else ""
        raise TemplateError(f"a {type(value).__name__} is not text or a number, and cannot be printed{hint}")
    return _within_limits(value)


def _bounded_replace(value: Any, old: Any, new: Any) -> str:
    text, old, new = str(_printed(value)), str(_printed(old)), str(_printed(new))
    _check(len(text) + text.count(old) * max(0, len(new) - len(old)))
    return text.replace(old, new)


def _bounded_join(values: Any, separator: str = "", attribute: Any = None) -> str:
    members = list(values)
    if attribute is not None:
        members = [_ENVIRONMENT.getitem(member, attribute) for member in members]
    _check(sum(_measured(_printed(member)) for member in members) + len(separator) * len(members))
    return separator.join(str(member) for member in members)


def _prefixed(values: Any, prefix: str) -> list[str]:
    members = [str(_printed(value)) for value in values]
    _check(sum(map(len, members)) + len(prefix) * len(members))
    return [prefix + member for member in members]


def _rounded(value: Any, digits: int = 0) -> float:
    return round(float(value), max(-300, min(int(digits), 300)))


def _as_json(value: Any) -> str:
    _measured(_defined(value))
    return json.dumps(value, ensure_ascii=False)


def _total(values: Any) -> float:
    numbers = list(values)
    if not all(isinstance(number, int | float) for number in numbers):
        raise TemplateError("sum adds numbers; use join for texts")
    total: float = sum(numbers)
    return total


def _from_json(text: str) -> Any:
    return json.loads(text)


@pass_context  # keeps Jinja from calling it while compiling
def _counted(_context: Any, values: Any) -> Iterator[Any]:
    left = _steps_left.get()
    for value in values:
        left[0] -= 1
        if left[0] < 0:
            raise TemplateError(f"the template's loops take more than {MAX_STEPS:,} steps; make them shorter")
        yield value


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with every operation that can grow bounded."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return bool(super().is_safe_attribute(obj, attr, value)) and attr != "strftime"

    def wrap_str_format(self, value: Any) -> None:
        """Returns None: Jinja's safe str.format pads to any width, so `format` is refused as all the rest."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        left, right = _defined(left), _defined(right)
        sizes = [len(side) for side in (left, right) if isinstance(side, str | bytes | list | tuple)]
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("a text is not formatted with %; write {{ field }} inside the text")
        if operator == "+":
            _check(sum(sizes))
        elif operator == "*" and sizes:
            times = right if isinstance(right, int) else left
            _check(sizes[0] * times if isinstance(times, int) else 0)
        elif operator == "*" and whole:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and whole:
            _check_bits(left.bit_length() * abs(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return _bounded_join(args[0] if args else (), owner)
        if isinstance(owner, str) and name == "replace" and len(args) == 2:
            return _bounded_replace(owner, *args)
        if isinstance(owner, str) and name == "replace":
            raise SecurityError("replace takes two texts here")
        return super().call(context, function, *args, **kwargs)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateError(f"a number of more than {MAX_BITS:,} bits; a template works with ordinary ones")


def _syntax_message(fault: jinja2.TemplateSyntaxError) -> str:
    message = str(fault.message).rstrip(".")
    unknown = re.fullmatch(r"No filter named '(.*)'", message)
    near = suggestion(unknown[1], set(_ENVIRONMENT.filters) - {"counted"}) if unknown else ""
    return f"not a valid template (line {fault.lineno} of it): {message}{near}"


def _environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_printed
    )
    environment.globals = {name: environment.globals[name] for name in ("range", "namespace")}
    kept = {name: function for name, function in environment.filters.items() if name in _FILTERS.split()}
    kept["string"] = lambda value: str(_printed(value))
    ours: dict[str, Any] = {
        "counted": _counted,
        "fromjson": _from_json,
        "join": _bounded_join,
        "prefixed": _prefixed,
    }
    ours |= {"replace": _bounded_replace, "round": _rounded, "sum": _total, "tojson": _as_json}
    environment.filters = kept | ours
    return environment


_ENVIRONMENT = _environment()
