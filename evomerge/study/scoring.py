"""`Scoring`: builds the models of a search's recipes, and scores them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from evomerge.evaluation import Evaluator, ItemId, Scores
from evomerge.merge import Planner, WeightStore, compute_device
from evomerge.recipe import Recipe
from evomerge.runtime import Runtime
from evomerge.search import ItemKey, Outcome, State
from evomerge.study.observer import Observer
from evomerge.study.search_spec import SearchSpec
from evomerge.study.trial import Trial
from evomerge.tasks import Split


class Scoring:
    """Scores recipes on items; the models are loaded on first use.

    Args:
        spec: the search.
        device: see `LiveModel`.
        dtype: in which models run.
        observer: is notified of what is evaluated.
        scored: returns the merges that were scored so far.

    Attributes:
        planner: plans the recipes.
    """

    def __init__(
        self,
        spec: SearchSpec,
        device: str,
        dtype: torch.dtype,
        observer: Observer,
        scored: Callable[[], Sequence[Trial]],
    ) -> None:
        self.planner = Planner(spec.checkpoints)
        self._spec = spec
        self._device = device
        self._dtype = dtype
        self._observer = observer
        self._scored = scored
        self._opened: tuple[Runtime, Evaluator] | None = None

    def open(self) -> tuple[Runtime, Evaluator]:
        """Returns the runtime and the evaluator; made, and the models loaded, on the first call."""
        if self._opened is None:
            spec = self._spec
            device = compute_device(self._device)
            total = spec.source_bytes
            tier = spec.tier(device, self._dtype)
            store = WeightStore(spec.checkpoints, tier, device)
            opened = spec.scoring(store, self._device, self._dtype)
            done = 0

            def loaded(size: int) -> None:
                nonlocal done
                done += size
                self._observer.loading(done, total)

            if spec.stacks is None:
                store.load(loaded)
            for model in spec.parents if spec.stacks else ():
                # The runtime keeps the models of stacks.
                spec.load_parent(opened[0], model)
                loaded(spec.checkpoints[model].nbytes)
            self._opened = opened
        return self._opened

    def outcome(self, recipe: Recipe, what: str, split: Split, items: Sequence[ItemKey] | None = None) -> Outcome:
        """Returns the outcome of building and scoring a recipe; a failure is an outcome with its error.

        Args:
            recipe: the recipe.
            what: its name for the observer.
            split: what to score it on.
            items: the items of the split; None for all.

        Raises:
            StudyError: a merge that was scored before can no longer be scored.
        """
        self.open()  # now, so that it does not count as this evaluation's time
        started = time.perf_counter()
        try:
            scores, built = self._scores(recipe, what, split, items)
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
            by_task = {
                task.name: tuple(scores.values.get(ItemId(split, task.name, i)) for i in range(len(task.items(split))))
                for task in self._spec.tasks
            }
            state = State.COMPLETE if items is None else State.PARTIAL
            found = Outcome(state, (), by_task, seconds, cost.prompt_tokens, cost.new_tokens)
            return replace(found, completions=scores.completions_by_task()) if split == "holdout" else found
        if not own:
            # Only now: the exception keeps the evaluation's memory alive.
            self._refuse_broken(error)
        seconds = {"build": 0.0, "evaluate": 0.0, "other": spent}
        return Outcome(State.FAILED, seconds=seconds, error=error)

    def joined(self, recipe: Recipe, what: str, known: Outcome | None, items: Sequence[ItemKey] | None) -> Outcome:
        """Returns the outcome of a merge on some search items, of which only those are scored that are not known.

        The same numbers make the same model with the same scores: nothing is evaluated twice.

        Args:
            recipe: the merge.
            what: its name for the observer.
            known: all that is known of the same merge; None for nothing.
            items: the items; None for all.
        """
        if known is None:
            return self.outcome(recipe, what, "search", items)
        free = replace(known, seconds=dict.fromkeys(known.seconds, 0.0), prompt_tokens=0, new_tokens=0)
        if known.state is State.FAILED:
            return free
        every = items or [(task, i) for task, scores in known.items.items() for i in range(len(scores))]
        missing = known.missing(every)
        found = self.outcome(recipe, what, "search", missing) if missing else free
        return found if found.state is State.FAILED else found.joined(known).on(every)

    def _scores(
        self, recipe: Recipe, what: str, split: Split, some: Sequence[ItemKey] | None = None
    ) -> tuple[Scores, float]:
        """Returns the scores of a recipe's model, and the seconds in which its weights were written."""
        runtime, evaluator = self.open()
        made = self.planner.plan(recipe)
        self._observer.evaluating(what, "build")
        started = time.perf_counter()
        model = runtime.load(made)
        built = time.perf_counter() - started
        items = evaluator.items(split) if some is None else [ItemId(split, *item) for item in some]
        return evaluator.scores(model, items, lambda task: self._observer.evaluating(what, task)), built

    def _refuse_broken(self, error: str) -> None:
        """Raises if a merge that was scored before can no longer be scored.

        A lost disk or device would fail every following candidate, and all would be recorded as failed.
        """
        scored = self._scored()
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
