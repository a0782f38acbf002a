"""A cache of keys and values with room for the tokens to come."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class _Growing(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's keys and values with room for the tokens to come, so that a step copies one token and not all."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values, (rows, heads, new tokens, size), and returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < new:
            self._buffers = (
                self._grown(key_states, new, old, self.keys),
                self._grown(value_states, new, old, self.values),
            )
        keys, values = self._buffers
        keys[:, :, old:new], values[:, :, old:new] = key_states, value_states
        self.keys, self.values = keys[:, :, :new], values[:, :, :new]
        return self.keys, self.values

    def _grown(self, like: Tensor, new: int, old: int, kept: Tensor | None) -> Tensor:
        rows, heads, _, size = like.shape
        buffer = like.new_empty(rows, heads, new + self._room, size)
        if old and kept is not None:
            buffer[:, :, :old] = kept
        return buffer

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows at `indices`."""
        if self._buffers is not None:
            keys, values = self._buffers
            old = self.get_seq_length()
            self._buffers = keys[indices], values[indices]
            self.keys, self.values = (buffer[:, :, :old] for buffer in self._buffers)


def growing_cache(config: Any, room: int) -> DynamicCache:
    """Returns a cache of the kinds of layers that `config` describes; plain attention layers have room to grow."""
    cache = DynamicCache(config=config)
    cache.layers = [_Growing(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
