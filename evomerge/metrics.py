r"""Scores of single answers: 1.0 if right, 0.0 if wrong, a share for a tie of choices.

How this file reads numbers:

- Digits of any script are digits: ``１２３`` and ``١٢٣`` are 123.
- Thousands are separated as in English, ``1,234,567``, or by no-break, narrow no-break, thin or figure
  spaces, in groups of three; LaTeX's ``1{,}234`` and ``1\,234`` too. ``1,23`` is two numbers.
- A point is a decimal point, so ``1.234`` is less than two. Continental notation is read only if it is
  unambiguous: ``1.234,50`` and ``1.234.567``.
- A hyphen or minus (``-``, ``−``, ``－``, ``‑``, ``–``) is a sign only directly before the number or its
  currency sign, and only if it cannot join or subtract what precedes it: ``x = -3`` and
  ``答えは-3`` are negative; ``3-4``, ``7-2``, ``GPT-4``, ``10%-20%`` and ``a list: - 3`` are not.
- Percent signs, currency signs, units and a final full stop are ignored: ``$1,234.50.`` is 1234.5.
- ``1e-3`` is a number. Fractions, words (``three``) and kanji (``七``, ``5万``) are not read.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

import regex

PATTERN_SECONDS = 1.0
"""Time limit for one pattern on one completion; ordinary patterns take microseconds."""

_CURRENCY = "$€£¥￥₹₩฿₽₫₺\\"
"""Currency signs, and the backslash that LaTeX puts before a dollar."""

_JOINS_BEFORE_HYPHEN = ")]}）］｝%％°′-."
"""After these, a hyphen joins or subtracts."""

_SIGNS = str.maketrans(dict.fromkeys("−－‑‐﹣–", "-") | dict.fromkeys("＋", "+") | {"．": ".", "٫": ".", "٬": ","})

_NUMBER = re.compile(
    r"""
    (?: [1-9][0-9]{0,2} (?: (?:\.[0-9]{3})+ , [0-9]{1,2} | (?:\.[0-9]{3}){2,} ) (?![0-9])   # 1.234,50
      | (?: [1-9][0-9]{0,2} (?: (?:,[0-9]{3})+ | (?:[\u00a0\u202f\u2007\u2009][0-9]{3})+ ) (?![0-9])   # 1,234
          | [0-9]+ ) (?:\.[0-9]+)?
      | (?<![0-9A-Za-z.]) \.[0-9]+   # .5
    )
    (?: [eE] [-+]?[0-9]{1,4} (?![0-9A-Za-z]) )?
    """,
    re.VERBOSE,
)


def accuracy(likelihoods: Sequence[float], answer: int) -> float:
    """Returns 1.0 if the choice `answer` alone is the likeliest, 1/k if it ties with others among k, else 0.0.

    A tie scores what picking one of its choices at random would on average: a model that cannot distinguish choices
    scores like guessing, in any order, and coarse logits neither gain nor lose by ties.

    Args:
        likelihoods: each choice's log-likelihood (nats), divided by a length or not.
        answer: the index of the right choice.
    """
    best = max(likelihoods)
    # Sums of float32 numbers: smaller differences depend on the batch that a choice was run in.
    tied = [math.isclose(value, best, rel_tol=1e-6) for value in likelihoods]
    return tied[answer] / sum(tied)


def choice_length(choice: str) -> int:
    """Returns the characters that ``accuracy_norm`` divides a choice's log-likelihood by, as lm-eval's ``acc_norm``.

    The white space that separates a choice from its prompt is not counted: lm-eval inserts it itself
    (``target_delimiter``) and counts the choice alone.
    """
    return len(choice) - choice[:1].isspace()


def exact_match(completion: str, target: str) -> float:
    """Returns 1.0 if the texts are equal, ignoring white space around them, else 0.0."""
    return float(completion.strip() == target.strip())


def last_number(completion: str, target: str) -> float:
    """Returns 1.0 if the last numbers of both texts are equal as numbers, else 0.0.

    ``1,234.50`` equals ``1234.5``; the top of this file says what a number is. If either text has no
    number the score is 0.0.
    """
    found, right = number_in(completion), number_in(target)
    return float(found is not None and right is not None and found == right)


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
    number, right = _whole_number(found), _whole_number(target)
    if number is not None and right is not None:
        return float(number == right)
    return exact_match(found, target)


def number_in(text: str) -> Decimal | None:
    """Returns the last number in a text, exactly, or None; the top of this file says what a number is."""
    text = _plain(text)
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - only the last match is needed
        pass
    if last is None:
        return None
    value = _decimal(last[0])
    # copy_negate is exact; unary minus would round to the context's 28 digits.
    return value.copy_negate() if _is_negative(text[: last.start()]) else value


def _plain(text: str) -> str:
    """Returns the text with ASCII digits, signs and separators, so that one pattern reads all scripts."""
    # A full-width comma separates clauses in Chinese (共100，200个): it groups only full-width digits.
    text = re.sub("(?<=[０-９])，(?=[０-９])", ",", text)
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return text.replace("{,}", ",").replace("\\,", "\u202f").translate(_SIGNS)


def _decimal(number: str) -> Decimal:
    """Returns the value of what `_NUMBER` matched."""
    number = re.sub("[\u00a0\u202f\u2007\u2009]", "", number)
    if re.search(r"\..*,|\..*\.", number):  # only continental notation has these
        number = number.replace(".", "").replace(",", ".")
    return Decimal(number.replace(",", ""))


def _is_negative(before: str) -> bool:
    """Returns whether the text before a number ends in a minus that is its sign."""
    before = before[-64:].rstrip(_CURRENCY)
    if not before.endswith("-"):
        return False
    left = before[:-1].rstrip(_CURRENCY)[-1:]
    # Letters with two cases belong to scripts that separate words by spaces, so a hyphen after one joins words.
    return not (left.isdigit() or left.lower() != left.upper() or (left and left in _JOINS_BEFORE_HYPHEN))


def _whole_number(text: str) -> Decimal | None:
    """Returns the number if the text is nothing else, apart from sign, currency, percent and final punctuation."""
    text = _plain(text).strip().rstrip(".。,;:!").strip(_CURRENCY + "%％ ")
    match = _NUMBER.search(text)
    if match is None or match.end() != len(text):
        return None
    sign = text[: match.start()].strip(_CURRENCY)
    if sign not in {"", "+", "-"}:
        return None
    value = _decimal(match[0])
    return value.copy_negate() if sign == "-" else value
