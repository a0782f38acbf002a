"""Jinja templates that turn one row of data, or a conversation, into text.

They are rendered by a separate process, `template_worker.py`, whose time and memory are bounded: a template is data,
which may be hostile.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import IO, Any, cast

from pydantic_core import core_schema

from evomerge.tasks import template_worker


class TemplateError(ValueError):
    """A template is not valid, or cannot be rendered; the text says why."""


class Template:
    """One template of a task file.

    Every field of a row is a variable; the variable ``row`` is the whole row, for fields whose names are not
    identifiers: ``{{ row["answer number"] }}``. White space is kept as written. Besides Jinja's filters, except
    ``random``, there are ``fromjson`` (the value of a JSON text) and ``prefixed`` (a list with a text before each
    member). A row's null that would be printed as "None" is a fault, as is a missing field.

    Attributes:
        text: the template as written.
    """

    def __init__(self, text: str) -> None:
        """Compiles `text`.

        Raises:
            TemplateError: it is not a template, or uses something that is not allowed.
        """
        self.text = text
        _WORKER.ask(text, "text", None)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> core_schema.CoreSchema:
        """Returns the schema of a key that is read as text and becomes a template."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())

    def render(self, row: Mapping[str, Any]) -> str:
        """Returns the text that the template makes of a row.

        Raises:
            TemplateError: a field is missing or null, an operation is not allowed or fails, or rendering takes too
                much time, memory or text.
        """
        return str(_WORKER.ask(self.text, "text", {**row, "row": row}))

    def value(self, row: Mapping[str, Any]) -> Any:
        """Returns what the template's one expression gives, as it is: a list stays a list.

        A template with text around an expression gives a text, as `render`.

        Raises:
            TemplateError: as `render`.
        """
        return _WORKER.ask(self.text, "value", {**row, "row": row})


def render_chat(template: str, messages: Iterable[Mapping[str, Any]], tokens: Mapping[str, Any]) -> str:
    """Returns a conversation as a checkpoint's chat template writes it, up to the assistant's next answer.

    It is what transformers' ``apply_chat_template`` gives, except that ``strftime_now`` always gives 1 January 2026.

    Args:
        template: Jinja text.
        messages: the turns, each with ``role`` and ``content``: a text, or a list of parts.
        tokens: the tokenizer's special tokens by their names, such as ``bos_token``.

    Raises:
        TemplateError: the template is not valid, refuses the conversation, or takes too much time, memory or text.
    """
    turns = [dict(message) for message in messages]
    given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True, **tokens}
    return str(_WORKER.ask(template, "chat", given))


class _Jobs(pickle.Pickler):
    """Writes jobs; of an object that is not data, such as an image, the name of its type alone."""

    _DATA = (*template_worker.PRINTABLE, type(None), bytes, set, frozenset, datetime.tzinfo)

    def persistent_id(self, value: Any) -> str | None:
        # What is called makes the data: a day is written as its class and numbers.
        return None if isinstance(value, self._DATA) or callable(value) else type(value).__name__


class _Worker:
    """The process that renders; started with the first template, and again after a template has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, text: str, kind: str, variables: Mapping[str, Any] | None) -> Any:
        """Returns what the worker makes of a template; see `template_worker._answer`.

        Raises:
            TemplateError: it makes nothing of it.
        """
        job = io.BytesIO()
        try:
            _Jobs(job).dump((text, kind, variables))
        except Exception as fault:  # of any object in a data set
            raise TemplateError(f"the row has a value that is not plain data: {fault}") from None
        with self._lock:
            reply = self._exchange(job.getbuffer())
        if "fault" in reply:
            raise TemplateError(reply["fault"])
        return reply["made"]

    def _exchange(self, job: memoryview) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", template_worker.__file__]
            pipe = subprocess.PIPE
            try:
                # Ctrl-C is sent to the group of this process; the worker has its own.
                self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0)
            except OSError as fault:
                return {"fault": f"the process that renders templates cannot be started: {fault}"}
        process = self._process
        stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        try:
            stdin.write(job)
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # of an interrupt: a late reply would be taken for the next job's
            process.kill()
            process.communicate()
            raise
        if line:
            return dict(json.loads(line))
        process.communicate()
        if process.returncode == -signal.SIGPROF:
            return {"fault": f"the template runs for more than {template_worker.MAX_SECONDS:g} s; make it shorter"}
        return {"fault": f"the process that renders templates ended ({process.returncode}); is the row very large?"}


_WORKER = _Worker()
# A forked process has a worker of its own; another thread may have held the lock.
os.register_at_fork(after_in_child=_WORKER.__init__)  # type: ignore[misc]
