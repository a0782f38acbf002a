"""What a model is asked, what answers it, and what makes models of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from evomerge.merge import Plan


@dataclass(frozen=True)
class Images:
    """What the model's processor makes of a prompt's images.

    Attributes:
        key: equal for equal inputs.
        inputs: the model's further inputs by name: float pixels, and what describes each token of the prompt,
            (1, tokens of the prompt).
    """

    key: tuple[str, ...]
    inputs: Mapping[str, Tensor] = field(compare=False, repr=False)


@dataclass(frozen=True)
class LikelihoodRequest:
    """How likely is this continuation?

    Attributes:
        prompt: token ids of the prompt, at least one.
        target: token ids of the continuation, at least one.
        images: those of the prompt, if it has any.
    """

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    images: Images | None = None

    @property
    def length(self) -> int:
        """The tokens of prompt and target."""
        return len(self.prompt) + len(self.target)

    @property
    def logits(self) -> int:
        """The positions whose logits are needed at the same time."""
        return len(self.target)


@dataclass(frozen=True)
class GenerationRequest:
    """What comes next?

    Attributes:
        prompt: token ids of the prompt, at least one.
        max_new_tokens: the most tokens that are generated, at least 1.
        stop: texts that end a completion and are not part of it.
        images: those of the prompt, if it has any.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    images: Images | None = None

    @property
    def length(self) -> int:
        """The most tokens that prompt and completion have together."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def logits(self) -> int:
        """The positions whose logits are needed at the same time."""
        return 1


@dataclass(frozen=True)
class TokenCounts:
    """How much a model ran; padding is not counted.

    Attributes:
        prompt: tokens that the model read: a prompt, and for a likelihood all of the target but its last token.
        new: tokens that were generated, including those that end a completion.
    """

    prompt: int = 0
    new: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.prompt + other.prompt, self.new + other.new)

    def __sub__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.prompt - other.prompt, self.new - other.new)


class LanguageModel(Protocol):
    """A model that answers requests. Equal requests are run once; answers come in the order of the requests."""

    def loglikelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Returns the natural logarithm of the likelihood of each target given its prompt.

        Raises:
            EvaluationError: the logits are not finite, or a single request does not fit in memory.
        """

    def generate(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Returns each greedy completion, cut before the first of its stop texts.

        Raises:
            EvaluationError: the logits are not finite, or a single request does not fit in memory.
        """

    @property
    def tokens(self) -> TokenCounts:
        """All tokens that were run so far."""


class Runtime(Protocol):
    """Makes models of plans, all with the same tokenizer, so that every candidate sees the same tokens.

    Attributes:
        tokenizer: transformers' tokenizer of the models.
        max_length: the most tokens of a sequence; None where there is no limit.
        vocabulary_size: the token ids that the models know, from 0.
    """

    tokenizer: Any
    max_length: int | None
    vocabulary_size: int

    def processor(self) -> Any:
        """Returns transformers' processor of the models' images, with the runtime's tokenizer.

        Raises:
            CheckpointError: the models take no images, or their processor cannot be loaded.
        """

    def load(self, plan: Plan) -> LanguageModel:
        """Returns the plan's model. It replaces the models that were returned before.

        Raises:
            MergeError: the plan's weights cannot be merged.
            ArchitectureError: the plan's model cannot be run.
        """
