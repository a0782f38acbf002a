"""What every optimizer does: ask for candidates, be told how they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.search.space import Genome


@dataclass(frozen=True)
class Result:
    """How one candidate did.

    Attributes:
        genome: the candidate.
        score: the objective, higher is better; None where the candidate failed.
    """

    genome: Genome
    score: float | None


class Optimizer(Protocol):
    """A search by ask and tell; the same seed and the same results give the same candidates, bit for bit.

    Nothing of an optimizer is ever saved: a search that goes on makes a new one and replays the record.
    """

    def ask(self) -> list[Genome]:
        """Returns the next candidates, a generation; every one is told before the next is asked for."""
        ...

    def tell(self, results: Sequence[Result]) -> None:
        """Takes the results of the generation that was asked for last, in its order.

        A result's genome may differ from the one that was asked for there: what was scored counts.
        """
        ...
