"""`SharedRunner`: runs packs of sequences, see `tree.py`, after the one copy of what they all begin with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from evomerge.runtime.forward import Forward
from evomerge.runtime.tree import Ids, Pack

_logger = logging.getLogger("evomerge")


class Beginning(DynamicCache):
    """The keys and values of the tokens that sequences begin with.

    Attributes:
        ids: the tokens; () while they are run.
    """

    def __init__(self) -> None:
        # Without a config, every layer keeps all tokens: sliding windows are in the masks.
        super().__init__()
        self.ids: Ids = ()


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

    def beginning(self, ids: Ids) -> Beginning | None:
        """Runs what sequences begin with, if anything; returns its keys and values."""
        if not ids:
            return None
        cache = Beginning()
        device = self._forward.device
        none = torch.empty(0, dtype=torch.long, device=device)
        row = torch.tensor([ids], device=device)
        self._forward(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=none)
        cache.ids = ids
        return cache

    def logits(self, pack: Pack, beginning: Beginning | None, wanted: Sequence[int]) -> Tensor:
        """Returns the logits after some tokens of a pack, (wanted, vocabulary); the beginning stays as it is."""
        device = self._forward.device
        try:
            output = self._forward(
                input_ids=torch.tensor(pack.ids, device=device)[None],
                position_ids=torch.tensor(pack.depths, device=device)[None],
                attention_mask=self._mask(pack),
                past_key_values=beginning,
                use_cache=beginning is not None,
                logits_to_keep=torch.tensor(wanted, device=device),
            )
        finally:
            if beginning is not None:
                beginning.crop(-len(pack.ids))
        logits: Tensor = output.logits[0]
        return logits

    def _mask(self, pack: Pack) -> Any:
        """Returns the additive attention mask, (1, 1, tokens, beginning and tokens); one for each kind of layers."""
        parameter = next(self._forward.module.parameters())
        least = torch.finfo(parameter.dtype).min
        found: dict[str, Tensor] = {}
        for kind, window in self._windows().items():
            seen = torch.from_numpy(pack.visible(window)).to(self._forward.device)
            found[kind] = torch.zeros(seen.shape, dtype=parameter.dtype, device=seen.device)
            found[kind] = found[kind].masked_fill_(~seen, least)[None, None]
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
        takes = all(map(self._forward.takes, ("past_key_values", "position_ids", "attention_mask", "logits_to_keep")))
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
            wanted = [positions[-1] for positions in pack.positions()]
            packed = self.logits(pack, self.beginning(start[:-1]), wanted).float()
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
