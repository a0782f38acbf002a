"""YAML text in, a checked pydantic model out: all faults at once, each with its file and line.

Recipes and task files are both documents. YAML is composed into nodes first, so that every key and value
keeps its line; pydantic then checks the plain data, and each of its errors becomes one line that
names the file, the line, what was expected, what was found and, for a misspelt key, the nearest known one.
Reading never runs code from a file: only YAML's plain types are built, and aliases cannot exhaust memory.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge.errors import DocumentError
from evomerge.paths import HERE

MAX_BYTES = 4_000_000
"""A longer document is refused: recipes are a few kilobytes, so this is a wrong file."""

MAX_NODES = 200_000
"""Values after aliases are expanded; more is refused (a few nested aliases can stand for billions)."""

Location = tuple[str | int, ...]
"""Where a value lies in a document: keys and indices from the root."""

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """The base of every document's models: frozen, and an unknown key is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


@dataclass(frozen=True)
class Source:
    """A parsed document with the line of each part.

    Attributes:
        name: what to call it in messages, usually its path.
        data: plain data: dicts, lists, strings, numbers, booleans, None.
        lines: the 1-based line of every location.
        folders: where relative paths in the document are resolved: beside it, then in the current folder.
        within: where `data` lies in the document, if it is only a part of it.
        shared: keys of `data` that lie at the document's root all the same.
    """

    name: str
    data: Any
    lines: Mapping[Location, int]
    folders: Sequence[Path] = HERE
    within: Location = ()
    shared: tuple[str, ...] = ()

    def fault(self, location: Location, message: str) -> str:
        """Returns one fault's line: ``name:line: path message``; the nearest known parent gives the line."""
        if not location or location[0] not in self.shared:
            location = (*self.within, *location)
        known = location
        while known and known not in self.lines:
            known = known[:-1]
        where = spelled(location)
        return f"{self.name}:{self.lines.get(known, 1)}: {where}{': ' if where else ''}{message}"


