"""The command line: ``evomerge search | apply | eval | check | runs``.

Only what takes no time is imported here: the handler of Ctrl-C must be there before the first slow import.
"""

from __future__ import annotations

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
"""The exit status of a process that SIGINT ended, as shells give it."""


class Stopped(EvomergeError):
    """Ctrl-C; the text says what that means for the command that it ended."""


def main() -> None:
    """Runs the command line and exits; whatever ends a command early is told without a traceback."""
    signal.signal(signal.SIGINT, _leave)
    # Before any of these is imported: a search's own lines are all that a terminal shows.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        # A file's name may hold bytes that are no text, and the terminal may not know all letters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    status = 1
    try:
        from evomerge.cli.app import app

        app()
    except Stopped as fault:
        status = INTERRUPTED
        _tell(str(fault))
    except DocumentError as fault:
        count = len(fault.faults)
        _tell(str(fault), f"{count} fault{'s' * (count > 1)}\n")
    except EvomergeError as fault:
        _tell(str(fault), "error ")
    except Exception as fault:
        _tell(_unforeseen(fault), "error ")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Or Python looks through all of torch's objects, half a second long, for some to free before the system does.
        gc.freeze()
    sys.exit(status)


def _leave(*_: object) -> None:
    """Ends the process on Ctrl-C while there is nothing to tidy up: an import may swallow an exception."""
    os.write(2, b"Stopped.\n")
    os._exit(INTERRUPTED)


@contextmanager
def stoppable(told: Callable[[], str]) -> Iterator[None]:
    """Has Ctrl-C unwind what runs inside, and end the command with the line that `told` returns then."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        # A second one ends the process at once, wherever it is.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    except BaseException:
        if pressed:
            raise Stopped(told()) from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(text: str, label: str = "") -> None:
    """Prints to the standard error, the label in red where that is a terminal."""
    red, plain = ("\x1b[31m", "\x1b[0m") if label and sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    # Text of a stranger's recipe must not steer the terminal.
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
    sys.stderr.write(f"{red}{label}{plain}{text}\n")


def _unforeseen(fault: BaseException) -> str:
    """Returns the line for an error that nothing here expects; all that helps to mend it goes to a file."""
    import platform
    import tempfile
    import traceback

    told = (str(fault).strip().splitlines() or ["without a text"])[0][:200]
    details = "".join(traceback.format_exception(fault))
    head = f"evomerge {evomerge.__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="evomerge-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(head + details)
    except OSError:
        return f"{details}{type(fault).__name__}: {told}: a bug in evomerge; please report it with the lines above"
    return f"{type(fault).__name__}: {told}: a bug in evomerge; please report it with the traceback in {file.name}"
