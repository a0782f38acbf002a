"""The process that renders Jinja templates of task files and checkpoints: data, which may be hostile.

`templates.py` starts it and sends it jobs. Jinja's sandbox keeps a template from Python's internals and from changing
what it is given; it bounds neither time nor memory. Here the operating system does: a rendering that takes too much
processor time ends this process, and an allocation past the limit fails. Only Jinja and the standard library are
imported, so that the process starts in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import functools
import json
import pickle
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.environment import TemplateExpression
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT = 1_000_000
"""Maximum characters of a rendered text, more than any model's context, and ten times those of a template."""

MAX_SECONDS = 0.5
"""Processor time for compiling and rendering a template; ordinary ones take milliseconds."""

MAX_BYTES = 512 * 2**20
"""Address space of this process; Python and Jinja take a tenth of it."""

PRINTABLE = (str, int, float, Decimal, list, tuple, Mapping, datetime.date, datetime.time, datetime.timedelta)
"""What prints the same in every run: an object's address in memory does not."""


class _Refused(ValueError):
    """A template does something that is not allowed."""


class _Missing(jinja2.StrictUndefined):
    """A missing field, which is a fault also inside a printed list."""

    __repr__ = jinja2.StrictUndefined.__str__


class _Generation(Extension):
    """``{% generation %}``, which marks for training what an assistant said; it has no effect on the text."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _printed(value: Any) -> Any:
    """Returns the value that is about to be printed; refuses nulls and what is not data."""
    if value is None:
        raise _Refused('a null would be printed as "None"; use rows without nulls or | default("", true)')
    return value if isinstance(value, (jinja2.Undefined, *PRINTABLE)) else _not_data(value)


def _not_data(value: Any) -> NoReturn:
    """Refuses a value that is neither printable nor JSON; a missing field is reported by its name."""
    if isinstance(value, jinja2.Undefined):
        str(value)
    hint = "; add | list or | join" if isinstance(value, Iterator) else ""
    raise _Refused(f"a {type(value).__name__} is not text or a number, and cannot be printed{hint}")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Returns `value` as JSON, with the options that transformers gives to chat templates; Jinja's escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _prefixed(values: Iterable[Any], prefix: str) -> list[str]:
    return [prefix + str(_printed(value)) for value in values]


def _raise(message: str) -> NoReturn:
    raise _Refused(message)


def _day(form: str) -> str:
    # Not today, or a model's scores would change with the date, and a resumed search would mix them.
    return datetime.datetime(2026, 1, 1).strftime(form)


def _environment(**options: Any) -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(**options)
    made.filters |= {"tojson": _to_json, "fromjson": json.loads, "prefixed": _prefixed, "printed": _printed}
    # A score must be the same in every run.
    del made.filters["random"], made.globals["lipsum"]
    return made


_TASKS = _environment(finalize=_printed, undefined=_Missing, keep_trailing_newline=True)
_CHATS = _environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
_CHATS.globals |= {"raise_exception": _raise, "strftime_now": _day}


@functools.lru_cache(maxsize=64)
def _compiled(text: str, kind: str) -> Callable[[Mapping[str, Any]], Any]:
    """Returns a function that renders the template `text`, or for the kind "value" evaluates its one expression.

    Raises:
        _Refused: it is not a template, or uses something that is not allowed.
    """
    if len(text) > MAX_TEXT // 10:
        raise _Refused(f"a template of {len(text):,} characters; at most {MAX_TEXT // 10:,}")
    environment = _CHATS if kind == "chat" else _TASKS
    try:
        tree = environment.parse(text)
        for node in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            raise _Refused(f"a template may not use {type(node).__name__.lower()} (line {node.lineno} of it)")
        if kind == "chat":
            return environment.from_string(tree).render
        for concat in tree.find_all(nodes.Concat):  # Jinja joins by ~ without calling `finalize`
            concat.nodes = [nodes.Filter(one, "printed", [], [], None, None, lineno=one.lineno) for one in concat.nodes]
        shown = tree.body[0].nodes if len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) else []
        if kind == "text" or len(shown) != 1 or isinstance(shown[0], nodes.TemplateData):
            return environment.from_string(tree).render
        keeping = nodes.Template([nodes.Assign(nodes.Name("result", "store"), shown[0])], lineno=1)
        keeping.set_environment(environment)
        return TemplateExpression(environment.from_string(keeping), undefined_to_none=False)
    except jinja2.TemplateSyntaxError as fault:
        message = str(fault.message).rstrip(".")
        unknown = re.fullmatch(r"No filter named '(.*)'", message)
        near = _nearest(unknown[1], environment.filters) if unknown else ""
        raise _Refused(f"not a valid template (line {fault.lineno} of it): {message}{near}") from None


def _nearest(word: str, known: Iterable[Any]) -> str:
    near = difflib.get_close_matches(word, map(str, known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _answer(text: str, kind: str, variables: Mapping[str, Any] | None) -> str:
    """Returns the reply to a job, as one line of JSON: ``{"made": ...}`` or ``{"fault": text}``.

    Args:
        text: the template.
        kind: "text", "value" or "chat".
        variables: by name; None to compile the template only.
    """
    try:
        render = _compiled(text, kind)
        made = None if variables is None else render(variables)
        reply = json.dumps({"made": made}, default=_not_data)
        if len(made if isinstance(made, str) else reply) > MAX_TEXT:
            raise _Refused(f"the template makes more than {MAX_TEXT:,} characters; make it shorter")
        return reply
    except jinja2.UndefinedError as fault:
        message = str(fault.message)
        missing = re.fullmatch(r"'(.*)' is undefined", message)
        if missing is not None and kind != "chat":
            fields = [str(name) for name in (variables or {})["row"]]
            near = _nearest(missing[1], fields)
            message = f'"{missing[1]}" is not a field{near}; the row has {", ".join(fields) or "no fields"}'
    except (_Refused, jinja2.TemplateError) as fault:
        message = str(fault)
    except (RecursionError, SyntaxError):  # SyntaxError: Python's parser, on Jinja's code
        message = "the template, or a value in it, is nested too deeply"
    except MemoryError:
        message = f"the template takes more than {MAX_BYTES // 2**20} MiB of memory; make it shorter"
    except Exception as fault:
        # A template is a small program over data of any shape: any exception is the template's or the data's.
        message = f"{type(fault).__name__}: {fault}"
    return json.dumps({"fault": message[:2000]})


class _Jobs(pickle.Unpickler):
    """Reads jobs. What is not data was sent as its type's name alone; it becomes an object that cannot be printed."""

    def persistent_load(self, name: str) -> Any:
        return type(name, (), {"__repr__": _not_data})()


def main() -> None:
    """Answers the jobs on standard input, pickled arguments of `_answer`, until it ends."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent may ignore it, and what is ignored stays so here
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set, or the system has none
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with contextlib.suppress(EOFError, MemoryError):  # a row takes all of the memory
        while True:
            job = _Jobs(sys.stdin.buffer).load()
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # ends the process even within a loop
            reply = _answer(*job)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(reply, flush=True)


if __name__ == "__main__":
    main()
