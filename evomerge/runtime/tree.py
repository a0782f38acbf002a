"""Sequences that begin alike, packed so that each of their common tokens is run once.

Sorted sequences are the leaves of a tree of tokens. What all of them begin with is run first; the rest is cut into
packs, each of which is run in one row: its tokens see those before them in their own sequences, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = tuple[int, ...]

LEAST_SHARED = 16
"""A common beginning of fewer tokens is not run on its own, and is run again in every pack."""


@dataclass(frozen=True)
class Pack:
    """Sequences that are run in one row, after a beginning that all sequences share.

    Attributes:
        sequences: sorted token ids.
        start: the number of tokens that were run before.
        ids: the row's token ids, (tokens,).
        depths: the position of each in its sequences, (tokens,).
        parents: the index in the row of the token before each; -1 for the first after the beginning, (tokens,).
    """

    sequences: tuple[Ids, ...]
    start: int
    ids: NDArray[np.int64]
    depths: NDArray[np.int64]
    parents: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequence[Ids], start: int) -> Pack:
        """Returns the pack of some sequences, of which the first `start` tokens are the same."""
        rows = [(index, depth) for index, depth in _nodes(sequences, start)]
        ids = [sequences[index][depth] for index, depth in rows]
        parents: list[int] = []
        path: list[int] = []  # of the sequence that is added, the row's index of each depth
        for position, (_, depth) in enumerate(rows):
            path = [*path[: depth - start], position]
            parents.append(path[-2] if depth > start else -1)
        return cls(tuple(sequences), start, np.array(ids), np.array([depth for _, depth in rows]), np.array(parents))

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


def packs(
    sequences: Sequence[Ids], needed: Sequence[int], least: int, most: int, most_needed: int
) -> tuple[int, list[Pack]] | None:
    """Returns the length of what all sequences begin with, and packs of the rest; None if too little is shared.

    Args:
        sequences: distinct and sorted.
        needed: how many of each one's tokens need logits.
        least: the tokens at the beginning that may be outside of the packs.
        most: the most tokens of a pack; sequences that have much in common are one pack even if it has more.
        most_needed: the most tokens of a pack that need logits, with the same exception.
    """
    shared = min(least, common_length(sequences[0], sequences[-1]))
    start = shared if shared >= LEAST_SHARED else 0
    cut: list[list[Ids]] = []
    used = logits = 0
    for group in _groups(sequences, start + LEAST_SHARED):
        own = [sequences[index] for index in group]
        more, new = sum(needed[index] for index in group), sum(1 for _ in _nodes(own, start))
        if not cut or used + new > most or logits + more > most_needed:
            cut.append([])
            used = logits = 0
        cut[-1] += own
        used, logits = used + new, logits + more
    found = [Pack.of(group, start) for group in cut]
    size = start + sum(len(pack.ids) for pack in found)
    # Attention with a mask is slower than causal attention: a little sharing is not worth it.
    return None if 1.05 * size > sum(map(len, sequences)) else (start, found)


def tree_size(sequences: Sequence[Ids]) -> int:
    """Returns the number of distinct beginnings of sorted sequences: what must be run at least."""
    return sum(1 for _ in _nodes(sequences, 0))


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


def _groups(sequences: Sequence[Ids], common: int) -> Iterator[range]:
    """Yields the indices of sequences that follow each other and share more than the first `common` tokens."""
    first = 0
    for index, (one, other) in enumerate(pairwise(sequences), start=1):
        if common_length(one, other) <= common:
            yield range(first, index)
            first = index
    yield range(first, len(sequences))
