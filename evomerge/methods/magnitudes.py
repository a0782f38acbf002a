"""`Magnitudes`: the order of a tensor's magnitudes, which names the threshold of any density without sorting.

The bits of a float32 magnitude, read as an integer, have the order of the magnitudes. Their upper half is one of
2^15 buckets: a histogram, counted once, finds the bucket of the k-th largest for every k, and only the values in that
bucket are looked at then. The task vector of a fine-tune stored in bfloat16 has few distinct magnitudes; where it has,
they are listed with their counts, and no threshold needs a look at the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BUCKETS = 1 << 15
# A piece's distinct magnitudes are listed where a list of them is this much shorter than the piece.
_WORTH_LISTING = 16

Levels = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Distinct magnitudes as bits, ascending, and how often each occurs."""


class Threshold(NamedTuple):
    """Which elements are the k largest: those above `magnitude`, and those equal to it before `position`."""

    magnitude: float
    position: int


@dataclass
class _Piece:
    start: int
    stop: int
    levels: Levels | None


class Magnitudes:
    """The order of the magnitudes of a float32 tensor, read piece by piece.

    Args:
        read: gives the elements from a first up to a last one, flat, float32.
        pieces: the bounds in which to read.
        kept: whether many thresholds will be asked for, so that listing distinct magnitudes pays.
    """

    def __init__(
        self, read: Callable[[int, int], Tensor], pieces: Sequence[tuple[int, int]], *, kept: bool = False
    ) -> None:
        self._read = read
        self._pieces = []
        self._histogram = np.zeros(_BUCKETS, np.int64)
        self._last: tuple[int, Threshold] | None = None
        for start, stop in pieces:
            bits = self._bits(start, stop)
            levels = _levels(bits) if kept else None
            if levels is not None:
                np.add.at(self._histogram, levels[0] >> 16, levels[1])
            else:
                self._histogram += torch.bincount(bits >> 16, minlength=_BUCKETS).cpu().numpy()
            self._pieces.append(_Piece(start, stop, levels))
        self._from_largest = self._histogram[::-1].cumsum()

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
        place = int(np.searchsorted(self._from_largest, count))
        bucket = _BUCKETS - 1 - place
        rank = count - int(self._from_largest[place]) + int(self._histogram[bucket])
        found = [self._inside(piece, bucket) for piece in self._pieces]
        values, where = np.unique(np.concatenate([values for values, _ in found]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, where, np.concatenate([counts for _, counts in found]))
        from_largest = counts[::-1].cumsum()
        place = int(np.searchsorted(from_largest, rank))
        bits = values[::-1][place]
        equals = int(counts[::-1][place])
        rank += equals - int(from_largest[place])  # among the equals
        magnitude = float(np.int32(bits).view(np.float32))
        if rank == equals:
            return Threshold(magnitude, self._pieces[-1].stop)
        for piece, (values, counts) in zip(self._pieces, found, strict=True):
            here = int(counts[values == bits].sum())
            if rank <= here:
                equal = (self._bits(piece.start, piece.stop) == int(bits)).cpu().numpy()
                return Threshold(magnitude, piece.start + int(np.flatnonzero(equal)[rank - 1]) + 1)
            rank -= here
        raise AssertionError("the pieces hold fewer equals than were counted")

    def _inside(self, piece: _Piece, bucket: int) -> Levels:
        """Returns the distinct magnitudes of a piece that lie in a bucket."""
        if piece.levels is not None:
            first, end = np.searchsorted(piece.levels[0], [bucket << 16, ((bucket + 1) << 16) - 1], "left")
            end += int(end < len(piece.levels[0]) and piece.levels[0][end] == ((bucket + 1) << 16) - 1)
            return piece.levels[0][first:end], piece.levels[1][first:end]
        bits = self._bits(piece.start, piece.stop)
        if bits.device.type == "cpu":
            # numpy compares several numbers at once, where torch takes them one by one.
            array = bits.numpy()
            inside = array[(array >> 16) == bucket]
        else:
            inside = bits[(bits >> 16) == bucket].cpu().numpy()
        return np.unique(inside, return_counts=True)

    def _bits(self, start: int, stop: int) -> Tensor:
        return self._read(start, stop).abs_().view(torch.int32)


def _levels(bits: Tensor) -> Levels | None:
    """Returns a piece's distinct magnitudes, or None where they are too many to be worth a list."""
    ascending = np.sort(bits.cpu().numpy())
    starts = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    if (len(starts) + 1) * _WORTH_LISTING > len(ascending):
        return None
    starts = np.concatenate([[0], starts])
    return ascending[starts], np.diff(starts, append=len(ascending))
