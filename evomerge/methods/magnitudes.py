"""`Magnitudes`: the order of a tensor's magnitudes, which names the threshold of any density without sorting.

The bits of a float32 magnitude, read as an integer, have the order of the magnitudes. Their upper half is one of
2^15 buckets: a histogram, counted once, finds the bucket of the k-th largest for every k, and only the values in that
bucket are looked at then. The task vector of a fine-tune stored in bfloat16 has few distinct magnitudes; a search lists
them with their counts in each block, and a threshold then needs a look at one block only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BUCKETS = 1 << 15
# With more distinct magnitudes, their counts in each block would take as much memory as the tensor.
_MOST_LISTED = 8192

Bits = NDArray[np.int32]
"""Magnitudes, as the bits of float32."""


class Threshold(NamedTuple):
    """Which elements are the k largest: those above `magnitude`, and those equal to it before `position`."""

    magnitude: float
    position: int


class Magnitudes:
    """The order of the magnitudes of a float32 tensor, read block by block.

    Args:
        read: gives the elements from a first up to a last one, flat, float32, free to be changed.
        numel: how many there are; at least one.
        block: how many are looked at together.
        kept: whether many thresholds will be asked for, so that listing distinct magnitudes pays.
    """

    def __init__(self, read: Callable[[int, int], Tensor], numel: int, block: int, *, kept: bool = False) -> None:
        self._read = read
        self._numel = numel
        self._block = block
        self._last: tuple[int, Threshold] | None = None
        self._order = (_Listed.of(self._blocks()) if kept else None) or _Bucketed(self._blocks)

    def threshold(self, count: int) -> Threshold:
        """Returns which elements are the `count` largest in magnitude.

        Exactly `count` are. Of equal magnitudes at the threshold, those with the lowest flat (row-major) index count
        as larger. NaN counts as larger than any number.

        Args:
            count: from 1 to the number of elements.
        """
        if self._last is None or self._last[0] != count:
            self._last = (count, self._find(count))
        return self._last[1]

    def _find(self, count: int) -> Threshold:
        bits, rank, equals = self._order.find(count)
        magnitude = float(np.int32(bits).view(np.float32))
        if rank == sum(equals):
            return Threshold(magnitude, self._numel)
        for index, here in enumerate(equals):
            if rank <= here:
                start = index * self._block
                equal = self._bits(start, min(start + self._block, self._numel)) == bits
                return Threshold(magnitude, start + int(np.flatnonzero(equal)[rank - 1]) + 1)
            rank -= here
        raise AssertionError("the blocks hold fewer equals than were counted")

    def _blocks(self) -> Iterator[Bits]:
        for start in range(0, self._numel, self._block):
            yield self._bits(start, min(start + self._block, self._numel))

    def _bits(self, start: int, stop: int) -> Bits:
        # numpy compares several numbers at once, where torch on a processor takes them one by one.
        bits: Bits = self._read(start, stop).abs_().view(torch.int32).cpu().numpy()
        return bits


class _Listed:
    """All distinct magnitudes, and how often each occurs in each block."""

    def __init__(self, values: Bits, counts: NDArray[np.uint16]) -> None:
        self._values = values
        self._counts = counts
        self._from_largest = counts.sum(axis=0, dtype=np.int64)[::-1].cumsum()

    @classmethod
    def of(cls, blocks: Iterator[Bits]) -> _Listed | None:
        """Returns the list, or None where it would be too long."""
        found = []
        for bits in blocks:
            bits.sort()
            starts = np.concatenate([[0], np.flatnonzero(bits[1:] != bits[:-1]) + 1])
            if len(starts) > _MOST_LISTED:
                return None
            found.append((bits[starts], np.diff(starts, append=len(bits))))
        values = np.unique(np.concatenate([values for values, _ in found]))
        if len(values) > _MOST_LISTED:
            return None
        counts = np.zeros((len(found), len(values)), np.uint16)
        for row, (own, times) in zip(counts, found, strict=True):
            row[np.searchsorted(values, own)] = times
        return cls(values, counts)

    def find(self, count: int) -> tuple[int, int, list[int]]:
        """Returns the bits of the count-th largest, its rank among its equals, and how many of those each block has."""
        place = int(np.searchsorted(self._from_largest, count))
        equals: list[int] = self._counts[:, len(self._values) - 1 - place].tolist()
        rank = count - int(self._from_largest[place]) + sum(equals)
        return int(self._values[len(self._values) - 1 - place]), rank, equals


class _Bucketed:
    """How many magnitudes each bucket holds; those in one are looked at when they are asked for."""

    def __init__(self, blocks: Callable[[], Iterator[Bits]]) -> None:
        self._blocks = blocks
        self._histogram = np.zeros(_BUCKETS, np.int64)
        for bits in blocks():
            self._histogram += np.bincount(bits >> 16, minlength=_BUCKETS)
        self._from_largest = self._histogram[::-1].cumsum()

    def find(self, count: int) -> tuple[int, int, list[int]]:
        """See `_Listed.find`."""
        place = int(np.searchsorted(self._from_largest, count))
        bucket = _BUCKETS - 1 - place
        rank = count - int(self._from_largest[place]) + int(self._histogram[bucket])
        inside = [bits[bits >> 16 == bucket] for bits in self._blocks()]
        ordered = np.sort(np.concatenate(inside))[::-1]
        bits = ordered[rank - 1]
        rank -= int(np.count_nonzero(ordered > bits))
        return int(bits), rank, [int(np.count_nonzero(own == bits)) for own in inside]
