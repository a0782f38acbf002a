"""`TorchLanguageModel`: greedy completions and log-likelihoods by any causal model that is a torch module.

Only the logits that are needed are computed: the last position's for a completion, for a likelihood those of each
target. Prompts to complete are padded on the left, sequences with a target on the right, where causal attention does
not look.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from evomerge.errors import EvaluationError
from evomerge.runtime.cache import growing_cache
from evomerge.runtime.protocol import GenerationRequest, LikelihoodRequest, TokenCounts

T = TypeVar("T")
Request = TypeVar("Request", LikelihoodRequest, GenerationRequest)

LOGIT_BYTES = 400_000_000
"""The most memory for the logits of one batch in float32; a batch of one request may need more."""


class TorchLanguageModel:
    """A `LanguageModel` that runs a module; the module's weights may change between calls.

    Args:
        module: a causal language model of transformers.
        tokenizer: its tokenizer; completions are decoded with it.
        stop_ids: tokens that end a completion.

    Attributes:
        tokens: all that was run so far.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        self.tokens = TokenCounts()
        self._module = module
        self._tokenizer = tokenizer
        self._device = next(module.parameters()).device
        accelerated = self._device.type != "cpu"
        self._most_rows = 256 if accelerated else 128
        self._most_tokens = 131_072 if accelerated else 16_384
        self._stop_ids = torch.tensor(sorted(set(stop_ids)), dtype=torch.long, device=self._device)
        config: Any = module.config
        self._config = config
        self._most_logits = max(1, LOGIT_BYTES // (4 * int(getattr(config.get_text_config(), "vocab_size", 1))))
        self._accepted = inspect.signature(module.forward).parameters

    @torch.inference_mode()
    def loglikelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Returns the natural logarithm of the likelihood of each target given its prompt.

        Raises:
            EvaluationError: the logits are not finite, or a single request does not fit in memory.
        """
        # A target's last token is predicted, but not read: requests that differ in nothing else are run once.
        runs: dict[tuple[tuple[int, ...], int], list[LikelihoodRequest]] = {}
        for request in dict.fromkeys(requests):
            runs.setdefault((request.prompt + request.target[:-1], len(request.target)), []).append(request)
        alike = {same[0]: same for same in runs.values()}
        sums = self._batched(alike, lambda batch: self._sums(batch, alike))
        found = {one: value for leader, same in alike.items() for one, value in zip(same, sums[leader], strict=True)}
        return [found[request] for request in requests]

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Returns each greedy completion, cut before the first of its stop texts.

        Raises:
            EvaluationError: the logits are not finite, or a single request does not fit in memory.
        """
        found = self._batched(dict.fromkeys(requests), self._completions)
        return [found[request] for request in requests]

    def _batched(self, requests: Iterable[Request], run: Callable[[list[Request]], Sequence[T]]) -> dict[Request, T]:
        """Returns what `run` returns for each request; where memory runs out, batches are halved from then on."""
        found: dict[Request, T] = {}
        queue = self._batches(requests)
        while queue:
            batch = queue[0]
            try:
                found |= zip(batch, run(batch), strict=True)
                queue = queue[1:]
                continue
            except (RuntimeError, MemoryError) as fault:
                if not _out_of_memory(fault):
                    raise
            if len(batch) == 1:
                raise EvaluationError(
                    f"a single sequence of {batch[0].length:,} tokens does not fit in the device's memory"
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._most_tokens = batch[0].length * (len(batch) // 2)
            queue = self._batches(itertools.chain.from_iterable(queue))
        return found

    def _batches(self, requests: Iterable[Request]) -> list[list[Request]]:
        """Returns batches of similar length, the longest first, so that a lack of memory shows at once."""
        found: list[list[Request]] = []
        for request in sorted(requests, key=lambda request: -request.length):
            batch = found[-1] if found else []
            if (
                0 < len(batch) < self._most_rows
                and batch[0].length * (len(batch) + 1) <= self._most_tokens
                and sum(one.logits for one in batch) + request.logits <= self._most_logits
            ):
                batch.append(request)
            else:
                found.append([request])
        return found

    def _forward(self, **inputs: Any) -> Any:
        optional = ("logits_to_keep", "position_ids", "past_key_values")
        return self._module(**{k: v for k, v in inputs.items() if k in self._accepted or k not in optional})

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
        padded = _padded(ids, "right").to(self._device)
        wanted = torch.tensor(
            [(row, len(one.prompt) - 1 + index) for row, one in enumerate(batch) for index in range(len(one.target))]
        )

        def gathered(states: Tensor) -> Tensor:
            index = wanted.to(states.device)
            return states[index[:, 0], index[:, 1]]

        def before_head(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            fits = inputs and inputs[0].shape[:2] == padded.shape
            return (gathered(inputs[0])[None], *inputs[1:]) if fits else None

        head = self._module.get_output_embeddings()  # type: ignore[operator]
        hook = head.register_forward_pre_hook(before_head) if isinstance(head, nn.Module) else None
        try:
            logits: Tensor = self._forward(input_ids=padded, use_cache=False).logits
        finally:
            if hook is not None:
                hook.remove()
        # A model without a head module, or with one that is called in another way, returns the logits of all positions.
        return gathered(logits) if logits.shape[:2] == padded.shape else logits[0]

    def _completions(self, batch: list[GenerationRequest]) -> list[str]:
        ids = _padded([request.prompt for request in batch], "left").to(self._device)
        mask = _padded([[1] * len(request.prompt) for request in batch], "left").to(self._device)
        padded, positions = bool((mask == 0).any()), (mask.cumsum(-1) - 1).clamp(min=0)
        room = max(request.max_new_tokens for request in batch)
        cache = growing_cache(self._config, room) if "past_key_values" in self._accepted else None
        completions: list[list[int]] = [[] for _ in batch]
        counts = TokenCounts(prompt=sum(len(request.prompt) for request in batch))
        active = list(range(len(batch)))
        for step in itertools.count():
            # All tokens are kept, but with a cache only new ones are run.
            run = slice(-1 if step and cache is not None else None, None)
            output = self._forward(
                input_ids=ids[:, run],
                attention_mask=mask if padded else None,
                position_ids=positions[:, run] if padded else None,
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
                kept = torch.tensor(going, device=self._device)
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


def _padded(rows: Iterable[Sequence[int]], side: str) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)


def _out_of_memory(fault: Exception) -> bool:
    """Returns whether memory ran out: not every allocator has its own exception."""
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or any(
        words in str(fault).lower() for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )
