"""Running a causal model of transformers on rows of token ids."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

CACHES = ("cache", "past_key_values", "cache_params")
"""What versions of transformers and models call their cache, as an argument and in the output."""


class Forward:
    """Runs a model with those of some arguments that it takes.

    Args:
        module: a causal language model of transformers.

    Attributes:
        module: the same.
        device: where its inputs are.
        cache: what the model calls its cache; empty if it takes none.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.device = next(module.parameters()).device
        self._accepted = inspect.signature(module.forward).parameters
        self.cache = next((name for name in CACHES if name in self._accepted), "")

    def takes(self, name: str) -> bool:
        """Returns whether the model has an argument of this name."""
        return name in self._accepted

    def __call__(self, **inputs: Any) -> Any:
        """Returns the model's output; its cache is the input `cache`."""
        if self.cache and "cache" in inputs:
            inputs[self.cache] = inputs.pop("cache")
        optional = ("logits_to_keep", "position_ids", "cache")
        return self.module(**{k: v for k, v in inputs.items() if k in self._accepted or k not in optional})

    def logits(self, needed: Tensor, **inputs: Any) -> Tensor:
        """Returns the logits at some places of the rows, (needed, vocabulary); no others are computed.

        Args:
            needed: the row and the position of each, (needed, 2).
            **inputs: the model's inputs, with `input_ids`.
        """
        shape = inputs["input_ids"].shape

        def gathered(states: Tensor) -> Tensor:
            index = needed.to(states.device)
            return states[index[:, 0], index[:, 1]]

        def before_head(_: nn.Module, given: tuple[Any, ...]) -> Any:
            fits = given and given[0].shape[:2] == shape
            return (gathered(given[0])[None], *given[1:]) if fits else None

        head = self.module.get_output_embeddings()  # type: ignore[operator]
        hook = head.register_forward_pre_hook(before_head) if isinstance(head, nn.Module) else None
        try:
            logits: Tensor = self(**inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        # A model without a head module, or with one that is called in another way, returns the logits of all positions.
        return gathered(logits) if logits.shape[:2] == shape else logits[0]


def padded(rows: Iterable[Sequence[int]], side: str) -> Tensor:
    """Returns rows of token ids as one tensor, with zeros on the left or on the right of the shorter ones."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)
