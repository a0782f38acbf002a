"""Metrics that compare words: the share of them that a completion and its target have in common."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import regex

from evomerge.document import shown


def f1(completion: str, target: str, language: str | None = None) -> float:
    """Returns the F1 score of the completion's words, as SQuAD counts them: in any order.

    Case, punctuation and articles (a, an, the) do not count.

    Source: Rajpurkar et al. 2016, section 6.1, https://arxiv.org/abs/1606.05250

    Args:
        completion: what the model wrote.
        target: the right answer.
        language: see `words`.
    """
    found, right = _counted(completion, language), _counted(target, language)
    return _f1((Counter(found) & Counter(right)).total(), found, right)


def rouge_l(completion: str, target: str, language: str | None = None) -> float:
    """Returns ROUGE-L: the F1 score of the longest sequence of words that both texts have, in order, with gaps.

    Source: Lin 2004, section 3.1, https://aclanthology.org/W04-1013

    Args:
        completion: what the model wrote.
        target: the right answer.
        language: see `words`.
    """
    found, right = words(completion, language), words(target, language)
    return _f1(_longest_common(found, right), found, right)


def words(text: str, language: str | None = None) -> list[str]:
    """Returns a text's words in lower case.

    Args:
        text: any text.
        language: None: words are runs of letters and digits, as in the rouge-score package but in any script. ``ja``:
            they are the morphemes of MeCab with UniDic, after NFKC normalization, with punctuation, as in the
            evaluation of Akiba et al. 2024.
    """
    if language is None:
        return re.findall(r"[^\W_]+", text.lower())
    divided: str = _mecab().parse(" ".join(unicodedata.normalize("NFKC", text).lower().split()))
    return divided.split()


def check_language(language: Any) -> None:
    """Raises ValueError if words are not divided in such a language, or its dictionary is not installed."""
    if language not in (None, "ja"):
        raise ValueError(f"words cannot be divided for {shown(language)}; expected ja, or none: words between spaces")
    if language == "ja":
        try:
            _mecab()
        except ImportError:
            raise ValueError("Japanese words need MeCab; install evomerge[japanese]") from None


def check_words(compare: Callable[..., float], target: str, language: str | None) -> None:
    """Raises ValueError if a target has no words that `compare` counts."""
    if not compare(target, target, language):
        raise ValueError(f"{shown(target)} has no words to compare")


@functools.cache
def _mecab() -> Any:
    import fugashi
    import unidic_lite

    return fugashi.Tagger(f"-Owakati -d {unidic_lite.DICDIR}")


def _counted(text: str, language: str | None) -> list[str]:
    """Returns the words that `f1` counts."""
    divided = text.lower().split() if language is None else words(text, language)
    bare = (regex.sub(r"[\p{P}\p{S}]", "", word) for word in divided)
    return [word for word in bare if word not in {"", "a", "an", "the"}]


def _f1(common: int, found: Sequence[str], right: Sequence[str]) -> float:
    return 2 * common / (len(found) + len(right)) if common else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for i, match in enumerate(other, 1):
            diagonal, lengths[i] = lengths[i], diagonal + 1 if word == match else max(lengths[i], lengths[i - 1])
    return lengths[-1]
