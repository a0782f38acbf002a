"""Running a model over token ids: greedy completions, and log-likelihoods of continuations.

Only the logits that are needed are computed: the last position's for a completion, for a likelihood those of each
row's continuation, wherever it is. Completions are padded on the left and likelihoods on the right, where causal
attention never looks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from evomerge.errors import EvaluationError
from evomerge.evaluation.encoding import Row, batches

T = TypeVar("T")

LOGIT_BYTES = 400_000_000
"""The most memory that one batch's logits may take in float32, where it is not a single row's."""


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
            EvaluationError: the logits are not finite, or a single row does not fit in memory.
        """
        return self._batched(rows, lambda batch: self._generate(batch, max_new_tokens, stop), max_new_tokens)

    @torch.inference_mode()
    def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        """Returns the natural logarithm of each row's target's likelihood given its prompt.

        Raises:
            EvaluationError: the logits are not finite, or a single row does not fit in memory.
        """
        # The last token is only predicted, never read: targets that differ in it alone share a run.
        runs: dict[tuple[tuple[int, ...], int], list[Row]] = {}
        for row in rows:
            runs.setdefault((row.prompt + row.target[:-1], len(row.target)), []).append(row)
        alike = list(runs.values())
        found: dict[int, float] = {}
        leaders = [same[0] for same in alike]
        lasts = {id(same[0]): [row.target[-1] for row in same] for same in alike}
        sums = self._batched(leaders, lambda batch: self._sums(batch, lasts))
        for same, values in zip(alike, sums, strict=True):
            found |= {id(row): value for row, value in zip(same, values, strict=True)}
        return [found[id(row)] for row in rows]

    def _batched(self, rows: Sequence[Row], run: Callable[[list[Row]], list[T]], new_tokens: int = 0) -> list[T]:
        """Returns what `run` gives for each row; batches are halved, for good, where memory is short."""
        found: dict[int, T] = {}
        queue = self._batches(rows, new_tokens)
        while queue:
            batch = queue[0]
            try:
                found |= {id(row): value for row, value in zip(batch, run(batch), strict=True)}
                queue = queue[1:]
                continue
            except (RuntimeError, MemoryError) as fault:
                if not _out_of_memory(fault):
                    raise
            if len(batch) == 1:
                raise EvaluationError(
                    f"a single sequence of {len(batch[0]) + new_tokens:,} tokens does not fit in the device's memory"
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.most_tokens = (len(batch[0]) + new_tokens) * (len(batch) // 2)
            queue = self._batches([row for one in queue for row in one], new_tokens)
        return [found[id(row)] for row in rows]

    def _batches(self, rows: Sequence[Row], new_tokens: int) -> list[list[Row]]:
        return batches(
            rows,
            new_tokens=new_tokens,
            most_rows=self.most_rows,
            most_tokens=self.most_tokens,
            most_targets=max(1, LOGIT_BYTES // (4 * self._vocabulary)),
        )

    def _forward(self, **inputs: Any) -> Any:
        if not self._keeps_logits:
            inputs.pop("logits_to_keep", None)
        if not self._takes_positions:
            inputs.pop("position_ids", None)
        return self.model(**inputs)

    def _sums(self, batch: list[Row], lasts: Mapping[int, Sequence[int]]) -> list[list[float]]:
        """Returns for each row the log-likelihoods of its target with each of its `lasts` as the last token."""
        logits = self._target_logits(batch)
        if not torch.isfinite(logits).all():
            raise EvaluationError("the model's logits are not finite")
        sums = []
        for row, part in zip(batch, torch.split(logits, [len(row.target) for row in batch]), strict=True):
            # Row by row, as each takes float32 copies.
            logs = torch.log_softmax(part.float(), dim=-1)
            read = torch.tensor(row.target[:-1], dtype=torch.long, device=logs.device)
            before = logs[:-1].gather(-1, read[:, None]).double().sum()
            ends = torch.tensor(lasts[id(row)], device=logs.device)
            sums.append((before + logs[-1, ends].double()).tolist())
        return sums

    def _target_logits(self, batch: list[Row]) -> Tensor:
        """Returns the logits of every target's tokens, (tokens of all targets, vocabulary); no others are computed."""
        ids = [(row.prompt + row.target)[:-1] for row in batch]
        width = max(map(len, ids))
        padded = torch.tensor([list(one) + [0] * (width - len(one)) for one in ids], device=self.device)
        wanted = torch.tensor(
            [(i, len(row.prompt) - 1 + place) for i, row in enumerate(batch) for place in range(len(row.target))]
        )

        def gathered(states: Tensor) -> Tensor:
            index = wanted.to(states.device)
            return states[index[:, 0], index[:, 1]]

        def before_head(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
            fits = inputs and inputs[0].shape[:2] == padded.shape
            return (gathered(inputs[0])[None], *inputs[1:]) if fits else None

        head = self.model.get_output_embeddings()  # type: ignore[operator]
        hook = head.register_forward_pre_hook(before_head) if isinstance(head, nn.Module) else None
        try:
            logits: Tensor = self._forward(input_ids=padded, use_cache=False).logits
        finally:
            if hook is not None:
                hook.remove()
        # A model without a head of its own, or one that is called in another way, gives the logits of all positions.
        return gathered(logits) if logits.shape[:2] == padded.shape else logits[0]

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
        # A character can have several tokens, and a token no character: enough of them are taken for the longest stop
        # text to begin before the last few, which may still have been parts of a character when they were looked at.
        enough, window = max(map(len, stop)) + 4, 16
        while len(self._decoded(tokens[-window:-4])) < enough and window < len(tokens):
            window *= 2
        tail = self._decoded(tokens[-window:])
        # The whole decides: a part can read differently where it begins.
        return any(text in tail for text in stop) and any(text in self._decoded(tokens) for text in stop)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _text(self, tokens: list[int], stop: Sequence[str]) -> str:
        text = self._decoded(tokens)
        return text[: min((text.index(one) for one in stop if one in text), default=len(text))]


def _out_of_memory(fault: Exception) -> bool:
    """Returns whether memory is short: not every allocator has an exception of its own."""
    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or any(
        words in str(fault).lower() for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )


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
