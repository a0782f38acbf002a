"""`Optimizer`: ask for proposals, tell their outcomes in any order; and the bookkeeping that optimizers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from evomerge.search.outcome import ItemKey, Outcome

BLOCK = 10
"""Where an optimizer has no generations of its own, this many candidates are one."""

G = TypeVar("G")
"""A genome: one candidate in the form that an optimizer works on."""


@dataclass(frozen=True)
class Proposal(Generic[G]):
    """A candidate that an optimizer wants evaluated.

    Attributes:
        id: counts from 0 in the order in which candidates are drawn.
        genome: the candidate.
        generation: counts from 0; the candidates of one generation are compared with each other.
        items: the search items to score it on; None for all. Optimizers leave the choice to the study.
    """

    id: int
    genome: G
    generation: int
    items: tuple[ItemKey, ...] | None = None


class Optimizer(Protocol[G]):
    """A search by ask and tell; the same seed and the same outcomes give the same proposals, bit for bit.

    An optimizer is never saved. A resumed search tells a new one the recorded proposals and outcomes in the order in
    which they were first told; proposals that were drawn but never told are then returned first by `ask`.
    """

    @property
    def sequential(self) -> bool:
        """Whether every outcome should be told before the next proposal is asked for, so that all of them count."""
        ...

    def ask(self, n: int) -> list[Proposal[G]]:
        """Returns up to `n` proposals: fewer, or none, where outstanding outcomes must be told first."""
        ...

    def tell(self, proposal: Proposal[G], outcome: Outcome) -> bool:
        """Takes one outcome; failed and partial ones count too.

        Proposals may be told in any order. One that was not asked for is taken from a record: the optimizer draws up
        to its id, and where it drew another genome, the one that is told is the one that was scored.

        Returns:
            Whether the optimizer drew the same genome.

        Raises:
            ValueError: the proposal was told before, or cannot be drawn before others are told.
        """
        ...

    def favourite(self) -> G | None:
        """Returns the genome that is best in the optimizer's view, perhaps one not proposed; None if it has no view."""
        ...


class Drawing(ABC, Generic[G]):
    """An optimizer that draws one genome at a time; subclasses say how it draws and what it learns.

    Attributes:
        sequential: whether every outcome should be told before the next proposal is drawn.
    """

    sequential = False

    def __init__(self) -> None:
        self._count = 0
        self._open: dict[int, Proposal[G]] = {}  # drawn, not told
        self._waiting: dict[int, Proposal[G]] = {}  # drawn, neither handed out nor told

    @abstractmethod
    def _draw(self) -> tuple[G, int] | None:
        """Returns the genome with id `_count` and its generation; None where outcomes must be told first."""

    @abstractmethod
    def _learn(self, proposal: Proposal[G], outcome: Outcome) -> None:
        """Takes an outcome; the proposal's genome may differ from the one that was drawn."""

    def ask(self, n: int) -> list[Proposal[G]]:
        """See `Optimizer`."""
        while len(self._waiting) < n and self._advance():
            pass
        return [self._waiting.pop(id) for id in list(self._waiting)[:n]]

    def tell(self, proposal: Proposal[G], outcome: Outcome) -> bool:
        """See `Optimizer`."""
        while self._count <= proposal.id and self._advance():
            pass
        if proposal.id not in self._open:
            reason = "was told before" if proposal.id < self._count else "cannot be drawn before earlier ones are told"
            raise ValueError(f"proposal {proposal.id} {reason}")
        drawn = self._open.pop(proposal.id)
        self._waiting.pop(proposal.id, None)
        self._learn(proposal, outcome)
        return drawn.genome == proposal.genome

    def favourite(self) -> G | None:
        """See `Optimizer`."""
        return None

    def _advance(self) -> bool:
        """Draws one more proposal; returns whether there is one."""
        drawn = self._draw()
        if drawn is None:
            return False
        self._open[self._count] = self._waiting[self._count] = Proposal(self._count, *drawn)
        self._count += 1
        return True


class Generational(Drawing[G]):
    """An optimizer that draws a generation at a time: the next one when every outcome of the last is told."""

    def __init__(self) -> None:
        super().__init__()
        self._generation = -1
        self._genomes: Sequence[G] = ()
        self._drawn = 0  # of `_genomes`
        self._told: dict[int, tuple[G, float | None]] = {}  # of this generation, by id

    @abstractmethod
    def _next(self) -> Sequence[G]:
        """Returns the genomes of the next generation; none where there are no more."""

    @abstractmethod
    def _learn_generation(self, told: Mapping[int, tuple[G, float | None]]) -> None:
        """Takes a generation in the order of ids: each genome that was scored, and its score, None if it failed."""

    def _draw(self) -> tuple[G, int] | None:
        if len(self._told) == len(self._genomes):
            self._genomes, self._told, self._drawn = self._next(), {}, 0
            self._generation += 1
        if self._drawn == len(self._genomes):
            return None
        self._drawn += 1
        return self._genomes[self._drawn - 1], self._generation

    def _learn(self, proposal: Proposal[G], outcome: Outcome) -> None:
        self._told[proposal.id] = proposal.genome, outcome.score
        if len(self._told) == len(self._genomes):
            self._learn_generation(dict(sorted(self._told.items())))
