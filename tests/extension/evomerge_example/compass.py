from collections.abc import Mapping

from evomerge.recipe import SearchSettings
from evomerge.search import Cube, Generational, Genome


class Compass(Generational[Genome]):
    """Steps up and down in each number; from the best point again, with half the step where none was better."""

    def __init__(self, space: Cube, settings: SearchSettings) -> None:
        super().__init__()
        self._best: Genome = tuple(space.start.tolist())
        self._score: float | None = None
        self._step = settings.sigma or 0.25

    def _next(self) -> list[Genome]:
        around = [] if self._score is not None else [self._best]
        for i, gene in enumerate(self._best):
            for moved in (gene - self._step, gene + self._step):
                around.append((*self._best[:i], min(max(moved, 0.0), 1.0), *self._best[i + 1 :]))
        return around

    def _learn_generation(self, told: Mapping[int, tuple[Genome, float | None]]) -> None:
        scored = [(score, genome) for genome, score in told.values() if score is not None]
        score, genome = max(scored, default=(None, self._best))
        if score is not None and (self._score is None or score > self._score):
            self._score, self._best = score, genome
        else:
            self._step /= 2
