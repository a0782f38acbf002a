"""Metrics that compare a completion with its target as text."""

from __future__ import annotations

import re
from typing import Any

import regex

from evomerge.metrics.numbers import whole_number

PATTERN_SECONDS = 1.0
"""Time limit for one pattern on one completion; ordinary patterns take microseconds."""


def exact_match(completion: str, target: str) -> float:
    """Returns 1.0 if the texts are equal, ignoring white space around them, else 0.0."""
    return float(completion.strip() == target.strip())


def contains(completion: str, target: str) -> float:
    """Returns 1.0 if the target is part of the completion, ignoring case and white space around it, else 0.0."""
    return float(target.strip().casefold() in completion.casefold())


def regex_match(completion: str, target: str, pattern: str) -> float:
    r"""Returns 1.0 if the first match of `pattern` equals the target, else 0.0.

    The pattern's group, or the whole match if it has none, is compared with the target: as numbers if
    both are numbers and nothing else (``1,234.`` equals ``1234``), otherwise as text, ignoring white space
    around it.

    Args:
        completion: what the model wrote.
        target: the right answer.
        pattern: a regular expression with at most one group, such as ``answer is (\S+)``. To take the last
            match, begin it with ``(?s:.*)``.

    Raises:
        TimeoutError: the search takes longer than `PATTERN_SECONDS`, because the pattern backtracks.
    """
    match = regex.search(pattern, completion, timeout=PATTERN_SECONDS)
    found: str | None = match[match.re.groups and 1] if match else None
    if found is None:
        return 0.0
    number, right = whole_number(found), whole_number(target)
    if number is not None and right is not None:
        return float(number == right)
    return exact_match(found, target)


def check_pattern(pattern: Any) -> None:
    """Raises ValueError if `pattern` is not a regular expression with at most one group."""
    if not isinstance(pattern, str):
        raise ValueError("regex needs a pattern, as text: {regex: PATTERN}")
    try:
        groups = re.compile(pattern).groups
        regex.compile(pattern)  # which bounds the time of a search; a task may not use its extensions
    except (re.error, regex.error, RecursionError, OverflowError) as fault:
        raise ValueError(f"not a regular expression: {fault}") from None
    if groups > 1:
        raise ValueError(f"{groups} groups; one group may contain the answer; write (?:...) for the others")
