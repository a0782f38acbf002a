"""`Budget`: how many tokens of requests are run at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from evomerge.errors import EvaluationError
from evomerge.merge import free_bytes
from evomerge.runtime.protocol import GenerationRequest, LikelihoodRequest
from evomerge.runtime.tree import Pack

T = TypeVar("T")
Request = TypeVar("Request", LikelihoodRequest, GenerationRequest, Pack)

LOGIT_BYTES = 400_000_000
"""The most memory for the logits of one batch in float32; a batch of one request may need more."""

SHARE = 0.5
"""The share of free memory that a batch may take; the rest is for what is not counted, and for other processes."""


class DoesNotFit(EvaluationError):
    """A single request does not fit in memory."""


class Budget:
    """The size of batches: what fits in free memory, and less from the first time on that memory runs out.

    Args:
        module: a causal language model of transformers.

    Attributes:
        logits: the most positions whose logits are computed at the same time.
    """

    def __init__(self, module: nn.Module) -> None:
        parameter = next(module.parameters())
        text: Any = module.config.get_text_config()  # type: ignore[union-attr, operator]
        self.logits = max(1, LOGIT_BYTES // (4 * int(getattr(text, "vocab_size", 1))))
        self._device = parameter.device
        self._token_bytes = _token_size(text) * parameter.element_size()
        # Beyond this, batches are no faster. It also keeps them, and with them the last bits of scores, the same
        # however much memory is free at the moment.
        self._most = 16_384 if self._device.type == "cpu" else 131_072

    @property
    def tokens(self) -> int:
        """The most tokens, padding included, whose keys and values are held at the same time."""
        return min(self._most, int(SHARE * free_bytes(self._device)) // self._token_bytes)

    def lower(self, tokens: int) -> None:
        """Limits batches to `tokens` from now on, because memory ran out."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._most = tokens

    def run(self, requests: Iterable[Request], run: Callable[[list[Request]], Sequence[T]]) -> dict[Request, T]:
        """Returns what `run` returns for each request; where memory runs out, batches are halved from then on.

        Raises:
            DoesNotFit: a single request does not fit in memory.
        """
        found: dict[Request, T] = {}
        queue = self._batches(requests)
        while queue:
            batch = queue[0]
            try:
                found |= zip(batch, run(batch), strict=True)
                queue = queue[1:]
                continue
            except (RuntimeError, MemoryError) as fault:
                if not out_of_memory(fault):
                    raise
            self.lower(batch[0].length * len(batch) // 2)
            if len(batch) == 1:
                raise DoesNotFit(f"a single sequence of {batch[0].length:,} tokens does not fit in the device's memory")
            queue = self._batches(itertools.chain.from_iterable(queue))
        return found

    def _batches(self, requests: Iterable[Request]) -> list[list[Request]]:
        """Returns batches of similar length, the longest first, so that a lack of memory shows at once."""
        tokens = self.tokens
        found: list[list[Request]] = []
        for request in sorted(requests, key=lambda request: -request.length):
            batch = found[-1] if found else []
            if (
                batch
                and batch[0].length * (len(batch) + 1) <= tokens
                and sum(one.logits for one in batch) + request.logits <= self.logits
            ):
                batch.append(request)
            else:
                found.append([request])
        return found


def out_of_memory(fault: Exception) -> bool:
    """Returns whether memory ran out: not every allocator has its own exception."""
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or any(
        words in str(fault).lower() for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )


def _token_size(text: Any) -> int:
    """Returns the numbers that are held for each token: keys and values, and the widest activations of one layer."""

    def most(name: str, default: int) -> int:
        """Returns a setting; the greatest where each layer has its own."""
        value = getattr(text, name, None) or default
        return int(max(value) if isinstance(value, list | tuple) else value)

    hidden, heads = most("hidden_size", 1), most("num_attention_heads", 1)
    shared, size = most("num_key_value_heads", heads), most("head_dim", hidden // heads)
    return 2 * most("num_hidden_layers", 1) * shared * size + 6 * hidden + 4 * most("intermediate_size", 4 * hidden)
