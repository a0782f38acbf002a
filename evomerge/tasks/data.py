"""Rows of data from a local file or the Hub. Data is never code: nothing that is read here is run.

A local file is JSON Lines, JSON (a list of objects), CSV, TSV or Parquet, told by its suffix. Numbers and
texts are kept as the file has them: every field of a CSV or TSV file is text. TSV has no quoting: a tab ends
a field and a newline a row, and a quotation mark is an ordinary character. Hub data sets are read by the
`datasets` library, which runs no loading scripts.
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

from evomerge.errors import TaskError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Local files that can be read."""

MAX_FAULTS = 10
"""Faults of one file that are told one by one."""

Row = dict[str, Any]


def is_local(path: str) -> bool:
    """Returns whether `path` names a local file, by its suffix, and not a data set on the Hub."""
    return Path(path).suffix.lower() in SUFFIXES


def is_hub_id(path: str) -> bool:
    """Returns whether `path` is spelled as the Hub spells a data set: ``name`` or ``owner/name``."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None and ".." not in path


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Returns all rows of a local file.

    Args:
        path: a file with one of `SUFFIXES`.
        columns: the names of the columns of a CSV or TSV file that has no header.

    Raises:
        TaskError: with a line for every fault (the first `MAX_FAULTS`), naming the file and line.
    """
    suffix = path.suffix.lower()
    reader = _Reader(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # Reading a pipe or a device may never end.
            raise TaskError(
                [f"{path}: expected a regular file, found a folder, pipe or device; save the data as a file"]
            )
        if suffix == ".parquet":
            rows = reader.parquet()
        elif suffix == ".json":
            rows = reader.json()
        elif suffix == ".jsonl":
            rows = reader.jsonl()
        else:
            rows = reader.table("\t" if suffix == ".tsv" else ",", columns)
    except (OSError, ValueError) as fault:  # ValueError: the path holds a null character or half a character
        raise TaskError([f"{path}: cannot be read: {getattr(fault, 'strerror', None) or fault}"]) from None
    reader.finish()
    return rows


def load_hub(path: str, name: str | None, split: str, revision: str | None) -> Sequence[Row]:
    """Returns the rows of a data set on the Hub, read when they are asked for.

    Args:
        path: the Hub id, ``name`` or ``owner/name``.
        name: the configuration, where the data set has several.
        split: the data set's own split, such as ``test``.
        revision: a commit, tag or branch.

    Raises:
        TaskError: where it cannot be had: no such data set, configuration or split, no network, no access, or
            a data set that needs its own code.
    """
    import datasets  # takes seconds, and only Hub data needs it

    spelled = f"data set {path}" + "".join(f", {part}" for part in (name, split, revision) if part)
    if Path(path).exists():
        # load_dataset would take the folder of that name in the working directory instead.
        raise TaskError([f"{spelled}: a local file or folder has the same name; run from another folder"])
    try:
        rows: Sequence[Row] = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as fault:
        # The library raises many kinds, its dependencies' among them; each means that there is no data.
        reason = str(fault).strip() or type(fault).__name__
        if "scripts are no longer supported" in reason:
            reason = "it is loaded by a script, and data is never run here; use a copy in Parquet"
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
    """Reads one file and gathers its faults."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []

    def fault(self, line: int | None, message: str) -> None:
        self.faults.append(f"{self.path}{'' if line is None else f':{line}'}: {message}")

    def finish(self) -> None:
        """Raises what was gathered."""
        if self.faults:
            more = len(self.faults) - MAX_FAULTS
            rest = [f"{self.path}: and {more:,} more faults"] if more > 0 else []
            raise TaskError(self.faults[:MAX_FAULTS] + rest)

    def lines(self) -> Iterator[str]:
        """Yields the file's lines with their ends; one that is not UTF-8 is a fault and comes out empty."""
        with self.path.open("rb") as file:
            # Binary lines end at \n only; a text file's splitlines would also end them at U+2028.
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as fault:
                    self.fault(number, f"not UTF-8 text (byte {fault.start} of the line); save it as UTF-8")
                    yield "\n"

    def parse(self, text: str, line: int) -> Any:
        """Returns the JSON value of a text, or None with a fault."""
        try:
            return json.loads(text)
        except json.JSONDecodeError as fault:
            self.fault(line + fault.lineno - 1, f"not JSON: {fault.msg} (column {fault.colno})")
        except RecursionError:
            self.fault(line, "not JSON that can be read: nested too deeply")
        except ValueError as fault:  # a number of more digits than Python reads
            self.fault(line, f"not JSON that can be read: {fault}")
        return None

    def jsonl(self) -> list[Row]:
        rows: list[Row] = []
        for number, line in enumerate(self.lines(), 1):
            before = len(self.faults)
            value = self.parse(line, number) if line.strip() else None
            if isinstance(value, dict):
                rows.append(value)
            elif line.strip() and len(self.faults) == before:
                self.fault(number, f"expected an object of fields, found {_kind(value)}")
        return rows

    def json(self) -> list[Row]:
        text = "".join(self.lines())
        value = None if self.faults else self.parse(text, 1)
        if self.faults:
            return []
        if not isinstance(value, list):
            self.fault(1, f"expected a list of objects, found {_kind(value)}")
            return []
        for i, row in enumerate(value):
            if not isinstance(row, dict):
                self.fault(None, f"row {i}: expected an object of fields, found {_kind(row)}")
        return value

    def table(self, separator: str, columns: Sequence[str] | None) -> list[Row]:
        if separator == "\t":
            records = csv.reader(self.lines(), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            records = csv.reader(self.lines(), strict=True)
        rows: list[Row] = []
        names = list(columns) if columns is not None else None
        try:
            for record in records:
                if not record:
                    continue
                if names is None:
                    names = self.header(record, records.line_num)
                elif len(record) != len(names):
                    found = f"{len(record)} of {len(names)} columns ({', '.join(names)})"
                    few = len(record) < len(names)
                    self.fault(records.line_num, f"too {'few' if few else 'many'} columns: {found}")
                else:
                    rows.append(dict(zip(names, record, strict=True)))
        except csv.Error as fault:
            self.fault(records.line_num, f"not a table that can be read: {fault}; JSON Lines has no such limits")
        return rows

    def header(self, record: list[str], line: int) -> list[str]:
        for name in sorted({name for name in record if record.count(name) > 1 or not name.strip()}):
            problem = "a column without a name" if not name.strip() else f'column "{name}" stands twice'
            self.fault(line, f"{problem}; name each column once, or give `columns` where there is no header")
        return record

    def parquet(self) -> list[Row]:
        import pyarrow.parquet  # type: ignore[import-untyped]

        with self.path.open("rb") as file:
            try:
                rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
            except (pyarrow.ArrowException, ValueError, OSError) as fault:
                self.fault(None, f"not a Parquet file that can be read: {' '.join(str(fault).split())}")
                return []
        return rows


def _kind(value: Any) -> str:
    names: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a text"),
        (list, "a list"),
        (dict, "an object"),
    ]
    return next((name for kind, name in names if isinstance(value, kind)), "null")
