"""`Magnitudes`: the order of a tensor's magnitudes, which names the threshold of any density without sorting them all.

The bits of a float32 magnitude, read as an integer, have the order of the magnitudes. A sample brackets the k-th
largest, and one pass counts what lies above the bracket and sorts what lies in it. The task vector of a fine-tune
stored in bfloat16 has few distinct magnitudes; a search lists them with their counts in each block, and a threshold
then needs a look at one block only.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.fused import BLOCK, PIECE
from evomerge.kernels.native import library

# A sample has so many runs of neighbours, about as many from each part of the tensor, and more where they would be
# further apart than that: the more there are, the fewer elements are held. Of held tensors the runs are shorter.
_RUNS = 512
_RUN = 64
_MOST_BETWEEN = 1 << 16
_HELD_RUN = 16
# A tensor of few elements is looked at without.
_WORTH_SAMPLING = 1 << 16
# The most elements that are held where thresholds are asked for once.
_HELD = 1 << 22
_LARGEST = 0x7FFFFFFF
# With more distinct magnitudes, their counts in each block would take as much memory as the tensor.
_MOST_LISTED = 8192

Bits = NDArray[np.int32]
"""Magnitudes, as the bits of float32."""

_SOURCE = """\
#include <stdint.h>
#include <string.h>

enum { TOGETHER = 2048, WORD = sizeof(uint64_t) };

/* Counts what lies above high, and puts what lies from low to high into inside. */
int64_t bracketed(int64_t count, const int32_t *bits, int32_t low, int32_t high, int64_t *above, int32_t *inside) {
    int64_t found = 0;
    *above = 0;
    for (int64_t start = 0; start < count; start += TOGETHER) {
        const int64_t here = start + TOGETHER < count ? TOGETHER : count - start;
        int32_t larger = 0;
        uint8_t within[TOGETHER] = {0};
        for (int64_t i = 0; i < here; i++) {
            larger += bits[start + i] > high;
            within[i] = (bits[start + i] >= low) & (bits[start + i] <= high);
        }
        *above += larger;
        /* Few are, so they are looked for word by word. */
        for (int64_t i = 0; i < here; i += WORD) {
            uint64_t some;
            memcpy(&some, within + i, WORD);
            for (int k = 0; some && k < WORD; k++)
                if (within[i + k])
                    inside[found++] = bits[start + i + k];
        }
    }
    return found;
}

/* Counts what lies above value, and what equals it. */
int64_t counted(int64_t count, const int32_t *bits, int32_t value, int64_t *above) {
    int64_t equal = 0;
    *above = 0;
    for (int64_t start = 0; start < count; start += TOGETHER) {
        const int64_t stop = start + TOGETHER < count ? start + TOGETHER : count;
        int32_t larger = 0, same = 0;
        for (int64_t i = start; i < stop; i++) {
            larger += bits[i] > value;
            same += bits[i] == value;
        }
        *above += larger;
        equal += same;
    }
    return equal;
}

