"""The language that a text is written in.

It is found by py3langid, whose model is in its package. lingua-language-detector is as accurate on the sentences of
MGSM (English 97%, Spanish 97%, Japanese 99.9%; 99 to 100% of two sentences, which is still less than an answer with
its reasoning), but takes 880 MB of memory, 5 s to start and 1.1 ms a text, where py3langid takes 92 MB, 0.5 s and
0.04 ms; its package has 96 MB, py3langid's 4.6 MB. lingua's low-accuracy mode is as light, and finds 88 to 91% of
single sentences in English and Spanish.
"""

from __future__ import annotations

import functools

_MEANT = {"jp": "ja", "cn": "zh", "ch": "zh", "kr": "ko", "sp": "es", "ge": "de", "gr": "el", "cz": "cs", "dk": "da"}
"""Languages by the first two letters of what people write for them, where these are not the code."""


def is_written_in(text: str, language: str) -> bool:
    """Returns whether a text is more likely to be in `language` than in any other.

    A text without letters, such as a number, is in no language: in Akiba et al. 2024 an answer counts only if its
    reasoning is in the language, and their detector does not take a bare number for Japanese either. Formulas and
    names among the words do no harm. A few words alone may be taken for a similar language: Japanese without kana for
    Chinese, for example.

    Args:
        text: any text.
        language: an ISO 639-1 code, as `check_language_code` accepts it.
    """
    import py3langid

    if not any(character.isalpha() for character in text):
        return False
    # Dialects and languages without a code of two letters, such as Cantonese, count as the likeliest that has one.
    likeliest: str = next(code for code, _ in py3langid.rank(text) if len(code) == 2)
    return likeliest == language


def check_language_code(language: str) -> str:
    """Returns the code.

    Raises:
        ValueError: it is not the ISO 639-1 code of a language that can be told.
    """
    known = _codes()
    if language not in known:
        start = language.lower()[:2]
        near = start if start in known else _MEANT.get(start)
        advice = f'did you mean "{near}"?' if near else f"expected one of {', '.join(known)}"
        raise ValueError(f'"{language}" is not the ISO 639-1 code of a language that can be detected; {advice}')
    return language


@functools.cache
def _codes() -> list[str]:
    import py3langid

    return sorted(code for code, _ in py3langid.rank("") if len(code) == 2)
