"""Requests with images: the model's own processor prepares them, and each prompt with its images runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.checkpoint import read_object
from evomerge.errors import CheckpointError, EvaluationError
from evomerge.merge import Plan, chat_template
from evomerge.runtime.budget import Budget
from evomerge.runtime.forward import CACHES
from evomerge.runtime.protocol import GenerationRequest, Images, LikelihoodRequest, TokenCounts

_SIDES = "preprocessor_config.json", "processor_config.json"


def load_processor(plan: Plan, tokenizer: Any) -> Any:
    """Returns transformers' processor of a plan's model, with the given tokenizer.

    Raises:
        CheckpointError: the model takes no images, or its processor cannot be loaded.
    """
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoImageProcessor, AutoProcessor

    donor = plan.layout.donor
    if not any((donor.folder / name).is_file() for name in _SIDES):
        raise CheckpointError(
            f"{donor.reference}: a task shows images, but the folder has no {_SIDES[0]}; use a model of text and"
            " images, or name one as the recipe's component"
        )
    auto: Any = AutoProcessor
    try:
        try:
            processor = auto.from_pretrained(str(donor.folder), trust_remote_code=False)
        except ImportError:
            # Of a processor that also takes videos, which need torchvision; its part for images does not.
            whole: Any = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(str(donor.folder), trust_remote_code=False))]
            images: Any = AutoImageProcessor
            part = images.from_pretrained(str(donor.folder), trust_remote_code=False)
            path = donor.folder / _SIDES[1]
            own = read_object(path) if path.is_file() else {}
            own = {key: value for key, value in own.items() if not key.endswith(("processor", "_class", "auto_map"))}
            kind = type(whole.__name__, (whole,), {"check_argument_for_proper_class": lambda *_: None})
            processor = kind(image_processor=part, tokenizer=tokenizer, **own)
    # A damaged file can lead to any error.
    except Exception as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise CheckpointError(f"{donor.reference}: its image processor cannot be loaded ({reason})") from None
    processor.tokenizer = tokenizer
    if chat_template(plan) is not None:
        processor.chat_template = tokenizer.chat_template
    return processor


class ImageReader:
    """Answers requests with images by a module of transformers; a prompt and its images run once.

    Args:
        module: a model of text and images.
        tokenizer: its tokenizer; completions are decoded with it.
        stop_ids: tokens that end a completion.
        budget: bounds the tokens of a batch.

    Attributes:
        tokens: all that was run so far.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, stop_ids: Sequence[int], budget: Budget) -> None:
        self.tokens = TokenCounts()
        self._module: Any = module
        self._tokenizer = tokenizer
        self._stop_ids = list(stop_ids)
        self._budget = budget

    def loglikelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Returns the natural logarithm of the likelihood of each target given its prompt and images.

        Raises:
            EvaluationError: the logits are not finite.
        """
        found: dict[LikelihoodRequest, float] = {}
        asked: dict[tuple[tuple[int, ...], Images | None], list[LikelihoodRequest]] = {}
        for request in dict.fromkeys(requests):
            asked.setdefault((request.prompt, request.images), []).append(request)
        for same in asked.values():
            found |= zip(same, self._likelihoods(same), strict=True)
        self._forget()
        return [found[request] for request in requests]

    def _likelihoods(self, same: Sequence[LikelihoodRequest]) -> list[float]:
        """Returns the log-likelihoods of targets that follow the same prompt."""
        prompt = self._module(**self._inputs(same[:1]), use_cache=True, logits_to_keep=1)
        rows = [one.target[:-1] for one in same]
        longest = max(map(len, rows))
        logits = prompt.logits[:, -1:].expand(len(same), -1, -1)
        self.tokens += TokenCounts(prompt=len(same[0].prompt) + sum(map(len, rows)))
        if longest:
            name = next(name for name in CACHES if getattr(prompt, name, None) is not None)
            cache = prompt[name]
            cache.batch_repeat_interleave(len(same))
            # Padded on the right, where causal attention does not look.
            ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=logits.device)
            rest = self._module(input_ids=ids, use_cache=True, **{name: cache})
            logits = torch.cat([logits, rest.logits], dim=1)
        sums = []
        for row, one in zip(logits, same, strict=True):
            logs = torch.log_softmax(row[: len(one.target)].float(), dim=-1)
            own = logs.gather(-1, torch.tensor(one.target, device=logs.device)[:, None])
            sums.append(float(own.double().sum()))
            if not torch.isfinite(logs).all():
                raise EvaluationError("the model's logits are not finite")
        return sums

    def generate(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Returns each greedy completion, cut before the first of its stop texts.

        Raises:
            EvaluationError: the logits are not finite.
        """
        found: dict[GenerationRequest, str] = {}
        alike: dict[Any, list[GenerationRequest]] = {}
        for request in dict.fromkeys(requests):
            alike.setdefault((request.max_new_tokens, request.stop, _shapes(request)), []).append(request)
        for same in alike.values():
            found |= self._budget.run(same, self._completions)
        self._forget()
        return [found[request] for request in requests]

    def _forget(self) -> None:
        """Removes what Qwen's models keep of the last prompt's positions, which would move those of plain text."""
        for module in self._module.modules():
            if getattr(module, "rope_deltas", None) is not None:
                module.rope_deltas = None

    def _completions(self, batch: Sequence[GenerationRequest]) -> list[str]:
        """Returns the completions of prompts whose images fit into one batch, see `_shapes`."""
        from transformers import GenerationConfig, LogitsProcessorList

        first = batch[0]
        make: Any = GenerationConfig
        settings = make(
            do_sample=False,
            max_new_tokens=first.max_new_tokens,
            eos_token_id=self._stop_ids or None,
            pad_token_id=self._stop_ids[0] if self._stop_ids else 0,
            stop_strings=list(first.stop) or None,
        )
        inputs = self._inputs(batch)
        whole = self._module.generate(
            **inputs,
            generation_config=settings,
            tokenizer=self._tokenizer if first.stop else None,
            logits_processor=LogitsProcessorList([_refuse_infinite]),
        )
        texts = []
        for row in whole[:, inputs["input_ids"].shape[1] :].tolist():
            # What follows the token that ends a completion is padding.
            end = next((index for index, token in enumerate(row) if token in self._stop_ids), len(row))
            self.tokens += TokenCounts(new=min(end + 1, len(row)))
            text = str(self._tokenizer.decode(row[:end], skip_special_tokens=True))
            texts.append(text[: min((text.index(one) for one in first.stop if one in text), default=len(text))])
        self.tokens += TokenCounts(prompt=sum(len(request.prompt) for request in batch))
        return texts

    def _inputs(self, batch: Sequence[LikelihoodRequest | GenerationRequest]) -> dict[str, Tensor]:
        """Returns the module's inputs for prompts, padded on the left."""
        device, dtype = self._module.device, self._module.dtype
        longest = max(len(request.prompt) for request in batch)
        columns: dict[str, list[Tensor]] = {}
        for request in batch:
            ids = torch.tensor([request.prompt])
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            given |= request.images.inputs if request.images else {}
            for name, value in given.items():
                # What has a number for each token of the prompt is padded with it.
                missing = longest - ids.shape[1] if value.shape == ids.shape else 0
                columns.setdefault(name, []).append(nn.functional.pad(value, (missing, 0)) if missing else value)
        joined = {name: torch.cat(values) for name, values in columns.items()}
        return {name: one.to(device, dtype if one.is_floating_point() else one.dtype) for name, one in joined.items()}


def _shapes(request: GenerationRequest) -> tuple[Any, ...]:
    """Returns what must be equal for two prompts' images to be in one batch."""
    images = request.images.inputs if request.images else {}
    tokens = (1, len(request.prompt))
    return tuple((name, None if one.shape == tokens else tuple(one.shape[1:])) for name, one in sorted(images.items()))


def _refuse_infinite(_: Tensor, scores: Tensor) -> Tensor:
    if not torch.isfinite(scores).all():
        raise EvaluationError("the model's logits are not finite")
    return scores
