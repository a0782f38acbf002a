"""The metric that compares JSON."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, NoReturn

from evomerge.document import shown


def json_match(completion: str, target: str, keys: list[str] | None = None) -> float:
    """Returns 1.0 if the first JSON value in the completion equals the target's, else 0.0.

    If the completion is more than one JSON value, the first object or list in it counts, so that text before it and
    code fences do no harm. Numbers are compared as numbers, and the order of an object's keys does not matter.

    Args:
        completion: what the model wrote.
        target: JSON.
        keys: compare the values of these keys alone; None: compare the whole value.
    """
    found, right = _first_value(completion), _first_value(target)
    if keys is None:
        return float(_same(found, right))
    return float(isinstance(found, dict) and all(key in found and _same(found[key], right[key]) for key in keys))


def check_keys(keys: Any) -> None:
    """Raises ValueError if `keys` is neither None nor a list of keys."""
    if keys is not None and not (isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)):
        raise ValueError(f"expected a list of keys, such as {{json: [name, age]}}, found {shown(keys)}")


def check_json(target: str, keys: list[str] | None) -> None:
    """Raises ValueError if a target is not JSON, or not an object that has all the keys."""
    try:
        value = _DECODER.decode(target)
    except (ValueError, RecursionError):
        raise ValueError(f"{shown(target)} is not JSON; for a field that holds data, add | tojson") from None
    missing = [key for key in keys or () if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f'{shown(target)} has no key "{missing[0]}", which json compares')


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal, parse_constant=_refused)
_NOTHING = object()


def _first_value(text: str) -> Any:
    """Returns the text's JSON value, or that of the first object or list in it, or `_NOTHING`."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        return _NOTHING
    except ValueError:
        pass
    for start in re.finditer(r"[\[{]", text):
        try:
            return _DECODER.raw_decode(text, start.start())[0]
        except RecursionError:
            break
        except ValueError:
            continue
    return _NOTHING


def _same(one: Any, other: Any) -> bool:
    """Returns whether two JSON values are equal; unlike in Python, true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)
