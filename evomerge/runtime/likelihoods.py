"""`Likelihoods`: log-likelihoods by any causal model that is a torch module.

Sequences that begin alike share the work for their common tokens, see `tree.py`. Others are padded on the right, where
causal attention does not look. Only the logits that predict a target are computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from evomerge.errors import EvaluationError
from evomerge.runtime.budget import Budget, DoesNotFit
from evomerge.runtime.forward import Forward, padded
from evomerge.runtime.protocol import LikelihoodRequest, TokenCounts
from evomerge.runtime.shared import Beginning, SharedRunner
from evomerge.runtime.tree import Ids, Pack, cut

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
            # Where memory is too short for a pack, its sequences are left.
            with suppress(DoesNotFit):
                self._run_packs(sequences, None, asked, found)
        left = {same[0]: same for same in asked.values() if same[0] not in found}
        for values in self._budget.run(left, lambda batch: self._rows(batch, left)).values():
            found |= values
        return [found[request] for request in requests]

    def _run_packs(
        self,
        sequences: list[Ids],
        before: Beginning | None,
        asked: Mapping[Ids, Sequence[LikelihoodRequest]],
        found: dict[LikelihoodRequest, float],
    ) -> None:
        """Adds the log-likelihoods of sequences that begin alike; those that share too little are left.

        Raises:
            DoesNotFit: a pack does not fit in memory.
        """
        # Predictions are made in the packs alone.
        least = min(len(request.prompt) for one in sequences for request in asked[one]) - 1
        needed = [max(len(request.target) for request in asked[one]) for one in sequences]
        done = len(before.ids) if before is not None else 0
        how = cut(sequences, needed, done, least, self._budget.tokens, self._budget.logits)
        if how is None:
            return
        beginning = before
        if how.start > done:
            whole = Pack.of([sequences[0][: how.start]], done)
            (beginning,) = self._budget.run(
                [whole], lambda _: [self._shared.beginning(whole.sequences[0], before)]
            ).values()
            self.tokens += TokenCounts(prompt=how.start - done)
        for values in self._budget.run(how.packs, lambda batch: self._packs(batch, beginning, asked)).values():
            found |= values
        for group in how.long:
            if how.start > done or len(group) < len(sequences):
                self._run_packs(group, beginning, asked, found)

    def _packs(
        self, packs: Sequence[Pack], beginning: Beginning | None, asked: Mapping[Ids, Sequence[LikelihoodRequest]]
    ) -> list[dict[LikelihoodRequest, float]]:
        """Returns the log-likelihoods of all requests of each pack of a batch."""
        # Several sequences may go on from the same token, whose logits are computed once.
        index: dict[tuple[int, int], int] = {}
        wanted: list[list[tuple[LikelihoodRequest, list[int]]]] = []
        for row, pack in enumerate(packs):
            wanted.append([])
            for one, positions in zip(pack.sequences, pack.positions(), strict=True):
                for request in asked[one]:
                    own = [(row, position) for position in positions[len(request.prompt) - 1 - pack.start :]]
                    wanted[-1].append((request, [index.setdefault(place, len(index)) for place in own]))
        logits = self._shared.logits(packs, beginning, torch.tensor(list(index)))
        found = _sums(logits, [one for own in wanted for one in own])
        self.tokens += TokenCounts(prompt=sum(len(pack.ids) for pack in packs))
        return [{request: found[request] for request, _ in own} for own in wanted]

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
        ids = padded(rows, "right").to(self._forward.device)
        logits = self._forward.logits(torch.tensor(needed), input_ids=ids, use_cache=False)
        found = _sums(logits, [one for own in wanted for one in own])
        self.tokens += TokenCounts(prompt=sum(map(len, rows)))
        return [{request: found[request] for request, _ in own} for own in wanted]


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
