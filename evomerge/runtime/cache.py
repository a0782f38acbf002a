"""`RowCache`: keys and values of sequences that begin and end at different times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

Prefix = list[tuple[Tensor, Tensor]]
"""The keys and values of a beginning that sequences share, of each layer, (1, heads, tokens, size)."""


class RowCache(Cache):
    """A cache whose rows can be replaced: they all end at the same column, and begin where they must.

    Sliding windows are in the masks alone: their layers keep all columns as well.

    Args:
        config: of the model; see `can_replace_rows`.
        room: the columns that there is memory for.
        before: the tokens of a shared prefix whose keys and values are elsewhere.

    Attributes:
        columns: those in use, each for a token of a row or for none.
        before: see above.
        room: see above.
        starts: for each row its first column.
    """

    layers: list[_Columns]  # type: ignore[assignment]

    def __init__(self, config: Any, room: int, before: int = 0) -> None:
        kinds: Any = DynamicCache(config=config).layers
        super().__init__(layers=[_Columns(self, kind.is_sliding) for kind in kinds])
        self.columns = 0
        self.before = before
        self.room = room
        self.starts: list[int] = []

    def begin_with(self, prefix: Prefix, rows: int) -> None:
        """Copies a shared prefix into the first columns of so many rows."""
        self.columns = prefix[0][0].shape[2]
        for layer, states in zip(self.layers, prefix, strict=True):
            layer.allocate([one.expand(rows, -1, -1, -1) for one in states], self.room)
            for buffer, one in zip(layer.buffers, states, strict=True):
                buffer[:, :, : self.columns] = one

    def join(self, others: Sequence[RowCache], lengths: Sequence[int], more: int) -> None:
        """Adds the rows of other caches.

        Args:
            others: the caches; their rows begin at column 0.
            lengths: how many columns of each of their rows are kept.
            more: the columns that are added later.
        """
        first = min(self.starts, default=self.columns)
        old, shift = len(self.starts), max(self.columns - first, *lengths) - self.columns
        end = self.columns + shift
        for index, layer in enumerate(self.layers):
            # Zeros, as what is not a number would not be hidden by a mask.
            before, added = layer.buffers, [other.layers[index].buffers for other in others]
            layer.allocate([one[:1].expand(old + len(lengths), -1, -1, -1) for one in added[0]], end + more)
            for which, buffer in enumerate(layer.buffers):
                if old:
                    buffer[:old, :, first + shift : end] = before[which][:, :, first : self.columns]
                rows = [row for buffers in added for row in buffers[which]]
                for row, (states, length) in enumerate(zip(rows, lengths, strict=True), start=old):
                    buffer[row, :, end - length : end] = states[:, :length]
        self.starts = [start + shift for start in self.starts] + [end - length for length in lengths]
        self.columns, self.room = end, end + more

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drops all rows but these, which are ascending; returns which of them is where now."""
        kept = set(rows)
        moved = [row for row in rows if row >= len(rows)]
        order = [row if row in kept else moved.pop() for row in range(len(rows))]
        holes = [row for row in range(len(rows)) if row not in kept]
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[holes] = buffer[[order[row] for row in holes]]
            layer.buffers = [buffer[: len(rows)] for buffer in layer.buffers]
        self.starts = [self.starts[row] for row in order]
        return order


class _Columns(DynamicLayer):
    """A layer of a `RowCache`, with room for new tokens, so that a step writes one column instead of copying all."""

    def __init__(self, cache: RowCache, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers: list[Tensor] = []
        self.is_sliding = is_sliding
        self._cache = cache

    def allocate(self, like: Sequence[Tensor], room: int) -> None:
        """Makes room for keys and values of the rows, heads and sizes of these."""
        self.buffers = [one.new_zeros(*one.shape[:2], room, one.shape[3]) for one in like]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values, (rows, heads, new tokens, size), after the columns in use, and returns all."""
        added = key_states, value_states
        if not self.buffers:
            self.allocate(added, self._cache.room)
        old = self._cache.columns
        new = old + key_states.shape[2]
        for buffer, states in zip(self.buffers, added, strict=True):
            buffer[:, :, old:new] = states
        self.keys, self.values = (buffer[:, :, :new] for buffer in self.buffers)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many keys there are with `query_length` new ones, and the position of the first."""
        return self._cache.columns + query_length, self._cache.before

    def get_seq_length(self) -> int:
        """Returns the position of the next token."""
        return self._cache.before + self._cache.columns


def can_replace_rows(config: Any) -> bool:
    """Returns whether a model keeps nothing but keys and values of attention, which may begin at any column."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
