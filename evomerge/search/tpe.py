"""TPE: the tree-structured Parzen estimator, Optuna's, by ask and tell."""

from __future__ import annotations

import warnings

import numpy as np
import optuna

from evomerge.recipe import SearchSettings
from evomerge.search.optimizer import BLOCK, Drawing, Proposal
from evomerge.search.outcome import Outcome
from evomerge.search.space import Cube, Genome


class Tpe(Drawing[Genome]):
    """Optuna's multivariate TPE sampler, ten genomes to a generation; the first genome is the space's start.

    Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", §4; Watanabe 2023,
    https://arxiv.org/abs/2304.11127.

    Args:
        space: what is searched.
        settings: `seed` is used.
    """

    sequential = True

    def __init__(self, space: Cube, settings: SearchSettings) -> None:
        super().__init__()
        self._seed = settings.seed
        self._start: Genome = tuple(space.start.tolist())
        unit = optuna.distributions.FloatDistribution(0, 1)
        self._ranges: dict[str, optuna.distributions.BaseDistribution] = {f"{i}": unit for i in range(len(space))}
        # In memory: the run's record belongs to `study`, and this study is rebuilt from it.
        self._study = optuna.create_study(direction="maximize")

    def _draw(self) -> tuple[Genome, int]:
        if self._count == 0:
            return self._start, 0
        # A seed for each proposal: what is drawn depends on what was told, not on how many were asked for at a time.
        seed = int(np.random.SeedSequence([self._seed, self._count]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        trial = self._study.ask()
        genome = tuple(trial.suggest_float(name, 0, 1) for name in self._ranges)
        # What was told is added in its own order, so that a replay gives the same study.
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return genome, self._count // BLOCK

    def _learn(self, proposal: Proposal[Genome], outcome: Outcome) -> None:
        if outcome.score is not None:
            params = dict(zip(self._ranges, proposal.genome, strict=True))
            self._study.add_trial(
                optuna.trial.create_trial(value=outcome.score, params=params, distributions=self._ranges)
            )
