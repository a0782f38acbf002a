"""Attention of many sequences to the one copy of a prefix that they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evomerge.runtime.cache import Prefix, RowCache

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class SharedAttention:
    """Takes the place of transformers' attention while a model runs.

    The keys of all rows are multiplied with the prefix's at once, and the two parts of the softmax are put together by
    their logarithms of sums of exponentials: reading a copy of the prefix for each row takes several times as long.

    Attributes:
        prefix: the keys and values that come before those of the cache in use; empty while they are computed.
        possible: whether all layers of the model can be run like this, known after the prefix was run.
    """

    def __init__(self) -> None:
        self.prefix: Prefix = []
        self.possible = True
        self._layers: dict[int, int] = {}
        self._cache: RowCache | None = None
        self._done: list[int] = []

    @contextmanager
    def of(self, cache: RowCache) -> Iterator[None]:
        """Computes attention for a model that is run with this cache.

        Raises:
            RuntimeError: a layer had no attention, or had it twice, in a pass after the one of the prefix.
        """
        self._cache, self._done = cache, []
        functions: Any = ALL_ATTENTION_FUNCTIONS
        functions["sdpa"] = self._attend
        try:
            yield
        finally:
            del functions["sdpa"]
            self._cache = None
        complete = sorted(self._done) == list(range(len(cache.layers)))
        if self.prefix and not complete:
            raise RuntimeError("a layer did not attend to the prefix that its prompts share")
        self.possible = self.possible and complete

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Returns attention as transformers' function of the same arguments does."""
        layers: Any = self._cache.layers if self._cache is not None else []
        # By identity: a model that changes keys after they are cached cannot be given others.
        index = next((i for i, layer in enumerate(layers) if layer.keys is key and layer.values is value), None)
        plain = others.get("position_bias") is None and key.device.type == "cpu" and key.shape == value.shape
        if index is not None and plain:
            self._done.append(index)
        if not self.prefix or index is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
        out = _joint(query, key, value, attention_mask, scaling, *self.prefix[index])
        return out.transpose(1, 2).contiguous(), None


def _joint(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    prefix_key: Tensor,
    prefix_value: Tensor,
) -> Tensor:
    """Returns the attention of queries, (rows, heads, tokens, size), to a prefix and, causally, to their own keys."""
    rows, heads, tokens, size = query.shape
    groups = key.shape[1]
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    own_query = query.reshape(rows, groups, -1, size) if tokens == 1 else query
    own, own_log = _flash(own_query, key, value, 0.0, tokens > 1 and mask is None, attn_mask=bias, scale=scaling)
    # All rows' queries to one copy of keys, as if they were of one row.
    together = query.reshape(rows, groups, -1, size).transpose(0, 1).reshape(1, groups, -1, size)
    shared, shared_log = _flash(together, prefix_key, prefix_value, 0.0, False, scale=scaling)
    shared = shared.reshape(groups, rows, -1, size).transpose(0, 1).reshape(query.shape)
    shared_log = shared_log.reshape(groups, rows, -1).transpose(0, 1).reshape(rows, heads, tokens)
    share = torch.sigmoid(shared_log - own_log.reshape(rows, heads, tokens))[..., None]
    return torch.lerp(own.reshape(query.shape).float(), shared.float(), share).to(query.dtype)
