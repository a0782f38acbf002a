"""Names of models and tensors as pictures show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def printable(text: str) -> str:
    """Returns text without characters that would steer a terminal or that XML cannot hold."""
    return "".join(character if character.isprintable() else "�" for character in text)


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the last part of each model's name, or as many of its last parts as no other name ends with."""
    parts = {name: name.rstrip("/").split("/") for name in names}
    counts = Counter("/".join(own[-size:]) for own in parts.values() for size in range(1, len(own) + 1))

    def short(own: list[str]) -> str:
        ends = ("/".join(own[-size:]) for size in range(1, len(own) + 1))
        return next((end for end in ends if counts[end] == 1), "/".join(own))

    return tuple(printable(short(parts[name])) for name in names)


def with_short_names(text: str, names: Sequence[str]) -> str:
    """Returns text with the short names of models in place of their names."""
    for name, short in sorted(zip(names, short_names(names), strict=True), key=lambda pair: -len(pair[0])):
        text = text.replace(name, short)
    return text


def shortened(text: str, size: int) -> str:
    """Returns text of at most `size` characters: its beginning and its end where it is longer."""
    return text if len(text) <= size else f"{text[: size // 2 - 1]}…{text[len(text) - size + size // 2 :]}"


def letter(model: int) -> str:
    """Returns the letter of a model by its index, A for the first; after Z they are small, then numbers."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[model] if model < 52 else str(model)
