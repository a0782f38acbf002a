"""`Outcome`: the result of evaluating one candidate or model, in the one form that optimizers and the record share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

ItemKey = tuple[str, int]
"""A search item: its task, and its index in the task's search split."""


class State(StrEnum):
    """How far an evaluation got."""

    COMPLETE = "complete"
    """Every item was scored."""
    PARTIAL = "partial"
    """Some items were scored."""
    FAILED = "failed"
    """No model could be built or scored; `Outcome.error` says why."""


@dataclass(frozen=True)
class Outcome:
    """What one evaluation gave, and what it cost.

    Attributes:
        state: how far it got.
        objectives: what is maximized, the main one first; empty where it failed, or before the objective is known.
        items: for each task, one score an item; None for an item that was not scored.
        seconds: for ``build``, ``evaluate`` and ``other`` (the rest of the evaluation).
        prompt_tokens: tokens that the model read.
        new_tokens: tokens that it wrote.
        error: why it failed; None where it did not.
        standard_error: of the objective as an estimate of that on all items; 0 where all were scored.
        completions: what the model wrote, for each task that asks for text, one an item; not part of `as_data`.
    """

    state: State
    objectives: tuple[float, ...] = ()
    items: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None
    standard_error: float = 0.0
    completions: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    @property
    def score(self) -> float | None:
        """The first objective; None if there is none."""
        return self.objectives[0] if self.objectives else None

    @property
    def scored(self) -> dict[str, list[float]]:
        """The scores of each task's scored items, for tasks that have any."""
        found = {task: [score for score in scores if score is not None] for task, scores in self.items.items()}
        return {task: scores for task, scores in found.items() if scores}

    @property
    def means(self) -> dict[str, float]:
        """The mean over the scored items of each task that has any."""
        return {task: math.fsum(scores) / len(scores) for task, scores in self.scored.items()}

    def missing(self, items: Iterable[ItemKey]) -> tuple[ItemKey, ...]:
        """Returns those of `items` that were not scored."""
        return tuple((task, index) for task, index in items if self.items[task][index] is None)

    def on(self, items: Iterable[ItemKey]) -> Outcome:
        """Returns the outcome with the scores on `items` alone, and without an objective."""
        wanted = set(items)
        kept = {
            task: tuple(score if (task, index) in wanted else None for index, score in enumerate(scores))
            for task, scores in self.items.items()
        }
        return replace(self, state=_state(kept), items=kept, objectives=(), standard_error=0.0)

    def joined(self, other: Outcome) -> Outcome:
        """Returns the outcome with the scores of another one of the same model too, and without an objective."""
        items = {
            task: tuple(more if one is None else one for one, more in zip(scores, other.items[task], strict=True))
            for task, scores in self.items.items()
        }
        return replace(self, state=_state(items), items=items, objectives=(), standard_error=0.0)

    def as_data(self) -> dict[str, Any]:
        """Returns the outcome as JSON data; `from_data` restores it, every number to the last bit."""
        return {name: value for name, value in asdict(self).items() if name != "completions"}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Outcome:
        """Returns the outcome that `as_data` turned into `data`; other keys are ignored."""
        own = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        items = {task: tuple(scores) for task, scores in own["items"].items()}
        return cls(**{**own, "state": State(own["state"]), "objectives": tuple(own["objectives"]), "items": items})


def _state(items: Mapping[str, tuple[float | None, ...]]) -> State:
    return State.PARTIAL if any(None in scores for scores in items.values()) else State.COMPLETE
