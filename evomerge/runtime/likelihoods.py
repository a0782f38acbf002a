"""`Likelihoods`: log-likelihoods by any causal model that is a torch module.

Sequences that begin alike share the work for their common tokens, see `tree.py`. Others are padded on the right, where
causal attention does not look. Only the logits that predict a target are computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import EvaluationError
from evomerge.runtime.budget import Budget, out_of_memory
from evomerge.runtime.forward import Forward, padded
from evomerge.runtime.protocol import LikelihoodRequest, TokenCounts
from evomerge.runtime.shared import SharedRunner
from evomerge.runtime.tree import Ids, packs

PACK = 512
"""The tokens of a pack: enough for fast matrix products, and few enough for attention with a mask."""

MOST_OF_A_PACK = 4096
"""Sequences that share a beginning and have more tokens together are run one by one: a mask has the square of them."""

CHUNK = 16_000_000
"""The logits that are converted to float32 at the same time."""


class Likelihoods:
    """Log-likelihoods of targets, see `LanguageModel.loglikelihoods`.

    Args:
        forward: runs the model.
        budget: the size of its batches.

    Attributes:
        tokens: all that was run so far.
    """

    def __init__(self, forward: Forward, budget: Budget) -> None:
        self.tokens = TokenCounts()
        self._forward = forward
        self._budget = budget
        self._shared = SharedRunner(forward)

    def __call__(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Returns the log-likelihood of each target given its prompt."""
        asked: dict[Ids, list[LikelihoodRequest]] = defaultdict(list)
        for request in dict.fromkeys(requests):
            # A target's last token is predicted, but not read.
            asked[request.prompt + request.target[:-1]].append(request)
        found: dict[LikelihoodRequest, float] = {}
        sequences = sorted(asked)
        if len(sequences) > 1 and self._shared.possible(sequences[0]):
            self._run_packs(sequences, asked, found)
        left = {same[0]: same for same in asked.values() if same[0] not in found}
        for values in self._budget.run(left, lambda batch: self._rows(batch, left)).values():
            found |= values
        return [found[request] for request in requests]

    def _run_packs(
        self, sequences: list[Ids], asked: dict[Ids, list[LikelihoodRequest]], found: dict[LikelihoodRequest, float]
    ) -> None:
        """Adds the log-likelihoods of sequences that begin alike; those that do not fit in memory together are left."""
        # Predictions are made in the packs alone.
        least = min(len(request.prompt) for same in asked.values() for request in same) - 1
        needed = [max(len(request.target) for request in asked[one]) for one in sequences]
        cut = packs(sequences, needed, least, min(PACK, self._budget.tokens), self._budget.logits)
        if cut is None:
            return
        start, rows = cut
        try:
            beginning = self._shared.beginning(sequences[0][:start])
            self.tokens += TokenCounts(prompt=start)
            for pack in rows:
                if len(pack.ids) > min(MOST_OF_A_PACK, self._budget.tokens):
                    continue
                places = dict(zip(pack.sequences, pack.positions(), strict=True))
                wanted = [
                    (request, places[one][len(request.prompt) - 1 - start :])
                    for one in pack.sequences
                    for request in asked[one]
                ]
                # Several sequences may go on from the same token.
                distinct = sorted({position for _, positions in wanted for position in positions})
                logits = self._shared.logits(pack, beginning, distinct)
                index = {position: row for row, position in enumerate(distinct)}
                found |= _sums(logits, [(one, [index[position] for position in own]) for one, own in wanted])
                self.tokens += TokenCounts(prompt=len(pack.ids))
        except (RuntimeError, MemoryError) as fault:
            if not out_of_memory(fault):
                raise
            self._budget.lower(min(PACK, self._budget.tokens) // 2)

    def _rows(
        self, batch: list[LikelihoodRequest], alike: dict[LikelihoodRequest, list[LikelihoodRequest]]
    ) -> list[dict[LikelihoodRequest, float]]:
        """Returns the log-likelihoods of all requests that have the same tokens as each of a batch."""
        rows = [(request.prompt + request.target)[:-1] for request in batch]
        needed: list[tuple[int, int]] = []
        wanted: list[list[tuple[LikelihoodRequest, list[int]]]] = []
        for row, leader in enumerate(batch):
            first = min(len(request.prompt) for request in alike[leader]) - 1
            offset = len(needed) - first
            needed += [(row, position) for position in range(first, len(rows[row]))]
            ends = offset + len(rows[row])
            wanted.append([(one, list(range(offset + len(one.prompt) - 1, ends))) for one in alike[leader]])
        logits = self._logits(padded(rows, "right").to(self._forward.device), torch.tensor(needed))
        found = _sums(logits, [one for own in wanted for one in own])
        self.tokens += TokenCounts(prompt=sum(map(len, rows)))
        return [{request: found[request] for request, _ in own} for own in wanted]

    def _logits(self, rows: Tensor, needed: Tensor) -> Tensor:
        """Returns the logits at (row, position) of padded rows, (needed, vocabulary); no others are computed."""

        def gathered(states: Tensor) -> Tensor:
            index = needed.to(states.device)
            return states[index[:, 0], index[:, 1]]

        def before_head(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            fits = inputs and inputs[0].shape[:2] == rows.shape
            return (gathered(inputs[0])[None], *inputs[1:]) if fits else None

        head = self._forward.module.get_output_embeddings()  # type: ignore[operator]
        hook = head.register_forward_pre_hook(before_head) if isinstance(head, nn.Module) else None
        try:
            logits: Tensor = self._forward(input_ids=rows, use_cache=False).logits
        finally:
            if hook is not None:
                hook.remove()
        # A model without a head module, or with one that is called in another way, returns the logits of all positions.
        return gathered(logits) if logits.shape[:2] == rows.shape else logits[0]


def _sums(logits: Tensor, wanted: Sequence[tuple[LikelihoodRequest, Sequence[int]]]) -> dict[LikelihoodRequest, float]:
    """Returns the log-likelihood of each request's target.

    Args:
        logits: (positions, vocabulary).
        wanted: requests with the position that predicts each token of their targets.

    Raises:
        EvaluationError: the logits are not finite.
    """
    # In chunks, as each takes float32 copies.
    size = max(1, CHUNK // logits.shape[-1])
    totals = torch.cat([torch.logsumexp(chunk.float(), dim=-1) for chunk in torch.split(logits, size)])
    rows = torch.tensor([row for _, own in wanted for row in own], device=logits.device)
    ids = torch.tensor([token for request, _ in wanted for token in request.target], device=logits.device)
    logs = (logits[rows, ids].float() - totals[rows]).double()
    if not torch.isfinite(logs).all():
        raise EvaluationError("the model's logits are not finite")
    sums = [float(part.sum()) for part in torch.split(logs, [len(own) for _, own in wanted])]
    return {request: value for (request, _), value in zip(wanted, sums, strict=True)}
