"""`Likelihoods`: log-likelihoods by any causal model that is a torch module.

Only the logits that predict a target are computed. Sequences are padded on the right, where causal attention does not
look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import EvaluationError
from evomerge.runtime.budget import Budget
from evomerge.runtime.forward import Forward, padded
from evomerge.runtime.protocol import LikelihoodRequest, TokenCounts


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

    def __call__(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Returns the log-likelihood of each target given its prompt."""
        # A target's last token is predicted, but not read: requests that differ in nothing else are run once.
        runs: dict[tuple[tuple[int, ...], int], list[LikelihoodRequest]] = {}
        for request in dict.fromkeys(requests):
            runs.setdefault((request.prompt + request.target[:-1], len(request.target)), []).append(request)
        alike = {same[0]: same for same in runs.values()}
        sums = self._budget.run(alike, lambda batch: self._sums(batch, alike))
        found = {one: value for leader, same in alike.items() for one, value in zip(same, sums[leader], strict=True)}
        return [found[request] for request in requests]

    def _sums(
        self, batch: list[LikelihoodRequest], alike: Mapping[LikelihoodRequest, Sequence[LikelihoodRequest]]
    ) -> list[list[float]]:
        """Returns for each request the log-likelihoods of all that differ from it in the last token alone."""
        logits = self._target_logits(batch)
        # Any that is not finite makes the least or the greatest so; `isfinite` of each takes twenty times as long.
        if not torch.isfinite(torch.stack(torch.aminmax(logits))).all():
            raise EvaluationError("the model's logits are not finite")
        sums = []
        for request, part in zip(batch, torch.split(logits, [len(one.target) for one in batch]), strict=True):
            # One by one, as each takes float32 copies.
            logs = torch.log_softmax(part.float(), dim=-1)
            read = torch.tensor(request.target[:-1], dtype=torch.long, device=logs.device)
            before = logs[:-1].gather(-1, read[:, None]).double().sum()
            ends = torch.tensor([one.target[-1] for one in alike[request]], device=logs.device)
            sums.append((before + logs[-1, ends].double()).tolist())
        self.tokens += TokenCounts(prompt=sum(request.length - 1 for request in batch))
        return sums

    def _target_logits(self, batch: list[LikelihoodRequest]) -> Tensor:
        """Returns the logits that predict the targets, (tokens of all targets, vocabulary); no others are computed."""
        ids = [(request.prompt + request.target)[:-1] for request in batch]
        rows = padded(ids, "right").to(self._forward.device)
        wanted = torch.tensor(
            [(row, len(one.prompt) - 1 + index) for row, one in enumerate(batch) for index in range(len(one.target))]
        )

        def gathered(states: Tensor) -> Tensor:
            index = wanted.to(states.device)
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
