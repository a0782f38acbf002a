r"""Numbers in texts: how they are read, and the metric that compares the last one.

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

import re
import unicodedata
from decimal import Decimal
from typing import Any

from evomerge.document import shown

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


def last_number(completion: str, target: str, rule: str | None = None) -> float:
    r"""Returns 1.0 if the last number of the completion equals that of the target, else 0.0.

    Args:
        completion: what the model wrote; without a number it scores 0.0.
        target: the right answer, or a text that ends in it.
        rule: how the completion's number is read. None: as the top of this file says. ``sakana``: as the evaluation
            of Akiba et al. 2024 does (``evomerge/eval/ja_mgsm.py`` of SakanaAI/evolutionary-model-merge), to compare
            with published scores: the last match of ``\d*\.?\d+``. Separators of thousands end a number there
            (``1,234`` is 234), signs do not belong to it (``-5`` is 5), nor do exponents (``2e3`` is 3).
    """
    right = number_in(target)
    if rule is None:
        found = number_in(completion)
    else:
        matches = re.findall(r"\d*\.?\d+", completion)
        found = Decimal(matches[-1]) if matches else None
    return float(found is not None and found == right)


def check_rule(rule: Any) -> None:
    """Raises ValueError if `last_number` has no such rule."""
    if rule not in (None, "sakana"):
        raise ValueError(f"last_number has no rule {shown(rule)}; expected sakana, or no rule")


def check_ends_in_number(target: str, _rule: Any) -> None:
    """Raises ValueError if a target has no number."""
    if number_in(target) is None:
        raise ValueError(f"{shown(target)} has no number, which last_number compares")


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


def whole_number(text: str) -> Decimal | None:
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
