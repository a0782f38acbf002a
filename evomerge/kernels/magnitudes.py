"""`Magnitudes`: the order of a tensor's magnitudes, which gives the threshold of any density without a full sort.

The bits of a float32 magnitude, read as an integer, have the order of the magnitudes. A sample brackets the k-th
largest, and one pass counts what lies above the bracket and sorts what lies in it. The task vector of a fine-tune
stored in bfloat16 has few distinct magnitudes; a search lists them with their counts in each block, and a threshold
then needs one block only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.fused import BLOCK, PIECE, pieces
from evomerge.kernels.loops import Spans

# A sample has so many runs of neighbours, evenly spread, and more where they would be further apart than
# _MOST_BETWEEN: the more there are, the fewer elements the bracket holds. In held tensors the runs are shorter.
_RUNS = 512
_RUN = 64
_MOST_BETWEEN = 1 << 16
_HELD_RUN = 16
# A tensor with fewer elements is searched without a sample.
_WORTH_SAMPLING = 1 << 16
# The most elements that are held where thresholds are asked for once.
_HELD = 1 << 22
_LARGEST = 0x7FFFFFFF
# With more distinct magnitudes, their counts in each block would take as much memory as the tensor.
_MOST_LISTED = 8192

Bits = NDArray[np.int32]
"""Magnitudes, as the bits of float32."""


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


class Magnitudes:
    """The order of the magnitudes of a float32 tensor, read block by block.

    Args:
        read: (first element, element past the last) to the magnitudes of these elements, flat, float32.
        numel: how many there are; at least one.
        kept: whether many thresholds will be asked for, so that listing distinct magnitudes pays.
    """

    def __init__(self, read: Callable[[int, int], Tensor], numel: int, *, kept: bool = False) -> None:
        self._read = read
        self._numel = numel
        # Where magnitudes are listed, a threshold needs one block: a small one.
        self._block = BLOCK
        self._held: Bits | None = None
        # A candidate asks for two at most, and the next often for the same.
        self._recent = lru_cache(maxsize=2)(self._find)
        listed = _Listed.of(self._blocks()) if kept else None
        if listed is None:
            self._block = PIECE
            if not kept and numel <= _HELD:
                self._held = self._bits(0, numel)
        self._order = listed or _Sampled(self._sample(), self._blocks, numel)

    def threshold(self, count: int) -> Threshold:
        """Returns which elements are the `count` largest in magnitude.

        Exactly `count` are. Of equal magnitudes at the threshold, those with the lowest flat (row-major) index count
        as larger. NaN counts as larger than any number.

        Args:
            count: from 1 to the number of elements.
        """
        return self._recent(count)

    def dropped(self, counts: Sequence[int]) -> Spans:
        """Returns, for each of `counts`, the largest magnitude that is not among so many largest, in each span.

        Args:
            counts: from 0 to the number of elements.
        """
        none = Threshold(math.inf, math.inf, self._numel)
        thresholds = [self.threshold(count) if count else none for count in counts]
        stops = sorted({self._numel, *(threshold.position for threshold in thresholds)})
        return tuple((stop, tuple(t.magnitude if stop > t.position else t.below for t in thresholds)) for stop in stops)

    def _find(self, count: int) -> Threshold:
        bits, rank, equals = self._order.find(count)
        magnitude, below = _number(bits), _number(bits - 1) if bits else -_number(1)
        up_to = np.cumsum(equals)
        if rank == up_to[-1]:
            return Threshold(magnitude, below, self._numel)
        index = int(np.searchsorted(up_to, rank))
        start = index * self._block
        found = np.flatnonzero(self._bits(start, min(start + self._block, self._numel)) == bits)
        return Threshold(magnitude, below, start + int(found[rank - 1 - up_to[index] + equals[index]]) + 1)

    def _blocks(self) -> Iterator[Bits]:
        return (self._bits(start, stop) for start, stop in pieces(self._numel, self._block))

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
    """A sample of the magnitudes, which brackets the k-th largest: one pass then finds it among a few."""

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
            guess = int(self._sample[min(int(position), size - 1)])
            # Magnitudes of tensors stored in bfloat16 are often equal; one that the sample has twice may be the k-th.
            if _count(self._sample == guess) > 1:
                found = [(_count(bits > guess), _count(bits == guess)) for bits in self._blocks()]
                rank, equals = count - sum(larger for larger, _ in found), [equal for _, equal in found]
                if 0 < rank <= sum(equals):
                    return guess, rank, equals
                least, most = (guess + 1, most) if rank <= 0 else (least, guess - 1)
        # Four standard deviations, for elements that are independent; where that was too few, there is another pass.
        margin = 2 * math.sqrt(size)
        while True:
            first, last = math.floor(position - margin), math.ceil(position + margin)
            low = max(least, int(self._sample[first]) if first >= 0 and size else 0)
            high = min(most, int(self._sample[last]) if last < size else _LARGEST)
            bracketed = [(_count(bits > high), bits[(bits >= low) & (bits <= high)]) for bits in self._blocks()]
            few = np.concatenate([inside for _, inside in bracketed])
            rank = count - sum(larger for larger, _ in bracketed)
            if 0 < rank <= len(few):
                break
            margin *= 4
        value = np.partition(few, len(few) - rank)[len(few) - rank]
        rank -= _count(few > value)
        return int(value), rank, [_count(inside == value) for _, inside in bracketed]


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


def _number(bits: int) -> float:
    number: float = struct.unpack("f", struct.pack("i", bits))[0]
    return number
