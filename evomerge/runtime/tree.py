"""Sequences that begin alike, packed so that each of their common tokens is run once.

Sorted sequences are the leaves of a tree of tokens. What all of them begin with is run first; the rest is cut into
packs, each of which is run in one row: its tokens see those before them in their own sequences, and no others. What is
too long for a row with such a mask is a tree of its own, after that beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = tuple[int, ...]

WORTH = 0.02
"""The least share of their tokens that sequences must save for their common beginning to be run on its own."""

LEAST_SAVED = 64
"""The least tokens that they must save: running a few on their own takes as long as running many more in packs."""

SHORT = 256
"""Sequences with at most so many tokens are one pack, however little they have in common."""

LONGEST = 4096
"""The most tokens of a pack: its attention mask has the square of them."""


@dataclass(frozen=True, eq=False)
class Pack:
    """Sequences that are run in one row, after a beginning that all sequences share.

    Attributes:
        sequences: sorted token ids.
        start: the number of tokens that were run before.
        ids: the row's token ids, (tokens,).
        depths: the position of each in its sequences, (tokens,).
        parents: the index in the row of the token before each; -1 for the first after the beginning, (tokens,).
        logits: how many of its tokens need logits.
    """

    sequences: tuple[Ids, ...]
    start: int
    ids: NDArray[np.int64]
    depths: NDArray[np.int64]
    parents: NDArray[np.int64]
    logits: int

    @property
    def length(self) -> int:
        """The tokens of the row and of the beginning."""
        return self.start + len(self.ids)

    @classmethod
    def of(cls, sequences: Sequence[Ids], start: int, logits: int = 1) -> Pack:
        """Returns the pack of some sequences, of which the first `start` tokens are the same."""
        rows = [(index, depth) for index, depth in _nodes(sequences, start)]
        ids = [sequences[index][depth] for index, depth in rows]
        parents: list[int] = []
        path: list[int] = []  # of the sequence that is added, the row's index of each depth
        for position, (_, depth) in enumerate(rows):
            path = [*path[: depth - start], position]
            parents.append(path[-2] if depth > start else -1)
        depths = np.array([depth for _, depth in rows])
        return cls(tuple(sequences), start, np.array(ids), depths, np.array(parents), logits)

    def positions(self) -> list[list[int]]:
        """Returns for each sequence the index in the row of each of its tokens after the beginning."""
        found: list[list[int]] = []
        done = 0
        for index, sequence in enumerate(self.sequences):
            common = common_length(self.sequences[index - 1], sequence) - self.start if index else 0
            new = len(sequence) - self.start - common
            found.append([*(found[-1][:common] if index else ()), *range(done, done + new)])
            done += new
        return found

    def visible(self, window: int | None = None) -> NDArray[np.bool_]:
        """Returns which tokens each token sees, (tokens, tokens of the beginning + tokens).

        Args:
            window: the most tokens that a token sees, itself included; None for all before it.
        """
        count = len(self.ids)
        own = np.zeros((count, count), dtype=np.bool_)
        for position, parent in enumerate(self.parents):
            if parent >= 0:
                own[position] = own[parent]
            own[position, position] = True
        seen = np.concatenate([np.ones((count, self.start), dtype=np.bool_), own], axis=1)
        if window is not None:
            columns = np.concatenate([np.arange(self.start), self.depths])
            seen &= columns[None] > self.depths[:, None] - window
        return seen


@dataclass(frozen=True)
class Cut:
    """How sequences are run.

    Attributes:
        start: the tokens that all begin with, which are run first.
        packs: the rows after them.
        long: sequences that are too long for a pack; those that begin alike are together.
    """

    start: int
    packs: list[Pack]
    long: list[list[Ids]]


def cut(
    sequences: Sequence[Ids], needed: Sequence[int], done: int, least: int, most: int, most_needed: int
) -> Cut | None:
    """Returns how sequences are run; None if they have too little in common.

    Args:
        sequences: distinct and sorted.
        needed: how many of each one's tokens need logits.
        done: the tokens at the beginning of all that were run already.
        least: the tokens at the beginning that need no logits.
        most: the most tokens of a pack and its beginning.
        most_needed: the most tokens of a pack that need logits; a single sequence may have more.
    """
    start = done
    shared = min(least, common_length(sequences[0], sequences[-1]))
    if _is_worth(len(sequences), shared - done, _size(sequences, done)):
        start = shared
    longest = min(LONGEST, most - start)
    groups: list[tuple[int, int, list[Ids]]] = []
    long = []
    waiting = [range(len(sequences))]
    while waiting:
        group = waiting.pop()
        own = [sequences[index] for index in group]
        common = common_length(own[0], own[-1]) - start
        size, logits = _size(own, start), sum(needed[index] for index in group)
        close = size <= max(SHORT, 2 * common) and logits <= most_needed
        if size <= longest and (close or len(own) == 1):
            groups.append((size, logits, own))
        elif len(own) == 1 or _is_worth(len(own), common, size):
            long.append(own)
        else:
            waiting += _children(sequences, group, start + common)
    # A long beginning is read for each row, so rows are not much shorter than it; others have a group each.
    room = max([start // 2, *(size for size, _, _ in groups)])
    bins: list[tuple[int, int, list[Ids]]] = []
    for size, logits, own in sorted(groups, key=lambda one: (-one[0], one[2])):
        fits = (used + size <= room and old + logits <= most_needed for used, old, _ in bins)
        index = next((index for index, fit in enumerate(fits) if fit), None)
        if index is None:
            bins.append((size, logits, own))
        else:
            bins[index] = bins[index][0] + size, bins[index][1] + logits, bins[index][2] + own
    whole = start - done + sum(size for size, _, _ in bins) + sum(_size(own, start) for own in long)
    # Attention with a mask is slower than causal attention: a little sharing is not worth it.
    if 1.05 * whole > sum(len(one) - done for one in sequences):
        return None
    return Cut(start, [Pack.of(own, start, logits) for _, logits, own in bins], long)


def tree_size(sequences: Sequence[Ids]) -> int:
    """Returns the number of distinct beginnings of sorted sequences: what must be run at least."""
    return _size(sequences, 0)


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Returns how many first members two sequences have in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _nodes(sequences: Sequence[Ids], start: int) -> Iterator[tuple[int, int]]:
    """Yields the first sequence and the depth of each token from the depth `start` on."""
    commons = [start, *(common_length(one, other) for one, other in pairwise(sequences))]
    for index, (sequence, common) in enumerate(zip(sequences, commons, strict=True)):
        for depth in range(max(common, start), len(sequence)):
            yield index, depth


def _is_worth(count: int, common: int, size: int) -> bool:
    """Returns whether so many sequences of `size` tokens together run the first `common` ones on their own."""
    return (count - 1) * common > max(LEAST_SAVED, WORTH * size)


def _size(sequences: Sequence[Ids], start: int) -> int:
    """Returns the number of distinct beginnings of more than `start` tokens."""
    return sum(1 for _ in _nodes(sequences, start))


def _children(sequences: Sequence[Ids], group: range, common: int) -> Iterator[range]:
    """Yields the parts of a group that have more in common than the first `common` tokens."""
    first = group[0]
    for index in group[1:]:
        if common_length(sequences[index - 1], sequences[index]) <= common:
            yield range(first, index)
            first = index
    yield range(first, group[-1] + 1)
