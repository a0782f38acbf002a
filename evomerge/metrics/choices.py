"""Multiple choice: whether the right choice is the likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence


def accuracy(likelihoods: Sequence[float], answer: int) -> float:
    """Returns 1.0 if the choice `answer` alone is the likeliest, 1/k if it ties with others among k, else 0.0.

    A tie scores what picking one of its choices at random would on average: a model that cannot distinguish choices
    scores like guessing, in any order, and coarse logits neither gain nor lose by ties.

    Args:
        likelihoods: each choice's log-likelihood (nats), divided by a length or not.
        answer: the index of the right choice.
    """
    best = max(likelihoods)
    # Sums of float32 numbers: smaller differences depend on the batch that a choice was run in.
    tied = [math.isclose(value, best, rel_tol=1e-6) for value in likelihoods]
    return tied[answer] / sum(tied)


def choice_length(choice: str) -> int:
    """Returns the characters that ``accuracy_norm`` divides a choice's log-likelihood by, as lm-eval's ``acc_norm``.

    The white space that separates a choice from its prompt is not counted: lm-eval inserts it itself
    (``target_delimiter``) and counts the choice alone.
    """
    return len(choice) - choice[:1].isspace()
