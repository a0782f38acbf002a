"""`Study`: ask, load, evaluate, record, tell; and resume after a kill by telling the record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError, StudyError
from evomerge.merge import compute_device
from evomerge.recipe import Recipe
from evomerge.runtime import StackRuntime, compute_dtype
from evomerge.search import NumberSpace, Optimizer, Outcome, Proposal, State, optimizers_for
from evomerge.study.completions import keep_completions
from evomerge.study.estimates import Estimator
from evomerge.study.identity import changes, environment, identity
from evomerge.study.objective import Objective, Scale, scales_of
from evomerge.study.observer import Observer
from evomerge.study.recipe_files import RECIPE, refuse_overwriting, write_best, write_recipe
from evomerge.study.record import Record
from evomerge.study.scoring import Scoring
from evomerge.study.search_spec import SearchSpec
from evomerge.study.spaces import sharing_order
from evomerge.study.standings import FINALISTS, best_of, ranked
from evomerge.study.trial import Trial, recipe_key
from evomerge.tasks import Split

MOST_FAILURES = 12
"""A search whose first candidates all fail stops after this many: the cause is not their numbers."""

MOST_AT_ONCE = 256
"""How many stacks are sorted at a time, so that those with the same first layers follow each other."""


class Study:
    """One search in one folder; starting it again resumes it.

    Args:
        spec: what is searched.
        folder: the run's folder.
        device: see `LiveModel`.
        observer: is notified of everything that happens.
        storage: the URL of the database for the record, see `Record`.
        name: the study's name there, see `Record`.

    Raises:
        StudyError: the record is in use, damaged, or that of another search.
    """

    def __init__(
        self,
        spec: SearchSpec,
        folder: Path,
        device: str,
        observer: Observer,
        storage: str | None = None,
        name: str | None = None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.observer = observer
        self._device = device
        self._noted = False
        refuse_overwriting(folder)
        self.record = Record(folder, storage, name)
        try:
            self._check_identity()
        except BaseException:
            self.record.close()
            raise
        self.scoring = Scoring(spec, device, self._dtype, observer, lambda: self.scored)
        self.baselines: dict[str, Outcome] = {}
        self._known: dict[str, Outcome] = {}  # by `Trial.key`: all that was scored
        self._best: tuple[int, float | None] | None = None  # the trial in best.yaml, and its score there
        self.objective = Objective(spec.task_weights)
        self._estimator: Estimator | None = None

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.record.close()

    def _check_identity(self) -> None:
        """Refuses the record of another search; records the identity of a new one."""
        recorded = self.record.attribute("identity")
        if recorded is not None and not self.record.scored:
            # It failed before it had scored anything: nothing can be mixed, however it was repaired.
            self.record.clear()
            recorded = None
        device = compute_device(self._device)
        began = self.record.attribute("environment")
        wanted = self.spec.compute_dtype
        if wanted == "auto" and began:
            # As the search began, even if a measurement would choose differently now.
            wanted = str(began["computes in"]).removeprefix("torch.")
        self._dtype = compute_dtype(self.spec.first.layout, device, wanted)
        kept = self.record.attribute("digests") or {}
        digests = dict(kept)
        now, here = identity(self.spec, digests), environment(device, self._dtype)
        path = self.folder / RECIPE
        if recorded is None:
            self.record.set_attribute("environment", here)
            self.record.set_attribute("identity", now)
        elif recorded != now:
            raise StudyError(
                f"{self.record.title}: holds a search that was started with other settings or files:"
                f" {changes(recorded, now)}; to resume it, restore them; to start a new search, use another --run-dir"
            )
        elif began != here:
            self._note_environment()
        if digests != kept:
            self.record.set_attribute("digests", digests)
        self.record.bind()
        if recorded is None or not path.exists():
            write_recipe(self.folder, self.spec.recipe.to_yaml())

    def _note_environment(self) -> None:
        if not self._noted:
            self._noted = True
            self.observer.note(
                "resuming in a different environment: recorded scores are kept, and new ones may differ in their last"
                " digits"
            )

    def run(self) -> None:
        """Scores the parents and their mean, then searches until the recipe's number of evaluations is reached.

        After a search on subsets of the items, the best merges are scored on all of them.

        Raises:
            StudyError: the record cannot be written, or every parent or candidate fails.
            CheckpointError: a model cannot be read, or holds NaN.
            TaskError: a task cannot be used with this tokenizer.
        """
        spec = self.spec
        if self.record.attribute("holdout") is None:
            self.scoring.open()  # now, so that its errors come before anything is scored
        self._run_baselines()
        mean = self._new_mean()
        self._choose_objective(mean[1] if mean else None)
        for trial in self.record.trials:
            self._learn(trial)
            self.observer.trial(trial, fresh=False)
        self._note_best()
        if mean:
            self._add(None, mean[0], mean[1])
            self._note_best()
        optimizer = optimizers_for(spec.recipe)[spec.settings.optimizer](spec.space, spec.settings)
        self._run_candidates(optimizer)
        if spec.subsets:
            self._run_finalists(optimizer)

    def _run_baselines(self) -> None:
        spec = self.spec
        for name in (*spec.parents, *((spec.base,) if spec.base else ())):
            outcome = self.on_record(f"baseline:{name}", spec.parent_recipe(name), name, "search")
            self.baselines[name] = outcome
            self.observer.baseline(name, outcome, None)
        errors = {outcome.error for outcome in self.baselines.values()}
        if len(errors) == 1 and None not in errors:
            raise StudyError(f"none of the models to merge could be scored: {errors.pop()}")

    def _choose_objective(self, mean: Outcome | None) -> None:
        """Sets the objective, whose scales follow from the models and their mean, and recorded once.

        Args:
            mean: the mean's outcome if it is not on record yet.
        """
        spec, scales = self.spec, self.record.attribute("scales")
        if spec.settings.normalize and scales is None:
            means = [mean] if mean else [trial.outcome for trial in self.record.trials if not trial.proposal]
            models = [model for model in (*self.baselines.values(), *means) if model.scored]
            if not models:
                raise StudyError("normalize is true, but no parent could be scored; see the errors above")
            scales = spec.scales or scales_of(list(spec.task_weights), models)
            self.record.set_attribute("scales", scales)
        self.objective = Objective(spec.task_weights, {task: Scale(*scale) for task, scale in (scales or {}).items()})
        for name, outcome in self.baselines.items():
            self.observer.baseline(name, outcome, self.value(outcome))
            # The first stacks of a search are its models.
            self._known[recipe_key(spec.parent_recipe(name).as_data())] = outcome
        if spec.subsets:
            sizes = {task.name: len(task.items("search")) for task in spec.tasks}
            self._estimator = Estimator(self.objective, sizes, spec.subsets.settings)
            for outcome in self.baselines.values():
                self._estimator.learn(outcome, -1)

    def _learn(self, trial: Trial) -> None:
        """Takes what a trial scored, for later ones."""
        known = self._known.get(trial.key)
        if known is None or not known.items:
            self._known[trial.key] = trial.outcome
        elif trial.outcome.items:
            self._known[trial.key] = trial.outcome.joined(known)
        if self._estimator and not trial.final:
            proposal = trial.proposal
            self._estimator.learn(trial.outcome, *((proposal.generation, proposal.genome) if proposal else (-1,)))

    def _new_mean(self) -> tuple[Recipe, Outcome] | None:
        """Returns the parents' mean and its outcome; None if it is on record, or they have none."""
        if self.record.trials or self.spec.stacks:
            return None
        recipe = self.spec.mean_recipe().merge_only()
        try:
            self.scoring.planner.plan(recipe)
        except EvomergeError:
            # Parents of different depths have no mean.
            return None
        return recipe, self.scoring.outcome(recipe, "trial 0", "search")

    def _run_candidates(self, optimizer: Optimizer[Any]) -> None:
        space, settings, subsets = self.spec.space, self.spec.settings, self.spec.subsets
        for trial in self.candidates:
            assert trial.proposal
            proposal = replace(trial.proposal, genome=space.from_json(trial.proposal.genome))
            if not optimizer.tell(proposal, trial.outcome):
                # Another processor or library computes other last bits: the recorded genome is the one that was scored.
                self._note_environment()
        self._refuse_hopeless()
        while len(self.candidates) < settings.evaluations:
            done = len(self.candidates)
            most = 1
            if (self.spec.stacks or subsets) and not optimizer.sequential:
                most = min(settings.evaluations - done, MOST_AT_ONCE - done % MOST_AT_ONCE)
            proposals = optimizer.ask(most)
            if not proposals:
                self.observer.note(f"all {done} stacks that the recipe allows are evaluated: the search ends early")
                return
            for proposal in self._ordered(proposals):
                optimizer.tell(proposal, self._evaluated(proposal, space.decode(proposal.genome)).outcome)
                self._refuse_hopeless()
                if not subsets:
                    self._note_best()
            if subsets:
                self._note_best()

    def _run_finalists(self, optimizer: Optimizer[Any]) -> None:
        """Scores the best candidates on all items; and what the optimizer takes to be best, which may be none of them.

        Which ones follows from the candidates alone, not from those that were scored before a kill.
        """
        space, candidates = self.spec.space, self.candidates
        found: list[tuple[Proposal[Any], Recipe]] = []
        favourite = optimizer.favourite()
        if favourite is not None and candidates:
            last = candidates[-1].proposal
            assert last
            found.append((Proposal(len(candidates), favourite, last.generation), space.decode(favourite)))
        for trial in ranked([trial for trial in self.record.trials if not trial.final]):
            if trial.proposal:
                proposal = replace(trial.proposal, genome=space.from_json(trial.proposal.genome))
                found.append((proposal, Recipe.model_validate(trial.recipe)))
        finalists = {recipe_key(recipe.merge_only().as_data()): (proposal, recipe) for proposal, recipe in found[::-1]}
        since = len(self.record.trials) - next(i for i, t in enumerate(reversed(self.record.trials)) if not t.final)
        done = {trial.key for trial in self.record.trials[since:]}
        for key, (proposal, recipe) in list(finalists.items())[::-1][:FINALISTS]:
            if key not in done:
                self._evaluated(proposal, recipe, final=True)
        self._note_best()

    def _ordered(self, proposals: list[Proposal[Any]]) -> Iterator[Proposal[Any]]:
        """Yields proposals with the items to score them on, those that share the most work one after another."""
        subsets = self.spec.subsets
        if subsets is None:
            yield from self._sorted(proposals)
            return
        # By generation: estimates use the scores of earlier ones.
        for generation in sorted({proposal.generation for proposal in proposals}):
            items = subsets(generation)
            own = [replace(proposal, items=items) for proposal in proposals if proposal.generation == generation]
            yield from self._sorted(own)

    def _sorted(self, proposals: list[Proposal[Any]]) -> list[Proposal[Any]]:
        """Returns proposals in the order in which they share the most work, and prepares the runtime for it."""
        if self.spec.stacks is None:
            return proposals
        found = sharing_order(self.spec.space, proposals, self.scoring.planner)
        plans = {recipe_key(made.recipe.as_data()): made for _, made in found if made}
        runtime, _ = self.scoring.open()
        assert isinstance(runtime, StackRuntime)
        runtime.expect([made for key, made in plans.items() if key not in self._known])
        return [proposal for proposal, _ in found]

    def _note_best(self) -> None:
        """Writes the best merge so far to best.yaml, if it is another one."""
        best = self.best()
        if best is not None and (best.number, best.objective) != self._best:
            self._best = best.number, best.objective
            write_best(self.folder, best, self.spec.recipe.folders, self.spec.made)
            self.observer.best(best)

    @property
    def candidates(self) -> list[Trial]:
        """The candidates on record."""
        return [trial for trial in self.record.trials if trial.kind == "candidate"]

    def _refuse_hopeless(self) -> None:
        trials = self.candidates
        if len(trials) >= MOST_FAILURES and all(trial.objective is None for trial in trials):
            error = trials[-1].outcome.error
            raise StudyError(f"all of the first {MOST_FAILURES} candidates failed, the last with: {error}")

    def _evaluated(self, proposal: Proposal[Any], recipe: Recipe, *, final: bool = False) -> Trial:
        """Returns the recorded trial of a candidate, of which only those items are scored that are not known."""
        merge = recipe.merge_only()
        known = self._known.get(recipe_key(merge.as_data()))
        items = None if final else proposal.items
        outcome = self.scoring.joined(merge, f"trial {len(self.record.trials)}", known, items)
        return self._add(proposal, merge, outcome, final=final)

    def _add(self, proposal: Proposal[Any] | None, recipe: Recipe, outcome: Outcome, *, final: bool = False) -> Trial:
        """Records a merge that was scored, with its objective, and returns the trial."""
        space = self.spec.space
        recorded = proposal
        parameters = {}
        if proposal:
            recorded = Proposal(proposal.id, space.to_json(proposal.genome), proposal.generation)
            if isinstance(space, NumberSpace):
                parameters = space.parameters(proposal.genome)
        trial = Trial(len(self.record.trials), recorded, recipe.as_data(), self._judged(outcome, recorded), final)
        self.record.add(trial, parameters)
        self._learn(trial)
        self.observer.trial(trial, fresh=True)
        return trial

    def _judged(self, outcome: Outcome, proposal: Proposal[Any] | None) -> Outcome:
        """Returns an outcome with its objective, estimated if not all items were scored."""
        if outcome.state is State.PARTIAL:
            assert self._estimator
            assert proposal
            value, error = self._estimator.estimate(outcome, proposal.generation, proposal.genome)
            return replace(outcome, objectives=(value,), standard_error=error)
        whole = self.value(outcome)
        return replace(outcome, objectives=() if whole is None else (whole,))

    def on_record(self, key: str, recipe: Recipe, what: str, split: Split) -> Outcome:
        """Returns the outcome recorded under `key`; evaluates the recipe and records it if there is none."""
        recorded = self.record.attribute(key)
        if recorded:
            return Outcome.from_data(recorded)
        outcome = self.scoring.outcome(recipe, what, split)
        if split == "holdout" and outcome.completions:
            keep_completions(self.folder, what, outcome.completions)
        self.record.set_attribute(key, outcome.as_data())
        return outcome

    def value(self, outcome: Outcome) -> float | None:
        """Returns the objective of an outcome; None if it failed."""
        return self.objective.value(outcome)

    @property
    def scored(self) -> list[Trial]:
        """The merges on record that were scored."""
        return [trial for trial in self.record.trials if trial.objective is not None]

    def ranked(self) -> list[Trial]:
        """Returns the scored merges, best first, see `evomerge.study.standings`."""
        return ranked(self.record.trials)

    def best(self) -> Trial | None:
        """Returns the best merge so far; None if none was scored."""
        return best_of(self.record.trials)
