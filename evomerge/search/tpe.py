"""TPE: the tree-structured Parzen estimator, Optuna's, by ask and tell."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna

from evomerge.recipe import SearchSettings
from evomerge.search.optimizer import Result
from evomerge.search.space import Genome, SearchSpace


class Tpe:
    """Optuna's multivariate TPE sampler, one genome a generation; the first is the space's start.

    Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", §4; Watanabe 2023,
    https://arxiv.org/abs/2304.11127.

    Args:
        space: what is searched.
        settings: `seed` is used.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings) -> None:
        self._names = [f"{i}" for i in range(len(space))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=settings.seed, multivariate=True)
        # Kept in memory alone: the run's record is the study's, and this one is rebuilt from it.
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._study.enqueue_trial(dict(zip(self._names, space.start.tolist(), strict=True)))

    def ask(self) -> list[Genome]:
        """Returns one genome."""
        self._trial = self._study.ask()
        self._asked = tuple(self._trial.suggest_float(name, 0, 1) for name in self._names)
        return [self._asked]

    def tell(self, results: Sequence[Result]) -> None:
        """Takes the result; a failure is told as one."""
        (result,) = results
        if result.score is None or result.genome != self._asked:
            self._study.tell(self._trial, state=optuna.trial.TrialState.FAIL)
            if result.score is not None:
                params = dict(zip(self._names, result.genome, strict=True))
                unit: optuna.distributions.BaseDistribution = optuna.distributions.FloatDistribution(0, 1)
                ranges = dict.fromkeys(self._names, unit)
                self._study.add_trial(
                    optuna.trial.create_trial(value=result.score, params=params, distributions=ranges)
                )
        else:
            self._study.tell(self._trial, result.score)
