"""The command line: ``evomerge search | apply | publish | eval | check | show | report | runs | schema``.

Imports only what is fast to import: Ctrl-C must be handled before the first slow import.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import evomerge
from evomerge.errors import DocumentError, EvomergeError

__all__ = ["INTERRUPTED", "Stopped", "main", "stoppable"]

INTERRUPTED = 130
"""The exit status that shells give a process that SIGINT ended."""


_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
"""A token of the Hub, which a user may give in place of something else."""


class Stopped(EvomergeError):
    """Ctrl-C; the message says in what state the command was left."""


def main() -> None:
    """Runs the command line and exits; an error that ends a command is reported without a traceback."""
    signal.signal(signal.SIGINT, _leave)
    # Set before these libraries are imported: a terminal shows the command's own lines only.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        # A file's name may hold bytes that are not text, and the terminal may lack some letters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from evomerge.cli.app import app

        app()
    except Exception as fault:
        _report(fault)
        sys.exit(INTERRUPTED if isinstance(fault, Stopped) else 1)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Otherwise Python takes half a second at exit to look for garbage among torch's objects.
        gc.freeze()


def _leave(*_: object) -> None:
    """Ends the process on Ctrl-C while there is nothing to clean up: an import may swallow an exception."""
    os.write(2, b"Stopped.\n")
    os._exit(INTERRUPTED)


@contextmanager
def stoppable(message: Callable[[], str], at_once: str = "") -> Iterator[None]:
    """Makes Ctrl-C unwind the block and end the command with the line that `message` then returns.

    Args:
        message: says in what state the command was left.
        at_once: is shown at once, where unwinding can take long.
    """
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        os.write(2, at_once.encode())
        # A second Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    except BaseException:
        if pressed:
            raise Stopped(message()) from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _report(fault: Exception) -> None:
    """Prints what ended a command to the standard error, its label in red on a terminal."""
    label, text = "error ", str(fault)
    if isinstance(fault, Stopped):
        label = ""
    elif isinstance(fault, DocumentError):
        label = f"{len(fault.faults)} fault{'s' * (len(fault.faults) > 1)}\n"
    elif isinstance(fault, OSError) and fault.errno == errno.ENOSPC:
        text = f"{fault.filename or 'the output'}: no space left on the device; make room, and run the command again"
    elif not isinstance(fault, EvomergeError):
        text = _bug(fault)
    if label and sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        label = f"\x1b[31m{label}\x1b[0m"
    text = _TOKEN.sub("hf_***", text)
    # Control characters in someone else's recipe must not reach the terminal.
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
    sys.stderr.write(f"{label}{text}\n")


def _bug(fault: Exception) -> str:
    """Returns the line that reports an unexpected error; what a bug report needs goes to a file."""
    import platform
    import tempfile
    import traceback

    head = f"evomerge {evomerge.__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n\n"
    details = _without_passwords(head + "".join(traceback.format_exception(fault)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="evomerge-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(details)
        report = f"the traceback in {file.name}"
    except OSError:
        sys.stderr.write(details)
        report = "the lines above"
    message = _without_passwords((str(fault).strip().splitlines() or ["no message"])[0])[:200]
    return f"{type(fault).__name__}: {message}: a bug in evomerge; please report it with {report}"


def _without_passwords(text: str) -> str:
    """Returns text without the Hub's tokens, whose URLs show no passwords: the user will send it to others."""
    text = _TOKEN.sub("hf_***", re.sub(r"(://[^:/@\s]*:)[^@\s]+@", r"\1***@", text))
    return re.sub(r"(pass\w*=)[^&\s'\"]+", r"\1***", text)