/* Which element is the rank-th that equals value; there are as many. */
int64_t position(int64_t count, const int32_t *bits, int32_t value, int64_t rank) {
    int64_t start = 0;
    for (; start + TOGETHER < count; start += TOGETHER) {
        int32_t equal = 0;
        for (int64_t i = start; i < start + TOGETHER; i++)
            equal += bits[i] == value;
        if (equal >= rank)
            break;
        rank -= equal;
    }
    while (start < count && (bits[start] != value || --rank > 0))
        start++;
    return start;
}
"""


class Threshold(NamedTuple):
    """Which elements are the k largest: those above `magnitude`, and those equal to it before `position`.

    Attributes:
        magnitude: the k-th largest.
        below: the next smaller float32.
        position: an element's index.
    """

    magnitude: float
    below: float
    position: int

    @classmethod
    def of_none(cls, numel: int) -> Threshold:
        """Returns the threshold for k = 0."""
        return cls(math.inf, math.inf, numel)

    def dropped_up_to(self, stop: int) -> float:
        """Returns the largest magnitude that is dropped in the span that ends at `stop`: at the position or beyond."""
        return self.magnitude if stop > self.position else self.below


class Magnitudes:
    """The order of the magnitudes of a float32 tensor, read block by block.

    Args:
        read: gives the magnitudes of the elements from a first up to a last one, flat, float32.
        numel: how many there are; at least one.
        kept: whether many thresholds will be asked for, so that listing distinct magnitudes pays.
    """

    def __init__(self, read: Callable[[int, int], Tensor], numel: int, *, kept: bool = False) -> None:
        self._read = read
        self._numel = numel
        # Where magnitudes are listed, the fewer are looked at together, the less is looked at for a threshold.
        self._block = BLOCK
        self._held: Bits | None = None
        # A candidate asks for two at most; what the next one asks again is known.
        self._recent = lru_cache(maxsize=2)(self._find)
        listed = _Listed.of(self._blocks()) if kept else None
        if listed is None:
            self._block = PIECE
            if not kept and numel <= _HELD:
                self._held, self._block = self._bits(0, numel), numel
        self._order = listed or _Sampled(self._sample(), self._blocks, numel)

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
        magnitude = _number(bits)
        below = _number(bits - 1) if bits else -_number(1)
        if rank == sum(equals):
            return Threshold(magnitude, below, self._numel)
        for index, here in enumerate(equals):
            if rank <= here:
                start = index * self._block
                stop = min(start + self._block, self._numel)
                return Threshold(magnitude, below, start + _position(self._bits(start, stop), bits, rank) + 1)
            rank -= here
        raise AssertionError("the blocks hold fewer equals than were counted")

    def _blocks(self) -> Iterator[Bits]:
        for start in range(0, self._numel, self._block):
            yield self._bits(start, min(start + self._block, self._numel))

    def _sample(self) -> Bits:
        if self._numel <= _WORTH_SAMPLING:
            return np.empty(0, np.int32)
        if self._held is not None:
            every = self._numel * _HELD_RUN // (_RUNS * _RUN)
            return self._held[: self._numel // every * every].reshape(-1, every)[:, :_HELD_RUN].ravel()
        runs = max(_RUNS, self._numel // _MOST_BETWEEN)
        starts = range(0, self._numel - _RUN, self._numel // runs)
        return np.concatenate([self._bits(start, start + _RUN) for start in starts])

    def _bits(self, start: int, stop: int) -> Bits:
        if self._held is not None:
            return self._held[start:stop]
        bits: Bits = self._read(start, stop).view(torch.int32).cpu().numpy()
        return bits


def _number(bits: int) -> float:
    number: float = struct.unpack("f", struct.pack("i", bits))[0]
    return number


@cache
def _declared(native: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the functions of `_SOURCE`, once."""
    bits = (ctypes.c_int64, ctypes.c_void_p)
    native.bracketed.argtypes = (*bits, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
    native.counted.argtypes = (*bits, ctypes.c_int32, ctypes.c_void_p)
    native.position.argtypes = (*bits, ctypes.c_int32, ctypes.c_int64)
    for function in (native.bracketed, native.counted, native.position):
        function.restype = ctypes.c_int64
    return native


def _bracketed(bits: Bits, low: int, high: int) -> tuple[int, Bits]:
    """Returns how many lie above `high`, and those that lie from `low` to `high`, in their order."""
    native = library(_SOURCE)
    if native is None:
        return int(np.count_nonzero(bits > high)), bits[(bits >= low) & (bits <= high)]
    above, inside = ctypes.c_int64(), np.empty_like(bits)
    bracketed = _declared(native).bracketed
    found = bracketed(len(bits), bits.ctypes.data, low, high, ctypes.addressof(above), inside.ctypes.data)
    return above.value, inside[:found].copy()


def _counted(bits: Bits, value: int) -> tuple[int, int]:
    """Returns how many lie above `value`, and how many equal it."""
    native = library(_SOURCE)
    if native is None:
        return int(np.count_nonzero(bits > value)), int(np.count_nonzero(bits == value))
    above = ctypes.c_int64()
    equal: int = _declared(native).counted(len(bits), bits.ctypes.data, value, ctypes.addressof(above))
    return above.value, equal


def _position(bits: Bits, value: int, rank: int) -> int:
    """Returns which element is the `rank`-th that equals `value`."""
    native = library(_SOURCE)
    if native is None:
        return int(np.flatnonzero(bits == value)[rank - 1])
    position: int = _declared(native).position(len(bits), bits.ctypes.data, value, rank)
    return position


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
        for block in blocks:
            bits = np.sort(block)
            starts = np.concatenate([[0], np.flatnonzero(bits[1:] != bits[:-1]) + 1])
            if len(starts) > _MOST_LISTED:
                return None
            found.append((bits[starts], np.diff(starts, append=len(bits))))
        values = np.unique(np.concatenate([values for values, _ in found]))
        if len(values) > _MOST_LISTED:
            return None
        counts = np.zeros((len(found), len(values)), np.uint16)
        for times_here, (own, times) in zip(counts, found, strict=True):
            times_here[np.searchsorted(values, own)] = times
        return cls(values, counts)

    def find(self, count: int) -> tuple[int, int, list[int]]:
        """Returns the bits of the count-th largest, its rank among its equals, and how many of those each block has."""
        position = int(np.searchsorted(self._from_largest, count))
        equals: list[int] = self._counts[:, len(self._values) - 1 - position].tolist()
        rank = count - int(self._from_largest[position]) + sum(equals)
        return int(self._values[len(self._values) - 1 - position]), rank, equals


class _Sampled:
    """A sample of the magnitudes, which brackets the one that is asked for: one pass then finds it among a few."""

    def __init__(self, sample: Bits, blocks: Callable[[], Iterator[Bits]], numel: int) -> None:
        self._sample = np.sort(sample)
        self._blocks = blocks
        self._numel = numel

    def find(self, count: int) -> tuple[int, int, list[int]]:
        """See `_Listed.find`."""
        size = len(self._sample)
        position = (1 - count / self._numel) * size
        least, most = 0, _LARGEST
        if size:
            # Magnitudes of a tensor stored in bfloat16 are often equal, and the sample's own is the one.
            guess = int(self._sample[min(int(position), size - 1)])
            larger, equals = zip(*(_counted(bits, guess) for bits in self._blocks()), strict=True)
            rank = count - sum(larger)
            if 0 < rank <= sum(equals):
                return guess, rank, list(equals)
            least, most = (guess + 1, most) if rank <= 0 else (least, guess - 1)
        # Four standard deviations, for elements that are independent; where that was too few, there is another pass.
        margin = 2 * math.sqrt(size)
        while True:
            first, last = math.floor(position - margin), math.ceil(position + margin)
            low = max(least, int(self._sample[first]) if first >= 0 and size else 0)
            high = min(most, int(self._sample[last]) if last < size else _LARGEST)
            larger, inside = zip(*(_bracketed(bits, low, high) for bits in self._blocks()), strict=True)
            few = np.concatenate(inside)
            rank = count - sum(larger)
            if 0 < rank <= len(few):
                break
            margin *= 4
        found = np.partition(few, len(few) - rank)[len(few) - rank]
        rank -= int(np.count_nonzero(few > found))
        return int(found), rank, [int(np.count_nonzero(own == found)) for own in inside]
