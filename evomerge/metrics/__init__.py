"""Metrics: scores of single answers, higher is better.

`METRICS` has those that compare what a model wrote with the right answer. A task file names one, ``metric: NAME``, or
with an option, ``metric: {NAME: OPTION}``. Log-likelihoods are scored by `accuracy` and by the evaluator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from evomerge.metrics.choices import accuracy, choice_length
from evomerge.metrics.json_values import check_json, check_keys, json_match
from evomerge.metrics.languages import check_language_code, is_written_in
from evomerge.metrics.numbers import check_ends_in_number, check_rule, last_number, number_in
from evomerge.metrics.texts import PATTERN_SECONDS, check_pattern, contains, exact_match, regex_match
from evomerge.metrics.words import check_language, check_words, f1, rouge_l
from evomerge.plugins import Table

__all__ = [
    "METRICS",
    "PATTERN_SECONDS",
    "Metric",
    "accuracy",
    "check_language_code",
    "choice_length",
    "contains",
    "exact_match",
    "f1",
    "is_written_in",
    "json_match",
    "last_number",
    "number_in",
    "regex_match",
    "rouge_l",
]


def _check_no_option(option: Any) -> None:
    if option is not None:
        raise ValueError("takes no option; write its name alone")


def _any_target(target: str, option: Any) -> None:
    """Refuses no target."""


@dataclass(frozen=True)
class Metric:
    """How a completion is compared with the right answer.

    Attributes:
        compare: returns the score, from 0.0 (wrong) to 1.0 (right), of a completion for a target, both text; where a
            task file gives an option, it is the third argument.
        check_option: raises ValueError if the option cannot be used; it is None where a task file gives none.
        check_target: raises ValueError if no completion can be right for a target; also takes the option.
    """

    compare: Callable[..., float]
    check_option: Callable[[Any], None] = _check_no_option
    check_target: Callable[[str, Any], None] = _any_target

    def score(self, completion: str, target: str, option: Any = None) -> float:
        """Returns the score of a completion, from 0.0 to 1.0."""
        return self.compare(completion, target) if option is None else self.compare(completion, target, option)


_METRICS = {
    "exact_match": Metric(exact_match),
    "contains": Metric(contains),
    "regex": Metric(regex_match, check_pattern),
    "last_number": Metric(last_number, check_rule, check_ends_in_number),
    "json": Metric(json_match, check_keys, check_json),
    "f1": Metric(f1, check_language, partial(check_words, f1)),
    "rouge_l": Metric(rouge_l, check_language, partial(check_words, rouge_l)),
}

METRICS: Table[Metric] = Table(
    "evomerge.metrics", "metric of completions", _METRICS, valid=lambda found: isinstance(found, Metric)
)
"""What a task of type ``generate`` may name as its metric: evomerge's own metrics, and those of other packages."""
