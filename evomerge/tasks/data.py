"""Rows of data from a local file or the Hub; no code in them is run.

A local file is JSON Lines, JSON (a list of objects), CSV, TSV or Parquet, by its suffix. Numbers and
text are kept as in the file: every field of a CSV or TSV file is text. TSV has no quoting: a tab ends
a field, a newline ends a row, and a quotation mark is an ordinary character. Hub data sets are read by the
`datasets` library, which runs no loading scripts. Local files are not: that library reads the text 01 of a CSV
as the number 1 and NA as null, fills or shifts rows with too few or too many fields, and names no lines.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.document import kind_of
from evomerge.errors import TaskError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of local files that can be read."""

MAX_FAULTS = 10
"""Faults of one file that are reported one by one."""

Row = dict[str, Any]


def is_local(path: str) -> bool:
    """Returns whether `path` names a local file, by its suffix, and not a data set on the Hub."""
    return Path(path).suffix.lower() in SUFFIXES


def is_hub_id(path: str) -> bool:
    """Returns whether `path` has the form of a data set on the Hub: ``name`` or ``owner/name``."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None and ".." not in path


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Returns all rows of a local file.

    Args:
        path: a file with one of `SUFFIXES`.
        columns: the column names of a CSV or TSV file without a header.

    Raises:
        TaskError: with a line for every fault (the first `MAX_FAULTS`), naming the file and line.
    """
    reader = _Reader(path)
    readers = {
        ".jsonl": reader.jsonl,
        ".json": reader.json,
        ".csv": lambda: reader.table(columns),
        ".tsv": lambda: reader.table(columns, delimiter="\t", quoting=csv.QUOTE_NONE),
        ".parquet": reader.parquet,
    }
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # Reading a pipe or a device may never end.
            raise TaskError([f"{path}: expected a regular file, found a folder, pipe or device"])
        rows = list(readers[path.suffix.lower()]())
    except (OSError, ValueError) as fault:  # ValueError: the path holds a null character or half a character
        raise TaskError([f"{path}: cannot be read: {getattr(fault, 'strerror', None) or fault}"]) from None
    if reader.faults:
        more = len(reader.faults) - MAX_FAULTS
        rest = [f"{path}: and {more:,} more faults"] if more > 0 else []
        raise TaskError(reader.faults[:MAX_FAULTS] + rest)
    return rows


def load_hub(path: str, name: str | None, split: str, revision: str | None) -> Sequence[Row]:
    """Returns the rows of a data set on the Hub, loaded on access.

    Args:
        path: the Hub id, ``name`` or ``owner/name``.
        name: the configuration, if the data set has several.
        split: the data set's own split, such as ``test``.
        revision: a commit, tag or branch.

    Raises:
        TaskError: it is not available: no such data set, configuration or split, no network, no access, or
            a data set that needs its own code.
    """
    import datasets  # takes a second, and only Hub data needs it

    spelled = f"data set {path}" + "".join(f", {part}" for part in (name, split, revision) if part)
    if Path(path).exists():
        # load_dataset would take the folder of that name in the working directory instead.
        raise TaskError([f"{spelled}: a local file or folder has the same name; run from another folder"])
    try:
        rows: Sequence[Row] = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as fault:
        # The library raises many kinds, also those of its dependencies; each means that there is no data.
        reason = str(fault).strip() or type(fault).__name__
        if "scripts are no longer supported" in reason:
            reason = "it needs a loading script, and evomerge runs no code of data sets; use a copy in Parquet"
        raise TaskError([f"{spelled}: cannot be loaded: {' '.join(reason.split())}"]) from None
    return rows


def shuffled(count: int, seed: int | None) -> list[int]:
    """Returns the indices of `count` rows in the order that `seed` gives; None keeps the order.

    The order comes from SHA-256, so it is the same on every machine and for every version of Python.
    """
    if seed is None:
        return list(range(count))
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())


class _Reader:
    """Reads one file and collects its faults."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []

    def fault(self, line: int | None, message: str) -> None:
        self.faults.append(f"{self.path}{'' if line is None else f':{line}'}: {message}")

    def lines(self) -> Iterator[str]:
        """Yields the file's lines with their ends."""
        # Lines end at \n only: JSON may hold the other characters that end lines for Python.
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if found := re.search("[\udc80-\udcff]", line):
                    self.fault(number, f"not UTF-8 text (character {found.start() + 1} of the line); save it as UTF-8")
                yield line

    def values(self, text: str, line: int) -> Iterator[Any]:
        """Yields the JSON value of a text, or nothing if it has a fault."""
        try:
            yield json.loads(text)
        except json.JSONDecodeError as fault:
            self.fault(line + fault.lineno - 1, f"not JSON: {fault.msg} (column {fault.colno})")
        except RecursionError:
            self.fault(line, "JSON that is nested too deeply")
        except ValueError as fault:  # a number of more digits than Python reads
            self.fault(line, f"JSON that cannot be read: {fault}")

    def jsonl(self) -> Iterator[Row]:
        for number, line in enumerate(self.lines(), 1):
            for value in self.values(line, number) if line.strip() else ():
                if not isinstance(value, dict):
                    self.fault(number, f"expected a mapping of fields, found {kind_of(value)}")
                yield value

    def json(self) -> Iterator[Row]:
        for value in self.values("".join(self.lines()), 1):
            if not isinstance(value, list):
                self.fault(1, f"expected a list of mappings, found {kind_of(value)}")
                return
            for i, row in enumerate(value):
                if not isinstance(row, dict):
                    self.fault(None, f"row {i}: expected a mapping of fields, found {kind_of(row)}")
                yield row

    def table(self, columns: Sequence[str] | None, **form: Any) -> Iterator[Row]:
        reader = csv.DictReader(self.lines(), columns, strict=True, **form)
        try:
            names = reader.fieldnames or []
            for name in sorted({name for name in names if names.count(name) > 1 or not name.strip()}):
                problem = f'column "{name}" is repeated' if name.strip() else "a column without a name"
                self.fault(1, f"{problem}; name each column once, or give `columns` if the file has no header")
            for row in () if self.faults else reader:
                found = len(row.pop(None, ())) + sum(value is not None for value in row.values())
                if found != len(names):
                    problem = f"too {'few' if found < len(names) else 'many'} columns"
                    self.fault(reader.line_num, f"{problem}: {found} of {len(names)} columns ({', '.join(names)})")
                yield row
        except csv.Error as fault:
            self.fault(reader.line_num, f"not a table that can be read: {fault}; JSON Lines has no such limits")

    def parquet(self) -> Sequence[Row]:
        import pyarrow.parquet  # type: ignore[import-untyped]

        with self.path.open("rb") as file:
            try:
                rows: Sequence[Row] = pyarrow.parquet.read_table(file).to_pylist()
                return rows
            except (pyarrow.ArrowException, ValueError, OSError) as fault:
                self.fault(None, f"not a Parquet file that can be read: {' '.join(str(fault).split())}")
                return []
