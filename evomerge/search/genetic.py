"""A genetic search for stacks of layers: tournaments, elites, crossover, and mutations by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from evomerge.recipe import SearchSettings
from evomerge.search.optimizer import Generational, Proposal
from evomerge.search.outcome import Outcome
from evomerge.search.stack_operators import MUTATIONS, block_repeats, crossed, depth_wise
from evomerge.search.stack_space import Stack, StackSpace

DEFAULT_POPULATION = 32

ELITE = 0.5
"""The part of a population that the best stacks so far make up; the others are the last generation's."""

TOURNAMENT = 5
"""How many stacks compete to become a parent."""

CROSSOVER = 0.6
"""How often a new stack has two parents."""

ATTEMPTS = 50
"""How many stacks in a row that were proposed before are drawn, until a random one takes their place."""


class Genetic(Generational[Stack]):
    """A genetic search with elites; no new stack is proposed twice.

    The first generation has every model, stacks of one model's first layers and another's last, and models with a block
    of layers repeated. Each later one is drawn when all of the previous one is told: parents win tournaments in the
    population, some are crossed, and all children are mutated. Eiben and Smith 2015, "Introduction to Evolutionary
    Computing", §5. When every stack has been proposed, `ask` returns none.
    With subsets of items, elites are proposed again in the next generation, and compete on its items alone.

    Args:
        space: what is searched.
        settings: `seed`, `population`, `mutations` and `items` are used.
    """

    def __init__(self, space: StackSpace, settings: SearchSettings) -> None:
        super().__init__()
        self._space = space
        self._rng = np.random.default_rng(settings.seed)
        self._size = settings.population or DEFAULT_POPULATION
        self._noisy = settings.items != "all"
        self._rates = {name: float(getattr(settings.mutations, name)) for name in MUTATIONS}
        self._rest = space.all_stacks()
        self._seen: set[Stack] = set()
        self._population: list[tuple[float, int, Stack]] = []  # score, id, stack; the best first

    def _next(self) -> list[Stack]:
        if self._generation < 0:
            return self._new(self._first())
        children = self._new(self._children())
        return [*self._elites(), *children] if self._noisy and children else children

    def _elites(self) -> list[Stack]:
        return [stack for _, _, stack in self._population[: round(ELITE * self._size)]]

    def _learn(self, proposal: Proposal[Stack], outcome: Outcome) -> None:
        self._seen.add(proposal.genome)
        super()._learn(proposal, outcome)

    def _learn_generation(self, told: Mapping[int, tuple[Stack, float | None]]) -> None:
        """Makes the next population of the elites and the generation."""
        scored = [(score, id, stack) for id, (stack, score) in told.items() if score is not None]
        # Of equal ones the younger goes first: a search on a plateau moves.
        earlier = [] if self._noisy else self._population  # whose scores are not comparable with the generation's
        ranked = sorted([*earlier, *scored], key=lambda one: one[:2], reverse=True)
        elite = ranked[: round(ELITE * self._size)]
        others = [one for one in sorted(scored, key=lambda one: one[:2], reverse=True) if one not in elite]
        self._population = [*elite, *others][: self._size]

    def _first(self) -> Iterator[Stack]:
        """Yields the stacks to begin with, and variations of them without end."""
        yield from self._space.parents
        plain, repeats = depth_wise(self._space), block_repeats(self._space)
        for found in (plain, repeats):
            room = (self._size - len(self._space.parents)) // 2
            yield from (found[i] for i in self._rng.permutation(len(found))[:room])
        started = [*self._space.parents, *plain, *repeats]
        while True:
            yield self._mutated(started[int(self._rng.integers(len(started)))])

    def _children(self) -> Iterator[Stack]:
        while self._population:
            child = self._winner()
            if self._rng.random() < CROSSOVER:
                child = crossed(self._space, child, self._winner(), self._rng)
            yield self._mutated(child)
        while True:  # all so far have failed
            yield self._space.sample(self._rng)

    def _winner(self) -> Stack:
        drawn = [self._population[int(i)] for i in self._rng.integers(len(self._population), size=TOURNAMENT)]
        return max(drawn, key=lambda one: one[:2])[2]

    def _mutated(self, stack: Stack) -> Stack:
        for name, mutation in MUTATIONS.items():
            if self._rng.random() < self._rates[name]:
                stack = mutation(self._space, stack, self._rng)
        return stack

    def _new(self, candidates: Iterable[Stack]) -> list[Stack]:
        """Returns a generation of stacks that were not proposed before; fewer, even none, where no more exist."""
        found: list[Stack] = []
        attempts = 0
        for candidate in candidates:
            stack: Stack | None = candidate
            if candidate in self._seen:
                attempts += 1
                if attempts < ATTEMPTS:
                    continue
                stack = self._unseen()
            if stack is None:
                break
            attempts = 0
            self._seen.add(stack)
            found.append(stack)
            if len(found) == self._size:
                break
        return found

    def _unseen(self) -> Stack | None:
        """Returns a stack that was not proposed before: a random one, or the next of all; None where there is none."""
        drawn = self._space.sample(self._rng)
        return drawn if drawn not in self._seen else next((one for one in self._rest if one not in self._seen), None)