def spelled(location: Location) -> str:
    """Returns a location as text, for example ``slices[2].sources[0].layer_range``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def closest(word: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean "weight"?``, or nothing if no known word is close."""
    near = difflib.get_close_matches(word, sorted(set(known)), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean "weight"?``, or the known words if none is close."""
    words = sorted(set(known))
    return closest(word, words) or (f"; expected one of {', '.join(words)}" if words else "")


_TAG = "tag:yaml.org,2002:"
_TAGS: dict[type[yaml.Node], frozenset[str]] = {
    yaml.MappingNode: frozenset({_TAG + "map"}),
    yaml.SequenceNode: frozenset({_TAG + "seq"}),
    yaml.ScalarNode: frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null")),
}
"""The tags of plain data; anything else, such as a Python object, is refused."""


class _Refused(yaml.MarkedYAMLError):
    """A node is not allowed in a document."""

    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(problem=message, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """Turns YAML nodes into plain data with lines; refuses bombs, cycles, repeated keys and other than plain types.

    Numbers such as 1e-3 are read as floats (YAML 1.1 wants a dot in them).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[Location, int] = {}
        self.count = 0
        self.open: set[yaml.Node] = set()

    def value(self, node: yaml.Node, location: Location) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise _Refused(node, f"more than {MAX_NODES:,} values once aliases are expanded; write it out")
        if node in self.open:
            raise _Refused(node, "an alias that contains itself; write the value out")
        if node.tag not in _TAGS[type(node)]:
            tag = str(node.tag).replace(_TAG, "!!")
            raise _Refused(node, f"the tag {tag} is not plain data; write text, numbers, lists and mappings")
        self.lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            try:
                return self.construct_object(node)
            except (ValueError, LookupError, OverflowError) as fault:
                # PyYAML trusts a tag such as !!bool, and fails on the text.
                kind = str(node.tag).removeprefix(_TAG)
                text = node.value if len(node.value) <= 40 else f"{node.value[:37]}..."
                raise _Refused(node, f'"{text}" cannot be read as {kind}: {fault}') from None
        self.open.add(node)
        if isinstance(node, yaml.SequenceNode):
            made: Any = [self.value(child, (*location, i)) for i, child in enumerate(node.value)]
        else:
            made = self.mapping(node, location)
        self.open.discard(node)
        return made

    def mapping(self, node: yaml.Node, location: Location) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, child in node.value:
            if key_node.tag == _TAG + "merge":
                for one in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    part = self.value(one, location)
                    if not isinstance(part, dict):
                        raise _Refused(key_node, "'<<' merges mappings; this is not one")
                    merged = {**part, **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused(key_node, "a key must be plain text")
            key = str(key_node.value)
            if key in own:
                raise _Refused(key_node, f'the key "{key}" is repeated; keep one')
            self.lines[(*location, key)] = key_node.start_mark.line + 1
            own[key] = self.value(child, (*location, key))
        return {**merged, **own}


_Loader.yaml_implicit_resolvers = {
    # A date stays text, and so does YAML 1.1's "=", which nothing can construct.
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in {_TAG + "timestamp", _TAG + "value"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"))
_Loader.add_implicit_resolver(*_FLOAT, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """The same for writing: text such as 1e-3 is quoted."""


_Dumper.add_implicit_resolver(*_FLOAT, list("-+0123456789"))


def to_yaml(data: Any) -> str:
    """Returns plain data as YAML that `parse` reads back unchanged."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
    return text


def parse(text: str, name: str, error: type[DocumentError] = DocumentError) -> Source:
    """Returns the plain data of a YAML text with the line of every value.

    Args:
        text: the document.
        name: what to call it in messages.
        error: the kind of error to raise.

    Raises:
        DocumentError: (as `error`) it is not YAML or too large, or has a tag that would run code, a
            repeated key, or aliases that expand to too much.
    """
    if len(text) > MAX_BYTES:
        raise error([f"{name}:1: {len(text):,} characters; a document has at most {MAX_BYTES:,}"])
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = loader.value(node, ()) if node is not None else {}
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        line, what = mark.line + 1 if mark else 1, "" if isinstance(fault, _Refused) else "not valid YAML: "
        raise error([f"{name}:{line}: {what}{fault.problem}"]) from None
    except yaml.reader.ReaderError as fault:
        line, found = text.count("\n", 0, fault.position) + 1, f"U+{ord(text[fault.position]):04X}"
        raise error([f"{name}:{line}: not valid YAML: the character {found} is not text"]) from None
    except RecursionError:
        raise error([f"{name}:1: nested too deeply; a document has a few levels"]) from None
    return Source(name, data, loader.lines)


def read(path: Path, error: type[DocumentError] = DocumentError) -> Source:
    """Returns the parsed file `path`; see `parse`.

    Raises:
        DocumentError: (as `error`) the file is missing, unreadable or not UTF-8, or as `parse`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise error([f"{path}:1: longer than a document, which has at most {MAX_BYTES:,} bytes"])
        source = parse(data.decode(), str(path), error)
        return dataclasses.replace(source, folders=tuple(dict.fromkeys([path.parent, *HERE])))
    except UnicodeDecodeError as fault:
        raise error([f"{path}: not UTF-8 text (byte {fault.start}); is it the right file?"]) from None
    except (OSError, ValueError) as fault:  # ValueError: a path with a null character
        raise error([f"{path}: cannot be read: {getattr(fault, 'strerror', None) or fault}"]) from None


def validate(source: Source, model: type[M], error: type[DocumentError] = DocumentError) -> M:
    """Returns the document as a checked `model`.

    Raises:
        DocumentError: (as `error`) with a line for every fault.
    """
    if not isinstance(source.data, dict):
        raise error([source.fault((), f"expected a mapping of keys to values, found {kind_of(source.data)}")])
    try:
        return model.model_validate(source.data)
    except ValidationError as failure:
        faults = failure.errors()
        inner = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
        # pydantic also counts a list's faulty members as missing: the fault inside says enough.
        kept = [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inner]
        raise error(list(dict.fromkeys(_fault_line(source, model, fault) for fault in kept))) from None


def _fault_line(source: Source, model: type[BaseModel], fault: Any) -> str:
    """Returns one of pydantic's errors as a line of text."""
    kind, found, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    location = _in_document(source.data, fault["loc"])
    if kind == "missing" and isinstance(fault["loc"][-1], int):
        kind, found, context = "too_short", list(found), {"min_length": fault["loc"][-1] + 1}
    if kind == "missing":
        return source.fault(location, f'"{fault["loc"][-1]}" is missing; add it')
    if kind == "extra_forbidden":
        known = [name for parent in _models_at(model, location[:-1]) for name in parent.model_fields]
        return source.fault(location, f'unknown key "{location[-1]}"{suggestion(str(location[-1]), known)}')
    message = str(fault["msg"]).removeprefix("Value error, ")
    if kind == "model_type":
        fields = [field for one in _models_at(model, location) for field in one.model_fields.items()]
        needed = " and ".join(f'"{name}"' for name, field in fields if field.is_required())
        context = {"keys": f" with {needed}" if needed else ""}
    expected = _EXPECTED.get(kind) or message.partition("Input should be ")[2]
    if expected:
        message = f"expected {expected.format(**context)}, found {shown(found)}"
    if kind == "literal_error":
        message += closest(str(found), context["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    if kind == "string_type" and isinstance(found, int | float):
        message += "; put it in quotes"
    return source.fault(location, message)


_EXPECTED = {
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values{keys}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "string_too_short": "text of at least {min_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
"""What pydantic expects, by the type of its error, in words for those who write YAML and not Python."""


_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def kind_of(value: Any) -> str:
    """Returns what kind of YAML or JSON data a value is, for messages."""
    return _KINDS.get(type(value), "null")


def shown(value: Any) -> str:
    """Returns a value as a message shows it: short, and as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_document(data: Any, loc: Location) -> Location:
    """Returns pydantic's location without parts that are not in the document, such as names of union members."""
    kept: list[str | int] = []
    for part in loc:
        inside_dict = isinstance(data, dict) and part in data
        if inside_dict or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            kept.append(part)
    return tuple(kept)


def _models_at(model: type[BaseModel], location: Location) -> list[type[BaseModel]]:
    """Returns the models that may describe the mapping at `location`."""
    current: list[type[BaseModel]] = [model]
    for part in location:
        fields = [one.model_fields[part] for one in current if part in one.model_fields]
        current = [found for field in fields for found in _models_in(field.annotation)] or current
    return current


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns the pydantic models inside an annotation such as ``list[X] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _models_in(argument)]
