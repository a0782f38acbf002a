"""Uniform numbers for the random methods, which depend on the seed, the source and the tensor alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Noise = Callable[[int], Tensor]
"""Gives source i's uniform numbers in [0, 1): float32, of the merged tensors' shape and device."""


def uniform(seed: int, source: int, name: str, shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Returns uniform numbers in [0, 1) that depend on `seed`, `source`, `name` and `shape` alone.

    They are drawn on the CPU whatever the device, so that a candidate scored on a GPU is the one written
    on a machine without one; and from a generator of their own, so that neither the order in which tensors
    are visited nor anything else that draws numbers changes them.

    Args:
        seed: the recipe's seed; any integer.
        source: the index of the source among the tensors to merge.
        name: the name of the tensor to build.
        shape: the shape of the result.
        device: where the result is to lie.

    Returns:
        A float32 tensor of `shape` on `device`.
    """
    # The name comes last: the numbers before it hold no separator, so no two keys can be spelled alike.
    key = f"{seed}/{source}/{name}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))
    numbers = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
    return numbers.to(device)


def noise_for(seed: int, name: str, shape: Sequence[int], device: torch.device | str) -> Noise:
    """Returns the noise of the tensor `name`: source i's numbers are drawn when they are asked for.

    Args:
        seed: the value of the parameter `seed` (0 for a method without it, which never asks).
        name: the name of the tensor to build.
        shape: its shape.
        device: where the numbers are to lie.
    """

    def noise(source: int) -> Tensor:
        return uniform(seed, source, name, shape, device)

    return noise
