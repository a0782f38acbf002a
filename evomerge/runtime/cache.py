"""A cache of keys and values with room for new tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class _Growing(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's keys and values with room for new tokens, so that a step copies one token instead of all."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values, (rows, heads, new tokens, size), and returns all so far."""
        added = key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [one.new_empty(*one.shape[:2], one.shape[2] + self._room, one.shape[3]) for one in added]
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        for buffer, states in zip(self._buffers, added, strict=True):
            buffer[:, :, old:new] = states
        self.keys, self.values = (buffer[:, :, :new] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows at `indices`."""
        if self._buffers:
            length = self.get_seq_length()
            self._buffers = [buffer[indices] for buffer in self._buffers]
            self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def growing_cache(config: Any, room: int) -> DynamicCache:
    """Returns a cache of the kinds of layers that `config` describes; plain attention layers have `room` new tokens."""
    cache = DynamicCache(config=config)
    cache.layers = [_Growing(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
