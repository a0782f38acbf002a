"""Random numbers for the random methods, which depend on the seed, the model and the tensor alone."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVELS = 31_616
"""How many different numbers are drawn: a density is met to within 1 / 31,616, less than the chance deviation of the
share that is kept in any tensor of under a hundred million elements."""

FIRST = 1024
"""The lowest number that is drawn. They are read as bfloat16, whose bits have the order of its numbers: from these bits
on, neither one nor the difference of two is so small that a processor may take it for zero; the last is below infinity.
"""


def noise_piece(seed: int, model: int, name: str, piece: int, count: int) -> NDArray[np.int16]:
    """Returns independent whole numbers, uniform from `FIRST` to `FIRST` + `LEVELS` - 1.

    They are always drawn on the CPU, so that a candidate scored on a GPU is the one written on a machine without one;
    and each piece has its own generator, so that neither the order in which tensors are visited nor other draws change
    them.

    Args:
        seed: the recipe's seed; any integer.
        model: the index of the model among the tensors to merge.
        name: the name of the tensor to build.
        piece: the index of the piece of that tensor.
        count: how many numbers; a longer piece begins with those of a shorter one.

    Returns:
        An int16 array of shape (count,).
    """
    # The name comes last: the numbers before it hold no separator, so no two keys are equal.
    key = f"{seed}/{model}/{piece}/{name}".encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    words = np.random.SFC64(int.from_bytes(digest, "little")).random_raw(-(-count // 4))
    halves = words.astype("<u8", copy=False).view("<u2")[:count]
    return (halves * np.uint32(LEVELS) >> 16).astype(np.int16) + np.int16(FIRST)


def as_numbers(levels: Tensor) -> Tensor:
    """Returns what was drawn as bfloat16 numbers of the same order, which processors convert many at a time.

    Args:
        levels: int16, as `noise_piece` gives them.
    """
    return levels.view(torch.bfloat16)


def number_of(level: int) -> float:
    """Returns the number that `as_numbers` gives for `level`; for `FIRST` + `LEVELS` one above all that are drawn."""
    return float(torch.tensor(level, dtype=torch.int16).view(torch.bfloat16))


def cut(density: float) -> int:
    """Returns which of the numbers keep an element at `density`: those below; at least one of them, at most all."""
    return FIRST + min(LEVELS, max(1, round(density * LEVELS)))
