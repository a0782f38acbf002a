"""Files and folders that a document names: resolved beside it first, then in the current folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = (Path(),)
"""The current folder, for paths that no document names."""


def find(path: str, folders: Sequence[Path], kind: Callable[[str], bool] = os.path.exists) -> Path | None:
    """Returns the first of `folders` / `path` that exists and is of the `kind`, or None.

    Args:
        path: as written: relative, absolute, or with ``~``.
        folders: where to look, in this order.
        kind: a function of `os.path`; unlike pathlib's, it returns False for a name that is too long.
    """
    found = (folder / os.path.expanduser(path) for folder in folders)
    return next((one for one in found if kind(str(one))), None)


def not_found(path: str, folders: Sequence[Path], kind: Callable[[str], bool] = os.path.exists) -> str:
    """Returns where `find` looked, and the nearest name there: `` in recipes or in /home/me; did you mean "x"?``."""
    tried = " or ".join(f"in {folder.absolute() if folder == Path() else folder}" for folder in folders)
    where = "" if Path(path).is_absolute() or path.startswith("~") else f" {tried}"
    for folder in folders:
        near = _nearest(folder / os.path.expanduser(path), kind)
        if near is not None:
            shown = near.relative_to(folder) if near.is_relative_to(folder) and where else near
            return f'{where}; did you mean "{shown}"?'
    return where


def _nearest(path: Path, kind: Callable[[str], bool]) -> Path | None:
    """Returns the existing path most similar to `path`, part by part; None if nothing is similar to some part."""
    if kind(str(path)):
        return path
    parent = _nearest(path.parent, os.path.isdir) if path.parent != path else None
    if parent is None:
        return None
    try:
        names = [path.name] * os.path.exists(parent / path.name) + os.listdir(parent)
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name, [name for name in names if kind(str(parent / name))], n=1)
    return parent / near[0] if near else None
