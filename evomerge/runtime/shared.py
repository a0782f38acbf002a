"""`SharedRunner`: runs packs of sequences, see `tree.py`, after the one copy of what they all begin with."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from evomerge.runtime.forward import Forward, padded
from evomerge.runtime.tree import Ids, Pack

_logger = logging.getLogger("evomerge")


class Beginning(DynamicCache):
    """The keys and values of the tokens that sequences begin with.

    Args:
        before: those of the first of these tokens, which were run already; None where there are none.

    Attributes:
        ids: the tokens; () while they are run. From then on nothing is added to them.
    """

    def __init__(self, before: Beginning | None = None) -> None:
        # Without a config, every layer keeps all tokens: sliding windows are in the masks.
        super().__init__()
        self.ids: Ids = ()
        self.layers = [copy.copy(layer) for layer in before.layers] if before is not None else []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values with those of the beginning before them in every row."""
        if not self.ids:
            return super().update(key_states, value_states, layer_idx)
        layer: Any = self.layers[layer_idx]
        both = (layer.keys, key_states), (layer.values, value_states)
        keys, values = (torch.cat([old.expand(len(new), -1, -1, -1), new], dim=-2) for old, new in both)
        return keys, values


class SharedRunner:
    """Runs packs of sequences.

    Args:
        forward: runs the model.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._possible: bool | None = None

    def possible(self, sequence: Ids) -> bool:
        """Returns whether the model can be run like this: tried, once, on the first tokens of a sequence.

        A model may keep more than keys and values, or take neither positions nor masks with a row for each token.
        """
        if self._possible is None:
            self._possible = self._suits() and self._agrees(sequence)
            if not self._possible:
                name = type(self._forward.module).__name__
                _logger.info("%s: sequences with the same beginning cannot share it, and are run one by one", name)
        return self._possible

    def beginning(self, ids: Ids, before: Beginning | None) -> Beginning | None:
        """Runs what sequences begin with, as far as it was not run before; returns its keys and values.

        Args:
            ids: all tokens of the beginning.
            before: the keys and values of the first of them.
        """
        done = len(before.ids) if before is not None else 0
        if done == len(ids):
            return before
        device = self._forward.device
        cache = Beginning(before)
        self._forward.logits(
            torch.empty(0, 2, dtype=torch.long),
            input_ids=torch.tensor([ids[done:]], device=device),
            position_ids=torch.arange(done, len(ids), device=device)[None],
            attention_mask=self._mask([Pack.of([ids], done)]) if done else None,
            cache=cache,
            use_cache=True,
        )
        cache.ids = ids
        return cache

    def logits(self, packs: Sequence[Pack], beginning: Beginning | None, needed: Tensor) -> Tensor:
        """Returns the logits after some tokens of packs.

        Args:
            packs: the rows.
            beginning: the keys and values of their beginning, which stay as they are.
            needed: the pack and the position in it of each logit, (needed, 2).

        Returns:
            (needed, vocabulary)
        """
        device = self._forward.device
        return self._forward.logits(
            needed,
            input_ids=padded([pack.ids.tolist() for pack in packs], "right").to(device),
            position_ids=padded([pack.depths.tolist() for pack in packs], "right").to(device),
            attention_mask=self._mask(packs),
            cache=beginning,
            use_cache=beginning is not None,
        )

    def _mask(self, packs: Sequence[Pack]) -> Any:
        """Returns the additive mask, (packs, 1, tokens, beginning and tokens); one for each kind of layers."""
        parameter = next(self._forward.module.parameters())
        least = torch.finfo(parameter.dtype).min
        width = max(len(pack.ids) for pack in packs)
        found: dict[str, Tensor] = {}
        for kind, window in self._windows().items():
            # What only fills up a row sees everything, as no attention is defined that sees nothing.
            mask = torch.zeros(len(packs), 1, width, packs[0].start + width, dtype=parameter.dtype)
            for row, pack in zip(mask[:, 0], packs, strict=True):
                count = len(pack.ids)
                row[:count, pack.length :] = least
                row[:count, : pack.length].masked_fill_(torch.from_numpy(~pack.visible(window)), least)
            found[kind] = mask.to(self._forward.device)
        return found if len(found) > 1 else next(iter(found.values()))

    def _windows(self) -> dict[str, int | None]:
        """Returns the kinds of the model's layers and how many tokens they see."""
        config: Any = self._forward.module.config
        layers: Any = DynamicCache(config=config).layers
        return {
            "sliding_attention" if layer.is_sliding else "full_attention": layer.sliding_window
            if layer.is_sliding
            else None
            for layer in layers
        }

    def _suits(self) -> bool:
        """Returns whether the model keeps nothing but keys and values, and takes what is needed."""
        config: Any = self._forward.module.config
        takes = bool(self._forward.cache) and all(map(self._forward.takes, ("position_ids", "attention_mask")))
        plain = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
        return takes and plain and bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    def _agrees(self, sequence: Ids) -> bool:
        """Returns whether two short sequences have the same logits in a pack as alone."""
        first, last = sequence[0], sequence[-1]
        start = (*sequence[:4], first)
        pair = sorted({(*start, first, last), (*start, last, first, first)})
        pack = Pack.of(pair, len(start) - 1)
        try:
            needed = torch.tensor([(0, positions[-1]) for positions in pack.positions()])
            beginning = self.beginning(start[:-1], self.beginning(start[:1], None))
            packed = self.logits([pack], beginning, needed).float()
        # A model that cannot be run like this fails in any way.
        except Exception as fault:
            _logger.info("%s: %s", type(fault).__name__, fault)
            return False
        device = self._forward.device
        alone = [self._forward(input_ids=torch.tensor([one], device=device), use_cache=False) for one in pair]
        plain = torch.stack([output.logits[0, -1].float() for output in alone])
        tolerance = 1e-3 if next(self._forward.module.parameters()).dtype == torch.float32 else 5e-2
        # Of a broken candidate nothing is known, and its scores are refused later.
        return bool((packed - plain).abs().max() <= tolerance * plain.std()) or not bool(torch.isfinite(plain).all())
