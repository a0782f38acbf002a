"""Batches of sequences that are written one token at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from evomerge.runtime.cache import Prefix, RowCache, can_replace_rows
from evomerge.runtime.forward import Forward, padded
from evomerge.runtime.protocol import GenerationRequest
from evomerge.runtime.shared_attention import SharedAttention
from evomerge.runtime.tree import common_length

LEAST_SHARED = 16
"""A prefix of fewer tokens is run with each prompt: attention in two parts takes longer than it saves."""

PASS_TOKENS = {"cpu": 64}
"""A forward pass of few tokens takes as long as one of about so many more; on other devices than these, 1,024."""


class Batch(Protocol):
    """Sequences that are written together.

    Attributes:
        read: the tokens of prompts that were run so far.
        held: the most tokens that all rows can have together.
        notice: what a user should know about how the model is run; may be empty.
    """

    read: int
    held: int
    notice: str

    def fitting(self, waiting: Sequence[GenerationRequest], tokens: int) -> int:
        """Returns how many of the first of `waiting` should join now, if all rows may have so many tokens."""

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """Adds a row for each request after the others."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Returns each row's logits for its next token, (rows, vocabulary), given the last token that it has."""

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """Drops all rows but these, which are ascending; returns which of them is where now."""


def batch_for(forward: Forward, requests: Sequence[GenerationRequest]) -> Batch:
    """Returns an empty batch for requests, of the kind that the model can be run in."""
    if forward.cache and can_replace_rows(forward.module.config):
        return ContinuousBatch(forward, requests)
    return EqualBatch(forward)


