"""`Study`: ask, load, evaluate, record, tell; and resume after a kill by telling the record."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import (
    ArchitectureError,
    EvaluationError,
    EvomergeError,
    MergeError,
    RecipeError,
    StudyError,
    TaskError,
)
from evomerge.evaluation import Evaluator, Scores
from evomerge.merge import Planner, WeightStore, compute_device
from evomerge.recipe import Recipe
from evomerge.runtime import Runtime, StackRuntime, compute_dtype
from evomerge.search import NumberSpace, Outcome, Proposal, State, optimizers_for
from evomerge.study.completions import keep_completions
from evomerge.study.identity import changes, environment, identity
from evomerge.study.objective import Objective, Scale, scales_of
from evomerge.study.observer import Observer
from evomerge.study.recipe_files import RECIPE, refuse_overwriting, write_best, write_recipe
from evomerge.study.record import Record, Trial, recipe_key
from evomerge.study.search_spec import SearchSpec
from evomerge.study.spaces import sharing_order
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
        self._planner = Planner(spec.checkpoints)
        self._scoring: tuple[Runtime, Evaluator] | None = None
        self.baselines: dict[str, Outcome] = {}
        self._known: dict[str, Outcome] = {}  # by `Trial.key`
        self.objective = Objective(spec.task_weights)

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

    @property
    def scoring(self) -> tuple[Runtime, Evaluator]:
        """The runtime and the evaluator; made, and the models loaded, on first use."""
        if self._scoring is None:
            spec = self.spec
            device = compute_device(self._device)
            total = spec.source_bytes
            tier = spec.tier(device, self._dtype)
            store = WeightStore(spec.checkpoints, tier, device)
            scoring = spec.scoring(store, self._device, self._dtype)
            done = 0

            def loaded(size: int) -> None:
                nonlocal done
                done += size
                self.observer.loading(done, total)

            if spec.stacks is None:
                store.load(loaded)
            for model in spec.parents if spec.stacks else ():
                # The runtime keeps the models of stacks.
                spec.load_parent(scoring[0], model)
                loaded(spec.checkpoints[model].nbytes)
            self._scoring = scoring
        return self._scoring

    def run(self) -> None:
        """Scores the parents and their mean, then searches until the recipe's number of evaluations is reached.

        Raises:
            StudyError: the record cannot be written, or every parent or candidate fails.
            CheckpointError: a model cannot be read, or holds NaN.
            TaskError: a task cannot be used with this tokenizer.
        """
        if self.record.attribute("holdout") is None:
            self.scoring  # noqa: B018 (made now, so that its errors come before anything is scored)
        self._run_baselines()
        mean = self._new_mean()
        self._choose_objective(mean[1] if mean else None)
        for trial in self.record.trials:
            self._known[trial.key] = trial.outcome
            self.observer.trial(trial, fresh=False)
        self._write_best()
        if mean:
            self._record(None, mean[0], self._judged(mean[1]))
        self._run_candidates()

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
            self._known[recipe_key(spec.parent_recipe(name).as_data())] = self._judged(outcome)

    def _judged(self, outcome: Outcome) -> Outcome:
        """Returns an outcome with its objective."""
        value = self.value(outcome)
        return replace(outcome, objectives=() if value is None else (value,))

    def _new_mean(self) -> tuple[Recipe, Outcome] | None:
        """Returns the parents' mean and its outcome; None if it is on record, or they have none."""
        if self.record.trials or self.spec.stacks:
            return None
        recipe = self.spec.mean_recipe().merge_only()
        try:
            self._planner.plan(recipe)
        except EvomergeError:
            # Parents of different depths have no mean.
            return None
        return recipe, self.evaluate(recipe, "trial 0", "search")

    def _run_candidates(self) -> None:
        space, settings = self.spec.space, self.spec.settings
        optimizer = optimizers_for(self.spec.recipe)[settings.optimizer](space, settings)
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
            if self.spec.stacks and not optimizer.sequential:
                most = min(settings.evaluations - done, MOST_AT_ONCE - done % MOST_AT_ONCE)
            proposals = optimizer.ask(most)
            if not proposals:
                self.observer.note(f"all {done} stacks that the recipe allows are evaluated: the search ends early")
                return
            for proposal in self._sorted(proposals):
                optimizer.tell(proposal, self._add(proposal, space.decode(proposal.genome)).outcome)
                self._refuse_hopeless()

    def _sorted(self, proposals: list[Proposal[Any]]) -> list[Proposal[Any]]:
        """Returns proposals in the order in which they share the most work, and prepares the runtime for it."""
        if self.spec.stacks is None:
            return proposals
        found = sharing_order(self.spec.space, proposals, self._planner)
        plans = {recipe_key(made.recipe.as_data()): made for _, made in found if made}
        runtime, _ = self.scoring
        assert isinstance(runtime, StackRuntime)
        runtime.expect([made for key, made in plans.items() if key not in self._known])
        return [proposal for proposal, _ in found]

    @property
    def candidates(self) -> list[Trial]:
        """The candidates on record."""
        return [trial for trial in self.record.trials if trial.proposal]

    def _refuse_hopeless(self) -> None:
        trials = self.candidates
        if len(trials) >= MOST_FAILURES and all(trial.objective is None for trial in trials):
            error = trials[-1].outcome.error
            raise StudyError(f"all of the first {MOST_FAILURES} candidates failed, the last with: {error}")

    def _add(self, proposal: Proposal[Any], recipe: Recipe) -> Trial:
        merge = recipe.merge_only()
        # The same numbers make the same model with the same scores: it is not evaluated twice.
        same = self._known.get(recipe_key(merge.as_data()))
        if same:
            outcome = replace(same, seconds=dict.fromkeys(same.seconds, 0.0), prompt_tokens=0, new_tokens=0)
        else:
            outcome = self._judged(self.evaluate(merge, f"trial {len(self.record.trials)}", "search"))
        return self._record(proposal, merge, outcome)

    def _record(self, proposal: Proposal[Any] | None, recipe: Recipe, outcome: Outcome) -> Trial:
        space = self.spec.space
        recorded = proposal
        parameters = {}
        if proposal:
            recorded = Proposal(proposal.id, space.to_json(proposal.genome), proposal.generation)
            if isinstance(space, NumberSpace):
                parameters = space.parameters(proposal.genome)
        trial = Trial(len(self.record.trials), recorded, recipe.as_data(), outcome)
        self.record.add(trial, parameters)
        self._known[trial.key] = outcome
        if self.best() is trial:
            self._write_best()
        self.observer.trial(trial, fresh=True)
        return trial

    def on_record(self, key: str, recipe: Recipe, what: str, split: Split) -> Outcome:
        """Returns the outcome recorded under `key`; evaluates the recipe and records it if there is none."""
        recorded = self.record.attribute(key)
        if recorded:
            return Outcome.from_data(recorded)
        outcome = self.evaluate(recipe, what, split)
        if split == "holdout" and outcome.completions:
            keep_completions(self.folder, what, outcome.completions)
        self.record.set_attribute(key, outcome.as_data())
        return outcome

    def evaluate(self, recipe: Recipe, what: str, split: Split) -> Outcome:
        """Returns the outcome of building and scoring a recipe; a failure is an outcome with its error."""
        self.scoring  # noqa: B018 (made now, so that it does not count as this evaluation's time)
        started = time.perf_counter()
        try:
            scores, built = self._scores(recipe, what, split)
        except (StudyError, TaskError, BrokenPipeError):
            raise  # of the search, not of this model
        except Exception as fault:
            error = (str(fault) if isinstance(fault, EvomergeError) else f"{type(fault).__name__}: {fault}").strip(": ")
            own = isinstance(fault, ArchitectureError | EvaluationError | MergeError | RecipeError)
            spent = time.perf_counter() - started
        else:
            seconds = {"build": built, "evaluate": scores.cost.seconds}
            seconds["other"] = max(time.perf_counter() - started - sum(seconds.values()), 0.0)
            cost = scores.cost
            found = Outcome(State.COMPLETE, (), scores.by_task(), seconds, cost.prompt_tokens, cost.new_tokens)
            return replace(found, completions=scores.completions_by_task()) if split == "holdout" else found
        if not own:
            # Only now: the exception keeps the evaluation's memory alive.
            self._refuse_broken(error)
        seconds = {"build": 0.0, "evaluate": 0.0, "other": spent}
        return Outcome(State.FAILED, seconds=seconds, error=error)

    def _scores(self, recipe: Recipe, what: str, split: Split) -> tuple[Scores, float]:
        """Returns the scores of a recipe's model, and the seconds in which its weights were written."""
        runtime, evaluator = self.scoring
        made = self._planner.plan(recipe)
        self.observer.evaluating(what, "build")
        started = time.perf_counter()
        model = runtime.load(made)
        built = time.perf_counter() - started
        items = evaluator.items(split)
        return evaluator.scores(model, items, lambda task: self.observer.evaluating(what, task)), built

    def _refuse_broken(self, error: str) -> None:
        """Raises if a merge that was scored before can no longer be scored.

        A lost disk or device would fail every following candidate, and all would be recorded as failed.
        """
        scored = self.scored
        if not scored:
            return
        what = scored[-1].name
        try:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._scores(Recipe.model_validate(scored[-1].recipe), what, "search")
        except Exception as fault:
            raise StudyError(
                f"{error}\n{what}, which was scored before, now fails too ({fault}); all evaluations before this one"
                " are safe: fix the cause, then run the same command again to resume"
            ) from None

    def value(self, outcome: Outcome) -> float | None:
        """Returns the objective of an outcome; None if it failed."""
        return self.objective.value(outcome)

    @property
    def scored(self) -> list[Trial]:
        """The merges on record that were scored."""
        return [trial for trial in self.record.trials if trial.objective is not None]

    def ranked(self) -> list[Trial]:
        """Returns the scored merges, best first, ties in the order in which they were drawn; each recipe once."""
        found: dict[str, Trial] = {}
        for trial in sorted(self.scored, key=lambda trial: trial.rank):
            found.setdefault(trial.key, trial)
        return list(found.values())

    def best(self) -> Trial | None:
        """Returns the best merge so far; None if none was scored."""
        return min(self.scored, key=lambda trial: trial.rank, default=None)

    def _write_best(self) -> None:
        best = self.best()
        if best is not None:
            write_best(self.folder, best, self.spec.recipe.folders, self.spec.made)
