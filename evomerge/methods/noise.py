"""Random numbers for the random methods, which depend on the seed, the source and the tensor alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

LEVELS = 1 << 15
"""How many different numbers are drawn: a density is met to within half of 1 / 32,768, less than the chance
deviation of the share that is kept in any tensor of under a billion elements."""


def noise_piece(seed: int, source: int, name: str, piece: int, count: int) -> NDArray[np.int16]:
    """Returns independent whole numbers, uniform from 0 to `LEVELS` - 1.

    They are drawn on the CPU whatever the device, so that a candidate scored on a GPU is the one written
    on a machine without one; and by a generator of their own for each piece, so that neither the order in which
    tensors are visited nor anything else that draws numbers changes them.

    Args:
        seed: the recipe's seed; any integer.
        source: the index of the source among the tensors to merge.
        name: the name of the tensor to build.
        piece: the index of the piece of that tensor.
        count: how many numbers; a longer piece begins with those of a shorter one.

    Returns:
        An int16 array of shape (count,).
    """
    # The name comes last: the numbers before it hold no separator, so no two keys can be spelled alike.
    key = f"{seed}/{source}/{piece}/{name}".encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    words = np.random.SFC64(int.from_bytes(digest, "little")).random_raw(-(-count // 4))
    return words.astype("<u8", copy=False).view("<i2")[:count] & np.int16(LEVELS - 1)


def cut(density: float) -> int:
    """Returns which of the numbers keep an element at `density`: those below; at least one of them, at most all."""
    return min(LEVELS, max(1, round(density * LEVELS)))
