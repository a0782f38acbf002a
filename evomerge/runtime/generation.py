"""`Generation`: greedy completions by any causal model that is a torch module.

Prompts are padded on the left, and only the last position's logits are computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from evomerge.errors import EvaluationError
from evomerge.runtime.budget import Budget
from evomerge.runtime.cache import growing_cache
from evomerge.runtime.forward import Forward, padded
from evomerge.runtime.protocol import GenerationRequest, TokenCounts


class Generation:
    """Greedy completions, see `LanguageModel.generate`.

    Args:
        forward: runs the model.
        budget: the size of its batches.
        tokenizer: its tokenizer; completions are decoded with it.
        stop_ids: tokens that end a completion.

    Attributes:
        tokens: all that was run so far.
    """

    def __init__(self, forward: Forward, budget: Budget, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        self.tokens = TokenCounts()
        self._forward = forward
        self._budget = budget
        self._tokenizer = tokenizer
        self._stop_ids = torch.tensor(sorted(set(stop_ids)), dtype=torch.long, device=forward.device)

    def __call__(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Returns each greedy completion, cut before the first of its stop texts."""
        found = self._budget.run(dict.fromkeys(requests), self._completions)
        return [found[request] for request in requests]

    def _completions(self, batch: list[GenerationRequest]) -> list[str]:
        ids = padded([request.prompt for request in batch], "left").to(self._forward.device)
        mask = padded([[1] * len(request.prompt) for request in batch], "left").to(self._forward.device)
        uneven, positions = bool((mask == 0).any()), (mask.cumsum(-1) - 1).clamp(min=0)
        room = max(request.max_new_tokens for request in batch)
        cache = growing_cache(self._forward.module.config, room) if self._forward.takes("past_key_values") else None
        completions: list[list[int]] = [[] for _ in batch]
        counts = TokenCounts(prompt=sum(len(request.prompt) for request in batch))
        active = list(range(len(batch)))
        for step in itertools.count():
            # All tokens are kept, but with a cache only new ones are run.
            run = slice(-1 if step and cache is not None else None, None)
            output = self._forward(
                input_ids=ids[:, run],
                attention_mask=mask if uneven else None,
                position_ids=positions[:, run] if uneven else None,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1,
            )
            best, token = output.logits[:, -1].max(dim=-1)
            if not torch.isfinite(best).all():
                raise EvaluationError(f"the model's logits are not finite at generated token {step}")
            counts += TokenCounts(new=len(active))
            ended = torch.isin(token, self._stop_ids).tolist()
            for row, value, end in zip(active, token.tolist(), ended, strict=True):
                completions[row] += [] if end else [value]
            going = [
                i for i, row in enumerate(active) if not ended[i] and not self._complete(completions[row], batch[row])
            ]
            if not going:
                break
            if len(going) < len(active):
                # Completions that have ended leave the batch, which makes the others faster.
                kept = torch.tensor(going, device=self._forward.device)
                active = [active[i] for i in going]
                ids, token, mask, positions = (one[kept] for one in (ids, token, mask, positions))
                if cache is not None:
                    cache.batch_select_indices(kept)
            ids = torch.cat([ids, token[:, None]], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
        self.tokens += counts
        return [self._text(tokens, request.stop) for tokens, request in zip(completions, batch, strict=True)]

    def _complete(self, tokens: list[int], request: GenerationRequest) -> bool:
        """Returns whether a completion of these tokens has its most tokens or contains a stop text."""
        stop = request.stop
        if not stop or len(tokens) == request.max_new_tokens:
            return len(tokens) == request.max_new_tokens
        # A character can have several tokens, and a token no character. The window grows until the longest stop text
        # fits before the last four tokens, which may have been incomplete characters at the previous step.
        enough, window = max(map(len, stop)) + 4, 16
        while len(self._decoded(tokens[-window:-4])) < enough and window < len(tokens):
            window *= 2
        tail = self._decoded(tokens[-window:])
        # The whole text decides, as the first characters of a window can be wrong.
        return any(text in tail for text in stop) and any(text in self._decoded(tokens) for text in stop)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _text(self, tokens: list[int], stop: Sequence[str]) -> str:
        text = self._decoded(tokens)
        return text[: min((text.index(one) for one in stop if one in text), default=len(text))]
