"""Names of models and tensors as pictures show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def printable(text: str) -> str:
    """Returns text without characters that would steer a terminal or that XML cannot hold."""
    return "".join(character if character.isprintable() else "�" for character in text)


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the last part of each model's name, or all of it where several end alike."""
    last = {name: name.rstrip("/").rpartition("/")[2] or name for name in names}
    counts = Counter(last.values())
    return tuple(printable(last[name] if counts[last[name]] == 1 else name) for name in names)


def shortened(text: str, size: int) -> str:
    """Returns text of at most `size` characters: its beginning and its end where it is longer."""
    return text if len(text) <= size else f"{text[: size // 2 - 1]}…{text[len(text) - size + size // 2 :]}"


def letter(model: int) -> str:
    """Returns the letter of a model by its index, A for the first; after Z they are small, then numbers."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[model] if model < 52 else str(model)