class ContinuousBatch:
    """A batch in which waiting requests take the rows of those that have ended.

    The tokens that all prompts begin with are run once. Where the model allows it, their keys and values are in memory
    once; otherwise each row has a copy.

    Args:
        forward: runs the model; see `can_replace_rows`.
        requests: all that will be added, at least one.

    Attributes:
        read: see `Batch`.
        held: see `Batch`.
        notice: see `Batch`.
    """

    def __init__(self, forward: Forward, requests: Sequence[GenerationRequest]) -> None:
        self.read = self.held = 0
        self.notice = ""
        self._forward = forward
        self._attention = SharedAttention()
        self._left: list[int] = []
        self._prefix: Prefix = []
        self._shared = _shared_length([one.prompt for one in requests])
        if self._shared >= LEAST_SHARED:
            self._run_prefix(requests[0].prompt[: self._shared])
        else:
            self._shared = 0
        self._cache = self._empty(0)

    def fitting(self, waiting: Sequence[GenerationRequest], tokens: int) -> int:
        """See `Batch`: several join at the same time, as it takes a forward pass of its own."""
        rows, count = len(self._left), 0
        while count < len(waiting) and self._size(waiting[: count + 1]) <= tokens:
            count += 1
        if not rows:
            return max(1, count)
        return count if count == len(waiting) or 3 * count >= rows else 0

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """See `Batch`."""
        self.held = self._size(requests)
        own = [request.prompt[self._shared :] for request in requests]
        copied = self._shared - self._cache.before
        # The last token of each is left for the next step, which is run for all rows.
        caches = [self._filled(prompts) for prompts in self._alike(own)]
        self._left += [request.max_new_tokens for request in requests]
        self._cache.join(caches, [copied + len(one) - 1 for one in own], max(self._left))
        self.read += sum(map(len, own))

    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Batch`."""
        cache = self._cache
        starts = torch.tensor(cache.starts, device=self._forward.device)[:, None] + cache.before
        end = cache.before + cache.columns
        mask = torch.arange(end + 1, device=self._forward.device) >= starts
        ids = torch.tensor(tokens, device=self._forward.device)[:, None]
        logits = self._run(cache, ids, cache.before + end - starts, attention_mask=mask.long(), logits_to_keep=1)
        self._left = [left - 1 for left in self._left]
        return logits[:, -1]

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """See `Batch`."""
        order = self._cache.keep(rows)
        self._left = [self._left[row] for row in order]
        return order

    def _size(self, new: Sequence[GenerationRequest]) -> int:
        """Returns the most tokens that all rows can have together if these requests join."""
        columns = max((self._cache.columns - start for start in self._cache.starts), default=0)
        columns = max(columns, *(len(one.prompt) - self._cache.before for one in new))
        more = max(*self._left, *(one.max_new_tokens for one in new), 0)
        return self._cache.before + (len(self._left) + len(new)) * (columns + more)

    def _run_prefix(self, ids: Sequence[int]) -> None:
        cache = RowCache(self._forward.module.config, len(ids))
        with self._attention.of(cache):
            self._read(cache, padded([ids], "right"))
        self.read += len(ids)
        layers: Any = cache.layers
        self._prefix = [(layer.keys, layer.values) for layer in layers]
        # A sliding window needs the distance between tokens to be that of their columns.
        if self._attention.possible and self._forward.takes("position_ids") and not any(cache.is_sliding):
            self._attention.prefix = self._prefix
        else:
            self.notice = "each sequence has its own copy of the keys and values of the prompts' shared beginning"

    def _filled(self, prompts: Sequence[Sequence[int]]) -> RowCache:
        """Returns the keys and values of all but the last token of prompts without their shared prefix."""
        width = max(1, len(prompts[0]) - 1)
        cache = self._empty(self._shared + width)
        if self._prefix and not cache.before:
            cache.begin_with(self._prefix, len(prompts))
        # Padded on the right, where causal attention does not look.
        self._read(cache, padded(prompts, "right")[:, :width])
        return cache

    def _empty(self, room: int) -> RowCache:
        return RowCache(self._forward.module.config, room, self._shared if self._attention.prefix else 0)

    def _read(self, cache: RowCache, ids: Tensor) -> None:
        first = cache.before + cache.columns
        positions = torch.arange(first, first + ids.shape[1], device=self._forward.device).expand(ids.shape)
        nothing = torch.empty(0, dtype=torch.long, device=self._forward.device)
        self._run(cache, ids.to(self._forward.device), positions, logits_to_keep=nothing)

    def _run(self, cache: RowCache, ids: Tensor, positions: Tensor, **inputs: Any) -> Tensor:
        """Returns the model's logits for tokens in the next columns."""
        shares = self._attention.of(cache) if self._attention.prefix else contextlib.nullcontext()
        with shares:
            inputs |= {"input_ids": ids, "position_ids": positions, "cache": cache, "use_cache": True}
            logits: Tensor = self._forward(**inputs).logits
        cache.columns += ids.shape[1]
        return logits

    def _alike(self, prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
        """Returns groups of prompts, the longest first; another group where padding would cost more than its pass."""
        most = PASS_TOKENS.get(self._forward.device.type, 1024)
        found: list[list[Sequence[int]]] = []
        padding = 0
        for prompt in sorted(prompts, key=len, reverse=True):
            padding += len(found[-1][0]) - len(prompt) if found else 0
            if not found or padding > most:
                found.append([])
                padding = 0
            found[-1].append(prompt)
        return found


class EqualBatch:
    """A batch of prompts of equal length, which needs no padding: right for every model.

    Args:
        forward: runs the model.

    Attributes:
        read: see `Batch`.
        held: see `Batch`.
        notice: see `Batch`.
    """

    def __init__(self, forward: Forward) -> None:
        self.read = self.held = 0
        self.notice = "the model keeps more than keys and values, so only prompts of equal length are run together"
        self._forward = forward
        self._ids = torch.empty(0, 0, dtype=torch.long)
        self._cache: Any = None
        self._fresh = True

    def fitting(self, waiting: Sequence[GenerationRequest], tokens: int) -> int:
        """See `Batch`: none where there are rows."""
        if len(self._ids):
            return 0
        count = 1
        while (
            count < len(waiting)
            and len(waiting[count].prompt) == len(waiting[0].prompt)
            and (count + 1) * waiting[0].length <= tokens
        ):
            count += 1
        return count

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """See `Batch`."""
        self.held = len(requests) * max(one.length for one in requests)
        self._ids = torch.tensor([one.prompt for one in requests], device=self._forward.device)
        self._cache, self._fresh = None, True
        self.read += self._ids.numel()

    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Batch`."""
        if not self._fresh:
            self._ids = torch.cat([self._ids, torch.tensor(tokens, device=self._ids.device)[:, None]], dim=1)
        self._fresh = False
        first = self._ids.shape[1] - 1 if self._cache is not None else 0
        ids = self._ids[:, first:]
        # Some models would count the positions of new tokens from 0.
        positions = torch.arange(first, self._ids.shape[1], device=ids.device).expand(ids.shape)
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": bool(self._forward.cache)}
        if self._cache is not None:
            inputs["cache"] = self._cache
        output = self._forward(**inputs, logits_to_keep=1)
        made = getattr(output, self._forward.cache, None) if self._forward.cache else None
        # Without one whose rows can be dropped, all tokens are run at every step.
        self._cache = made if hasattr(made, "reorder_cache") else None
        logits: Tensor = output.logits
        return logits[:, -1]

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """See `Batch`."""
        kept = torch.tensor(rows, dtype=torch.long, device=self._ids.device)
        self._ids = self._ids[kept]
        if self._cache is not None:
            self._cache.reorder_cache(kept)
        return rows


def _shared_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Returns how many tokens all prompts begin with, if there are several; each has at least one more."""
    if len(prompts) < 2:
        return 0
    return min(common_length(min(prompts), max(prompts)), *(len(one) - 1 for one in prompts))
