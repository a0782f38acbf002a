"""`Generation`: greedy completions by any causal model that is a torch module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evomerge.errors import EvaluationError
from evomerge.runtime.batches import Batch, batch_for
from evomerge.runtime.budget import Budget, out_of_memory
from evomerge.runtime.forward import Forward
from evomerge.runtime.protocol import GenerationRequest, TokenCounts

_logger = logging.getLogger("evomerge")


@dataclass
class _Completion:
    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The token that the next one follows."""
        return self.tokens[-1] if self.tokens else self.request.prompt[-1]


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
        self._stop_ids = frozenset(stop_ids)
        self._characters: dict[int, frozenset[str]] = {}
        self._noticed = {""}

    def __call__(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Returns each greedy completion, cut before the first of its stop texts."""
        # The longest first, so that a lack of memory shows at once; alike in length, so that there is little padding.
        order = sorted(dict.fromkeys(requests), key=lambda one: (-len(one.prompt), -one.max_new_tokens))
        texts: dict[GenerationRequest, str] = {}
        while waiting := [request for request in order if request not in texts]:
            self._write(waiting, texts)
        return [texts[request] for request in requests]

    def _write(self, waiting: list[GenerationRequest], texts: dict[GenerationRequest, str]) -> None:
        """Adds the completions of `waiting` to `texts`; of some of them where memory runs out, with less the next time.

        Raises:
            EvaluationError: one of them alone does not fit in memory.
        """
        batch: Batch | None = None
        active: list[_Completion] = []
        try:
            batch = batch_for(self._forward, waiting)
            if batch.notice not in self._noticed:
                self._noticed.add(batch.notice)
                _logger.info("%s: %s", type(self._forward.module).__name__, batch.notice)
            tokens = self._budget.tokens
            while waiting or active:
                count = batch.fitting(waiting, tokens) if waiting else 0
                count = min(count, max(self._budget.logits - len(active), 0 if active else 1))
                if count:
                    active += map(_Completion, waiting[:count])
                    batch.add(waiting[:count])
                    waiting = waiting[count:]
                active = self._continued(batch, active, texts)
        except (RuntimeError, MemoryError) as fault:
            if not out_of_memory(fault):
                raise
            if batch is None or len(active) == 1:
                length = (active[0].request if active else waiting[0]).length
                raise EvaluationError(
                    f"a single sequence of {length:,} tokens does not fit in the device's memory"
                ) from None
            self._budget.lower(batch.held // 2)
        finally:
            self.tokens += TokenCounts(prompt=batch.read if batch is not None else 0)

    def _continued(
        self, batch: Batch, active: list[_Completion], texts: dict[GenerationRequest, str]
    ) -> list[_Completion]:
        """Runs one more token; returns the completions that go on, in the order of rows, and adds the others' texts."""
        best, tokens = batch.step([one.last for one in active]).max(dim=-1)
        # The greatest of numbers of which one is not a number is none.
        if not torch.isfinite(best).all():
            raise EvaluationError("the model's logits are not finite")
        self.tokens += TokenCounts(new=len(active))
        going = []
        for row, (one, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
            ended = token in self._stop_ids
            if not ended:
                one.tokens.append(token)
            if ended or self._complete(one.tokens, one.request):
                texts[one.request] = self._text(one.tokens, one.request.stop)
            else:
                going.append(row)
        if len(going) < len(active):
            return [active[row] for row in batch.keep(going)]
        return active

    def _complete(self, tokens: list[int], request: GenerationRequest) -> bool:
        """Returns whether a completion of these tokens has its most tokens or contains a stop text."""
        stop = request.stop
        if not stop or len(tokens) == request.max_new_tokens:
            return len(tokens) == request.max_new_tokens
        if not self._could_end(tokens[-1], stop):
            return False
        # A character can have several tokens, and a token no character. The window grows until the longest stop text
        # fits before the last four tokens, which may have been incomplete characters at the previous step.
        enough, window = max(map(len, stop)) + 4, 16
        while len(self._decoded(tokens[-window:-4])) < enough and window < len(tokens):
            window *= 2
        tail = self._decoded(tokens[-window:])
        # The whole text decides, as the first characters of a window can be wrong.
        return any(text in tail for text in stop) and any(text in self._decoded(tokens) for text in stop)

    def _could_end(self, token: int, stop: Sequence[str]) -> bool:
        """Returns whether a text with one of these can be complete once it has this token."""
        if token not in self._characters:
            # Twice, as some tokenizers drop a space from the beginning of a text.
            self._characters[token] = frozenset(self._decoded([token, token]))
        found = self._characters[token]
        return "\ufffd" in found or any(not found.isdisjoint(text) for text in stop)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _text(self, tokens: list[int], stop: Sequence[str]) -> str:
        text = self._decoded(tokens)
        return text[: min((text.index(one) for one in stop if one in text), default=len(text))]
