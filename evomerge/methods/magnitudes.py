"""`Magnitudes`: the order of a tensor's magnitudes, which names the threshold of any density without sorting them all.

The bits of a float32 magnitude, read as an integer, have the order of the magnitudes. A sample brackets the k-th
largest, and one pass counts what lies above the bracket and sorts what lies in it. The task vector of a fine-tune
stored in bfloat16 has few distinct magnitudes; a search lists them with their counts in each block, and a threshold
then needs a look at one block only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A sample has runs of so many elements, one in so many; a tensor of few elements is looked at as a whole.
_RUN = 512
_STRIDE = 1 << 14
_WORTH_SAMPLING = 1 << 16
_LARGEST = 0x7FFFFFFF
# Elements that are looked at together: where magnitudes are listed, the fewer the less is looked at for a threshold.
_LISTED_BLOCK = 32_000
_BLOCK = 8 * _LISTED_BLOCK
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
        kept: whether many thresholds will be asked for, so that listing distinct magnitudes pays.
    """

    def __init__(self, read: Callable[[int, int], Tensor], numel: int, *, kept: bool = False) -> None:
        self._read = read
        self._numel = numel
        self._block = _LISTED_BLOCK
        # A candidate asks for two at most; what the next one asks again is known.
        self._recent = lru_cache(maxsize=2)(self._find)
        listed = _Listed.of(self._blocks()) if kept else None
        if listed is None:
            self._block = _BLOCK
        self._order = listed or _Sampled(self._bits, self._blocks, numel)

    def threshold(self, count: int) -> Threshold:
        """Returns which elements are the `count` largest in magnitude.

        Exactly `count` are. Of equal magnitudes at the threshold, those with the lowest flat (row-major) index count
        as larger. NaN counts as larger than any number.

        Args:
            count: from 1 to the number of elements.
        """
        return self._recent(count)

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


class _Sampled:
    """A sample of the magnitudes, which brackets the one that is asked for: one pass then finds it among a few."""

    def __init__(self, read: Callable[[int, int], Bits], blocks: Callable[[], Iterator[Bits]], numel: int) -> None:
        self._blocks = blocks
        self._numel = numel
        starts = range(0, numel, _STRIDE) if numel > _WORTH_SAMPLING else ()
        runs = [read(start, min(start + _RUN, numel)) for start in starts]
        self._sample = np.sort(np.concatenate([np.empty(0, np.int32), *runs]))

    def find(self, count: int) -> tuple[int, int, list[int]]:
        """See `_Listed.find`."""
        size = len(self._sample)
        place = (1 - count / self._numel) * size
        # Neighbours are alike, so a sample of runs errs by more than one of single elements.
        margin = 4 * math.sqrt(size)
        while True:
            first, last = math.floor(place - margin), math.ceil(place + margin)
            low = self._sample[first] if first >= 0 and size else np.int32(0)
            high = self._sample[last] if last < size else np.int32(_LARGEST)
            above, inside = 0, []
            for bits in self._blocks():
                above += int(np.count_nonzero(bits > high))
                inside.append(bits[(bits >= low) & (bits <= high)])
            few = np.concatenate(inside)
            rank = count - above
            if 0 < rank <= len(few):
                break
            margin *= 4
        found = np.partition(few, len(few) - rank)[len(few) - rank]
        rank -= int(np.count_nonzero(few > found))
        return int(found), rank, [int(np.count_nonzero(own == found)) for own in inside]
