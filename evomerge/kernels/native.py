"""C source, compiled when it is first needed, cached on disk, and called without Python's lock.

A compiler is optional: without one, merging is slower and gives the same bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

import torch

# Arithmetic as written: no multiplication is contracted with an addition, and NaN and signed zeros keep their meaning.
# Ignoring traps and errno lets loops process many elements at a time.
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_PROCESSORS = {
    "AVX2": ("-mavx2", "-mf16c"),
    "AVX512": ("-mavx2", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
# Longer than any loop takes to compile; a search must not wait for a compiler that hangs.
_TIMEOUT = 120

_lock = threading.Lock()
_libraries: dict[tuple[str, str], ctypes.CDLL] = {}
# Commands that failed are not tried again: what fails for one source fails for the next.
_broken: set[str] = set()


@cache
def compiler() -> str | None:
    """Returns the C compiler's command; None where there is none. It is looked for once.

    It is ``EVOMERGE_CC``, else ``CC``, else the first of cc, gcc and clang that is installed; an empty ``EVOMERGE_CC``
    means none.
    """
    named = os.environ.get("EVOMERGE_CC", os.environ.get("CC") or None)
    if named is None:
        return next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    program, *_ = shlex.split(named) or [""]
    return named if shutil.which(program) else None


def library(source: str) -> ctypes.CDLL | None:
    """Returns the library that C source compiles to; None without a compiler, or with a warning where it fails.

    Libraries are kept in the user's cache folder (``XDG_CACHE_HOME``, by default ``~/.cache``), under ``evomerge``.

    Args:
        source: C11; it needs no file and no library but the standard ones.
    """
    command = compiler()
    if command is None:
        return None
    with _lock:
        key = (command, source)
        if key not in _libraries and command not in _broken:
            try:
                _libraries[key] = _loaded(command, source)
            except (OSError, subprocess.SubprocessError) as fault:
                _broken.add(command)
                reason = getattr(fault, "stderr", None) or str(fault)
                warnings.warn(
                    f"{command}: cannot compile C, so merging is several times slower: {reason.strip()[:300]}; name a "
                    "working compiler in EVOMERGE_CC, or set it to nothing to use none",
                    stacklevel=2,
                )
        return _libraries.get(key)


def _loaded(command: str, source: str) -> ctypes.CDLL:
    """Returns the library from the cache, or compiled into it."""
    flags = (*_FLAGS, *_PROCESSORS.get(torch.backends.cpu.get_cpu_capability(), ()))
    key = "\n".join((command, *flags, platform.machine(), platform.system(), source))
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    folder = _cache()
    if folder is not None and (folder / name).is_file():
        try:
            return ctypes.CDLL(str(folder / name))
        except OSError:
            pass  # From another system, or truncated: it is compiled again.
    with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as made_in:
        made = Path(made_in) / name
        subprocess.run(
            [*shlex.split(command), *flags, "-x", "c", "-", "-o", str(made), "-lm"],
            input=source,
            text=True,
            check=True,
            capture_output=True,
            timeout=_TIMEOUT,
        )
        if folder is not None:
            # In one step: processes that compile the same source at the same time do not see unfinished files.
            made = made.replace(folder / name)
        return ctypes.CDLL(str(made))


def _cache() -> Path | None:
    """Returns the folder where libraries are kept, the user's own; None where it cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge" / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # The second where there is no home.
        return None
    # Its files are run as code: nobody else may be able to write them.
    owned = folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o022
    return folder if owned and os.access(folder, os.W_OK) else None
