"""`Trial`: one recorded evaluation of a merge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.search import ItemKey, Outcome, Proposal

MEAN = "mean"
"""The name of the parents' plain mean."""


@dataclass(frozen=True)
class Trial:
    """One recorded evaluation of a merge.

    Attributes:
        number: counts from 0, in the order of the record.
        proposal: the candidate, its genome as JSON data; None for the parents' mean.
        recipe: what was merged, as JSON data.
        outcome: the scores and the cost.
        final: whether it was scored on all search items at the end, after a search on subsets of them; the optimizer
            does not learn of it.
    """

    number: int
    proposal: Proposal[Any] | None
    recipe: Mapping[str, Any]
    outcome: Outcome
    final: bool = False

    @property
    def kind(self) -> Literal["mean", "candidate", "final"]:
        """Whether it is the parents' ``mean``, a ``candidate``, or a candidate scored on all items at the end."""
        return "final" if self.final else "mean" if self.proposal is None else "candidate"

    @property
    def name(self) -> str:
        """``mean``, or ``trial N``."""
        return f"trial {self.number}" if self.proposal else MEAN

    @property
    def objective(self) -> float | None:
        """The score, higher is better; None if it failed. An estimate where not all items were scored."""
        return self.outcome.score

    @property
    def drawn(self) -> int:
        """Sorts trials in the order in which they were drawn.

        That is not the order of the record, in which stacks are sorted: it must not choose between equal ones.
        """
        return self.proposal.id if self.proposal else -1

    @property
    def key(self) -> str:
        """Text that is equal for trials of equal recipes."""
        return recipe_key(self.recipe)


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Returns text that is equal for equal recipes' data."""
    return json.dumps(recipe, sort_keys=True)


def items_scored(trials: Iterable[Trial]) -> int:
    """Returns how many scores of an item it took: none is computed twice for the same merge."""
    found: dict[str, set[ItemKey]] = {}
    for trial in trials:
        if trial.proposal:
            scored = found.setdefault(trial.key, set())
            scored |= {
                (task, index)
                for task, scores in trial.outcome.items.items()
                for index, score in enumerate(scores)
                if score is not None
            }
    return sum(map(len, found.values()))
