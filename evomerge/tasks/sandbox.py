"""A sandbox for the Jinja templates of task files and checkpoints: data, which may be hostile.

Jinja's own sandbox keeps a template from Python's internals and from changing what it is given. It does not bound
time or memory, so this file does. The time is looked at on every line that a rendering runs. The results of all
operations are measured and added up; what makes more than the lengths of its operands together, such as ``*``, is
measured before it is done, and the filters and methods that pad, format or draw random numbers do not run.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import FrameType
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

T = TypeVar("T")

MAX_TEXT = 1_000_000
"""Characters that one operation or a whole rendering may make; no model's context holds more."""

MAX_MADE = 20 * MAX_TEXT
"""Characters that all operations of one rendering may make together."""

MAX_SECONDS = 0.5
"""Processor time of one rendering; an ordinary one takes milliseconds."""

MAX_TEMPLATE = 100_000
"""Characters of a template; few-shot examples belong in data."""

MAX_BITS = 4_096
"""Bits of a whole number; larger ones take long to print."""

_FILTERS = """
    abs capitalize count d default dictsort e escape first float groupby int items last length list lower map max min
    reject rejectattr reverse safe select selectattr sort string title trim unique upper wordcount
"""
"""Jinja's own filters that run: none can make text grow or draw random numbers."""

_GROWING = "center encode expandtabs format format_map ljust maketrans rjust strftime to_bytes translate zfill"
"""Methods that do not run: what they make may be longer than what they are given."""

_made: ContextVar[list[int]] = ContextVar("_made")


class TemplateError(ValueError):
    """A template is not valid, or cannot be rendered; the text says why."""


class _Late(BaseException):
    """The time of a rendering is over; no `Exception`, so that nothing in Jinja catches it."""


def bounded(run: Callable[[], T], *, timed: bool = True) -> T:
    """Returns what `run` returns.

    Args:
        run: compiles a template, or renders it.
        timed: whether it is to end within `MAX_SECONDS`. To compile takes a time that grows with the text alone, and
            many times that where each line is looked at.

    Raises:
        TemplateError: it fails in whatever way, or takes too long.
    """
    end = time.thread_time() + MAX_SECONDS

    def watch(_frame: FrameType, _event: str, _value: Any) -> Any:
        if time.thread_time() > end:
            raise _Late
        return watch

    token, before = _made.set([0]), sys.gettrace()
    sys.settrace(watch if timed else before)
    try:
        return run()
    except (TemplateError, jinja2.UndefinedError, jinja2.TemplateSyntaxError):
        raise
    except _Late:
        raise TemplateError(f"the template runs for more than {MAX_SECONDS:g} s; make its loops shorter") from None
    except (RecursionError, MemoryError, SyntaxError):  # SyntaxError: Python's own parser, of what Jinja compiled
        raise TemplateError("the template, or a value in it, is nested too deeply") from None
    except jinja2.TemplateError as fault:
        raise TemplateError(str(fault)) from None
    except Exception as fault:
        # A template is a small program over data of any shape: any exception is the template's or the data's.
        raise TemplateError(f"{type(fault).__name__}: {fault}") from None
    finally:
        sys.settrace(before)
        _made.reset(token)


def sized(value: T) -> T:
    """Returns `value`, measured: no longer than `MAX_TEXT` when it is printed, and part of what was made."""
    size, waiting = 0, [value]
    while waiting:
        one: Any = waiting.pop()
        if isinstance(one, jinja2.Undefined):
            str(one)  # raises UndefinedError with the name, where undefined values are refused
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        size = checked(size + (len(one) + 1 if isinstance(one, str | bytes) else 4))
    made = _made.get()
    made[0] += size
    if made[0] > MAX_MADE:
        raise TemplateError(f"the template makes more than {MAX_MADE:,} characters in all; make it shorter")
    return value


def checked(size: int) -> int:
    """Returns `size`, a number of characters that are about to be made."""
    if size > MAX_TEXT + 1:
        raise TemplateError(f"the template makes more than {MAX_TEXT:,} characters; make it shorter")
    return size


def _joined(chunks: Iterable[str]) -> str:
    text, length = [], 0
    for chunk in chunks:
        length = checked(length + len(chunk))
        text.append(chunk)
    return "".join(text)


