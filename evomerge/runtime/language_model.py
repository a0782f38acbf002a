"""`TorchLanguageModel`: greedy completions and log-likelihoods by any causal model that is a torch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from evomerge.runtime.budget import Budget
from evomerge.runtime.forward import Forward
from evomerge.runtime.generation import Generation
from evomerge.runtime.images import ImageReader
from evomerge.runtime.likelihoods import Likelihoods
from evomerge.runtime.protocol import GenerationRequest, LikelihoodRequest, TokenCounts


class TorchLanguageModel:
    """A `LanguageModel` that runs a module; the module's weights may change between calls.

    Args:
        module: a causal language model of transformers, or a model of text and images.
        tokenizer: its tokenizer; completions are decoded with it.
        stop_ids: tokens that end a completion.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        forward, budget = Forward(module), Budget(module)
        self._likelihoods = Likelihoods(forward, budget)
        self._generation = Generation(forward, budget, tokenizer, stop_ids)
        self._images = ImageReader(module, tokenizer, stop_ids, budget)

    @property
    def tokens(self) -> TokenCounts:
        """All tokens that were run so far."""
        return self._likelihoods.tokens + self._generation.tokens + self._images.tokens

    @torch.inference_mode()
    def loglikelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Returns the natural logarithm of the likelihood of each target given its prompt.

        Raises:
            EvaluationError: the logits are not finite, or a single request does not fit in memory.
        """
        seeing = any(request.images for request in requests)
        return self._images.loglikelihoods(requests) if seeing else self._likelihoods(requests)

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Returns each greedy completion, cut before the first of its stop texts.

        Raises:
            EvaluationError: the logits are not finite, or a single request does not fit in memory.
        """
        seeing = any(request.images for request in requests)
        return self._images.generate(requests) if seeing else self._generation(requests)
