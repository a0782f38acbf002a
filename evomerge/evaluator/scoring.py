"""Running a model over token ids: greedy completions, and log-likelihoods of continuations.

Only the logits that are needed are computed: the last position's for a completion, the continuation's for a
likelihood. Completions are padded on the left and likelihoods on the right, where causal attention never looks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from evomerge.errors import EvaluationError
from evomerge.evaluator.encoding import Row, batches

T = TypeVar("T")

LOGIT_BYTES = 400_000_000
"""The most memory that one batch's float32 logits may take."""


class Runner:
    """Runs one model; the model's weights may change between calls.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer; completions are decoded with it.
        stop_ids: tokens that end a completion.
        most_rows: the most rows of a batch.
        most_tokens: the most tokens of a batch.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, stop_ids: Sequence[int], *, most_rows: int, most_tokens: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.most_rows = most_rows
        self.most_tokens = most_tokens
        self.device = next(model.parameters()).device
        self._stop_ids = torch.tensor(sorted(set(stop_ids)), dtype=torch.long, device=self.device)
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        self._takes_positions = "position_ids" in accepted
        self._takes_cache = "past_key_values" in accepted
        config: Any = model.config
        self._config = config
        self._vocabulary = int(getattr(config.get_text_config(), "vocab_size", 1))

    @torch.inference_mode()
    def completions(self, rows: Sequence[Row], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """Returns each row's greedy completion, cut before the first of the `stop` texts.

        Raises:
            EvaluationError: the logits are not finite.
        """
        found: dict[int, str] = {}
        for batch in batches(rows, new_tokens=max_new_tokens, most_rows=self.most_rows, most_tokens=self.most_tokens):
            done = self._in_memory(batch, lambda part: self._generate(part, max_new_tokens, stop))
            found |= {id(row): text for row, text in zip(batch, done, strict=True)}
        return [found[id(row)] for row in rows]

    @torch.inference_mode()
    def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        """Returns the natural logarithm of each row's target's likelihood given its prompt.

        Raises:
            EvaluationError: the logits are not finite.
        """
        found: dict[int, float] = {}
        single = [row for row in rows if len(row.target) == 1]
        # Continuations of one token share one run of their prompt.
        prompts: dict[tuple[int, ...], list[Row]] = {}
        for row in single:
            prompts.setdefault(row.prompt, []).append(row)
        leaders = [same[0] for same in prompts.values()]
        for batch in self._likelihood_batches(leaders):
            for row, logits in zip(batch, self._in_memory(batch, self._last_logits), strict=True):
                for same in prompts[row.prompt]:
                    found[id(same)] = float(logits[same.target[0]])
        for batch in self._likelihood_batches([row for row in rows if len(row.target) != 1]):
            sums = self._in_memory(batch, self._target_sums)
            found |= {id(row): value for row, value in zip(batch, sums, strict=True)}
        return [found[id(row)] for row in rows]

    def _likelihood_batches(self, rows: Sequence[Row]) -> list[list[Row]]:
        widest = max((len(row.target) for row in rows), default=1)
        most_rows = max(1, min(self.most_rows, LOGIT_BYTES // (4 * self._vocabulary * widest)))
        return batches(rows, new_tokens=0, most_rows=most_rows, most_tokens=self.most_tokens)

    def _in_memory(self, batch: list[Row], run: Callable[[list[Row]], list[T]]) -> list[T]:
        """Returns what `run` gives for the batch, which is halved for as long as the device's memory is short."""
        try:
            return run(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise EvaluationError(
                    f"a single sequence of {len(batch[0]):,} tokens does not fit in the device's memory"
                ) from None
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._in_memory(batch[:half], run) + self._in_memory(batch[half:], run)

    def _forward(self, **inputs: Any) -> Any:
        if not self._keeps_logits:
            inputs.pop("logits_to_keep", None)
        if not self._takes_positions:
            inputs.pop("position_ids", None)
        return self.model(**inputs)

    def _log_probabilities(self, ids: Sequence[Sequence[int]], first: int) -> Tensor:
        """Returns float32 log-probabilities of the next token from position `first` on: (rows, rest, vocabulary)."""
        width = max(len(one) for one in ids)
        padded = torch.tensor([list(one) + [0] * (width - len(one)) for one in ids], device=self.device)
        kept = torch.arange(first, width, device=self.device)
        logits = self._forward(input_ids=padded, use_cache=False, logits_to_keep=kept).logits
        logits = logits[:, -len(kept) :].float()
        if not torch.isfinite(logits).all():
            raise EvaluationError("the model's logits are not finite")
        return torch.log_softmax(logits, dim=-1)

    def _last_logits(self, batch: list[Row]) -> list[Tensor]:
        shortest = min(len(row.prompt) for row in batch)
        found = self._log_probabilities([row.prompt for row in batch], shortest - 1)
        return [found[i, len(row.prompt) - shortest].cpu() for i, row in enumerate(batch)]

    def _target_sums(self, batch: list[Row]) -> list[float]:
        first = min(len(row.prompt) for row in batch) - 1
        # The last token is only predicted, never read.
        found = self._log_probabilities([(row.prompt + row.target)[:-1] for row in batch], first)
        sums = []
        for i, row in enumerate(batch):
            start = len(row.prompt) - 1 - first
            target = torch.tensor(row.target, device=self.device)
            picked = found[i, start : start + len(row.target)].gather(-1, target[:, None])
            sums.append(float(picked.double().sum()))
        return sums

    def _generate(self, batch: list[Row], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        width = max(len(row.prompt) for row in batch)
        ids = torch.tensor([[0] * (width - len(row.prompt)) + list(row.prompt) for row in batch])
        mask = torch.tensor(
            [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in batch], device=self.device
        )
        padded = bool((mask == 0).any())
        ids, positions = ids.to(self.device), (mask.cumsum(-1) - 1).clamp(min=0)
        cache = _cache(self._config, max_new_tokens) if self._takes_cache else None
        completions: list[list[int]] = [[] for _ in batch]
        active = list(range(len(batch)))
        for step in range(max_new_tokens):
            inputs: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None, "logits_to_keep": 1}
            if padded:
                inputs |= {"attention_mask": mask, "position_ids": positions}
            if cache is not None:
                inputs["past_key_values"] = cache
            best, token = self._forward(**inputs).logits[:, -1].max(dim=-1)
            if not torch.isfinite(best).all():
                raise EvaluationError(f"the model's logits are not finite at generated token {step}")
            ended = torch.isin(token, self._stop_ids).tolist()
            for row, value, end in zip(active, token.tolist(), ended, strict=True):
                completions[row] += [] if end else [value]
            going = [i for i, row in enumerate(active) if not ended[i] and not self._stopped(completions[row], stop)]
            if not going or step + 1 == max_new_tokens:
                break
            if len(going) < len(active):
                # What has ended leaves the batch: the rest runs faster.
                kept = torch.tensor(going, device=self.device)
                active = [active[i] for i in going]
                token, mask, positions = token[kept], mask[kept], positions[kept]
                if cache is not None:
                    cache.batch_select_indices(kept)
                else:
                    ids = ids[kept]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            next_positions = positions[:, -1:] + 1
            if cache is None:
                ids, positions = (
                    torch.cat([ids, token[:, None]], 1),
                    torch.cat([positions, next_positions], 1),
                )
            else:
                ids, positions = token[:, None], next_positions
        return [self._text(one, stop) for one in completions]

    def _stopped(self, tokens: list[int], stop: Sequence[str]) -> bool:
        if not stop:
            return False
        # A stop text of n characters has at most n tokens; one more may share its first character's bytes.
        tail = self.tokenizer.decode(tokens[-(max(map(len, stop)) + 4) :], skip_special_tokens=True)
        return any(text in tail for text in stop)

    def _text(self, tokens: list[int], stop: Sequence[str]) -> str:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return text[: min((text.index(one) for one in stop if one in text), default=len(text))]


class _Growing(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's keys and values with room for the tokens to come, so that a step copies one token and not all."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values, (rows, heads, new tokens, size), and returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < new:
            self._buffers = (
                self._grown(key_states, new, old, self.keys),
                self._grown(value_states, new, old, self.values),
            )
        keys, values = self._buffers
        keys[:, :, old:new], values[:, :, old:new] = key_states, value_states
        self.keys, self.values = keys[:, :, :new], values[:, :, :new]
        return self.keys, self.values

    def _grown(self, like: Tensor, new: int, old: int, kept: Tensor | None) -> Tensor:
        rows, heads, _, size = like.shape
        buffer = like.new_empty(rows, heads, new + self._room, size)
        if old and kept is not None:
            buffer[:, :, :old] = kept
        return buffer

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows at `indices`."""
        if self._buffers is not None:
            keys, values = self._buffers
            old = self.get_seq_length()
            self._buffers = keys[indices], values[indices]
            self.keys, self.values = (buffer[:, :, :old] for buffer in self._buffers)


def _cache(config: Any, room: int) -> DynamicCache:
    """Returns a cache of the kinds of layers that `config` describes; plain attention layers have room to grow."""
    cache = DynamicCache(config=config)
    cache.layers = [_Growing(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