class _Measured(NodeTransformer):
    """Sends what Jinja does without asking its environment through filters: ``~``, lists, tuples and mappings."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_display(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered(node, "sized")

    visit_List = visit_Tuple = visit_Dict = visit_display


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with time and memory bounded; templates are compiled and rendered in `bounded`."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    concat = staticmethod(_joined)

    def __init__(self, finalize: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(autoescape=False, finalize=finalize, **options)
        kept = {name: self.globals[name] for name in ("range", "namespace", "cycler", "joiner")}
        self.globals = {**kept, "dict": dict}
        ours = {"join": self._join, "replace": self._replace, "round": _rounded, "sum": _total, "tojson": as_json}
        for name, function in {**self.filters, **ours}.items():
            self.filters[name] = _counted(function) if name in _FILTERS.split() or name in ours else _refusal(name)
        self.filters["sized"] = sized

    def tree(self, text: str) -> nodes.Template:
        """Returns the template's syntax tree, with its operations measured."""
        if len(text) > MAX_TEMPLATE:
            raise TemplateError(f"a template of {len(text):,} characters; at most {MAX_TEMPLATE:,}")
        tree: nodes.Template = _Measured().visit(self.parse(text))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Returns whether the method or field may be used: it is no internal one, and bounded in what it makes."""
        return attr not in _GROWING.split() and bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: Any) -> None:
        """Returns None: Jinja's safe str.format pads to any width, so `format` is refused as all the rest."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Returns ``obj[argument]``, measured where it is a slice."""
        found = super().getitem(obj, argument)
        return sized(found) if isinstance(argument, slice) else found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Returns what the operator gives, measured before it is made."""
        left, right = sized(left), sized(right)
        sides = [side for side in (left, right) if isinstance(side, str | bytes | list | tuple)]
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str | bytes):
            raise TemplateError("a text is not formatted with % here; write {{ field }} inside the text")
        if operator == "*" and sides:
            times = right if isinstance(right, int) else left
            checked(len(sides[0]) * times if isinstance(times, int) else 0)
        elif whole and operator in "**":
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise TemplateError(f"a number of more than {MAX_BITS:,} bits; a template works with ordinary ones")
        return sized(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns what a method or macro gives, measured; joins and replacements before they are made."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return sized(self._join(args[0] if args else (), owner))
        if isinstance(owner, str) and name == "replace":
            return sized(self._replace(owner, *args))
        return sized(super().call(context, function, *args, **kwargs))

    def _printed(self, value: Any) -> str:
        return str(self.finalize(value)) if self.finalize else ""

    def _join(self, values: Any, separator: str = "", attribute: Any = None) -> str:
        members = [value if attribute is None else self.getitem(value, attribute) for value in values]
        checked(len(separator) * len(members))
        return separator.join(map(self._printed, members))

    def _replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = map(self._printed, (value, old, new))
        checked(len(text) + text.count(old) * max(0, len(new) - len(old)))
        return text.replace(old, new, -1 if count is None else count)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # with the marks that say which of context and environment it takes
    def counted(*args: Any, **kwargs: Any) -> Any:
        return sized(function(*args, **kwargs))

    return counted


def _refusal(name: str) -> Callable[..., Any]:
    def refused(*_args: Any, **_kwargs: Any) -> Any:
        raise TemplateError(f"the filter {name} does not run here, since what it makes has no bound or is random")

    return refused


def _rounded(value: Any, digits: int = 0) -> float:
    return round(float(value), max(-300, min(int(digits), 300)))


def _total(values: Any) -> float:
    numbers = list(values)
    if not all(isinstance(number, int | float) for number in numbers):
        raise TemplateError("sum adds numbers; use join for texts")
    total: float = sum(numbers)
    return total


def as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Returns `value` as JSON, with the options that transformers gives to chat templates."""
    if (indent or 0) > 16 or len("".join(separators or ())) > 16:
        raise TemplateError("tojson indents and parts by 16 characters at most")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _joined(encoder.iterencode(sized(value)))


class _Generation(Extension):
    """``{% generation %}``, which marks for training what an assistant said; here it says nothing."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _day(form: str) -> str:
    # Not today, or a model's scores would be others tomorrow, and a search that goes on would mix them.
    return datetime.datetime(2026, 1, 1).strftime(str(form)[:100])


_CHATS = Sandbox(sized, trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
_CHATS.globals |= {"raise_exception": _raise, "strftime_now": _day}


def render_chat(template: str, messages: Iterable[Mapping[str, str]], tokens: Mapping[str, Any]) -> str:
    """Returns a conversation as a checkpoint's chat template writes it, up to where the assistant's answer begins.

    It is what transformers' ``apply_chat_template`` gives, but that ``strftime_now`` always gives 1 January 2026.

    Args:
        template: Jinja text.
        messages: the turns, each with ``role`` and ``content``.
        tokens: the tokenizer's special tokens by their names, such as ``bos_token``.

    Raises:
        TemplateError: the template is not valid, refuses the conversation, or takes too long or makes too much.
    """
    turns = [dict(message) for message in messages]
    given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True, **tokens}
    try:
        compiled = _chat_template(template)
        return bounded(lambda: compiled.render(given))
    except jinja2.TemplateSyntaxError as fault:
        raise TemplateError(f"not a valid template (line {fault.lineno} of it): {fault.message}") from None
    except jinja2.UndefinedError as fault:
        raise TemplateError(str(fault.message)) from None


@functools.lru_cache(maxsize=8)
def _chat_template(text: str) -> jinja2.Template:
    return bounded(lambda: _CHATS.from_string(_CHATS.tree(text)), timed=False)
