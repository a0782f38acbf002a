"""`LoadedRun`: a run's record as data, of a search that has finished, was stopped or is running."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import EvomergeError, StudyError
from evomerge.merge import parents
from evomerge.recipe import BEST, Recipe
from evomerge.search import Outcome
from evomerge.study.completions import Completions, completions
from evomerge.study.objective import Objective, Scale
from evomerge.study.recipe_files import RECIPE
from evomerge.study.record import read_result, recorded, storage_of
from evomerge.study.runs import runs
from evomerge.study.stages import stage_names, study_name
from evomerge.study.standings import best_of
from evomerge.study.storage import DATABASE
from evomerge.study.trial import Trial

if TYPE_CHECKING:
    import pandas


class RunItem(NamedTuple):
    """A search item: its task, and its index in the task's search split."""

    task: str
    index: int  # type: ignore[assignment]  # tuple's own method of this name is not needed


class SearchedRange(NamedTuple):
    """The range of a searched number, and whether its logarithm was searched."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class LoadedRun:
    """What is known of a run.

    Attributes:
        folder: the run's folder; of a run with stages, that of its last stage that has begun.
        state: ``running``, ``stopped`` before its end, ``finished``, or ``damaged``.
        recipe: the search recipe.
        environment: what may change the last bits of a score: versions, device, dtype.
        trials: every merge that was evaluated, in order.
        numbers: each trial's searched numbers by name; empty for stacks of layers.
        ranges: the range of each searched number.
        finished: when each trial ended, local time.
        baselines: the models that were merged, and the base: their outcomes on the search items.
        holdout: models and finalists by name (``mean``, ``trial N``): their outcomes on the holdout.
        completions: what they wrote on the holdout, by model and task, one text an item.
        result: what result.json holds; None where the search has not finished.
        database: the database of the record, without its password.
        fingerprints: for each task by name, the fingerprints of its search items and of its holdout items.
        objective: what the search maximizes.
    """

    folder: Path
    state: Literal["running", "stopped", "finished", "damaged"]
    recipe: Recipe
    environment: Mapping[str, Any]
    trials: tuple[Trial, ...]
    numbers: tuple[Mapping[str, float], ...]
    ranges: Mapping[str, SearchedRange]
    finished: tuple[datetime | None, ...]
    baselines: Mapping[str, Outcome]
    holdout: Mapping[str, Outcome]
    completions: Completions
    result: Mapping[str, Any] | None
    database: str
    fingerprints: Mapping[str, tuple[str, str]]
    objective: Objective

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.fingerprints)

    @property
    def parents(self) -> tuple[str, ...]:
        """The models that were merged, without the base where it is none of them."""
        return tuple(name for name in parents(self.recipe) if name in self.baselines)

    def value(self, outcome: Outcome) -> float | None:
        """Returns the objective of an outcome; None if it failed."""
        return self.objective.value(outcome)

    @property
    def candidates(self) -> tuple[Trial, ...]:
        """The trials that the optimizer proposed."""
        return tuple(trial for trial in self.trials if trial.kind == "candidate")

    @cached_property
    def best(self) -> Trial | None:
        """The best merge so far, with its standing as the objective, see `Study.ranked`; None where none was scored."""
        return best_of(self.trials)

    @cached_property
    def best_recipe(self) -> Recipe | None:
        """The recipe of `best`, with paths that work from any folder where best.yaml has it."""
        best = self.best
        if best is None:
            return None
        try:
            return Recipe.load(self.folder / BEST)
        except EvomergeError:
            return Recipe.model_validate(best.recipe)

    @cached_property
    def items(self) -> tuple[RunItem, ...]:
        """The search items, task by task."""
        outcomes = [*self.baselines.values(), *(trial.outcome for trial in self.trials)]
        whole = max((outcome.items for outcome in outcomes), key=len, default={})
        return tuple(RunItem(task, i) for task, scores in whole.items() for i in range(len(scores)))

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """Every trial's score on every search item: float64, shape (items, trials); NaN where there is none."""
        found = np.full((len(self.items), len(self.trials)), np.nan)
        for column, trial in enumerate(self.trials):
            given = [score for scores in trial.outcome.items.values() for score in scores]
            if given:
                found[:, column] = [np.nan if score is None else score for score in given]
        return found

    def table(self) -> list[dict[str, Any]]:
        """Returns a row for each trial: its number, score, task means, searched numbers, cost and error."""
        return [
            {
                "trial": trial.number,
                "kind": trial.kind,
                "generation": trial.proposal.generation if trial.proposal else None,
                "state": str(trial.outcome.state),
                "score": trial.objective,
                **{f"score of {task}": trial.outcome.means.get(task) for task in self.tasks},
                **{name: numbers.get(name) for name in self.ranges},
                **({"layers": _layers(trial.recipe)} if self.recipe.stack_hole else {}),
                **{f"{part} seconds": trial.outcome.seconds.get(part) for part in ("build", "evaluate", "other")},
                "prompt tokens": trial.outcome.prompt_tokens,
                "new tokens": trial.outcome.new_tokens,
                "finished": ended.isoformat(timespec="seconds") if ended else None,
                "error": trial.outcome.error,
            }
            for trial, numbers, ended in zip(self.trials, self.numbers, self.finished, strict=True)
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """Returns `table` as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.table())

    def to_csv(self) -> str:
        """Returns `table` as the text of a CSV file."""
        rows = self.table()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["trial"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def load_run(folder: Path | str, storage: str | None = None) -> LoadedRun:
    """Returns what is on record of a run, without disturbing a search that is running there.

    Args:
        folder: the run's folder.
        storage: the URL of the database that holds the record; by default study.db in the folder, or the database that
            the folder's storage.url names.

    Raises:
        StudyError: there is no record of a search, or it cannot be read.
    """
    folder, name = _with_record(Path(folder))
    elsewhere = storage_of(folder)
    if not elsewhere and not storage and not (folder / DATABASE).is_file():
        raise StudyError(f"{folder}: is not the folder of a run; expected {DATABASE} in it, or --storage and its URL")
    found = recorded(folder, storage or elsewhere or None, name)
    attributes = found.attributes
    if "identity" not in attributes:
        raise StudyError(f"{folder}: nothing is on record yet; run the search first")
    baselines = {key.removeprefix("baseline:"): value for key, value in attributes.items() if "baseline:" in key}
    holdout = {key.removeprefix("holdout:"): value for key, value in attributes.items() if "holdout:" in key}
    (run,) = (run for run in runs(folder) if run.folder == folder) if (elsewhere or not storage) else (None,)
    ranges = {
        name: SearchedRange(range_.low, range_.high, range_.log)  # type: ignore[attr-defined]
        for frozen in found.frozen
        for name, range_ in frozen.distributions.items()
    }
    recipe, tasks = _recipe(folder, attributes["identity"]), attributes["identity"]["tasks"]
    weights = {name: entry.weight for name, entry in zip(tasks, recipe.tasks, strict=True)}
    scales = {name: Scale(*scale) for name, scale in attributes.get("scales", {}).items()}
    return LoadedRun(
        folder=folder,
        state=run.state if run else "stopped",
        recipe=recipe,
        environment=attributes.get("environment", {}),
        trials=tuple(found.trials),
        numbers=tuple(dict(frozen.params) for frozen in found.frozen),
        ranges=ranges,
        finished=tuple(frozen.datetime_complete for frozen in found.frozen),
        baselines={name: Outcome.from_data(data) for name, data in baselines.items()},
        holdout={name: Outcome.from_data(data) for name, data in holdout.items()},
        completions=completions(folder),
        result=(read_result(folder) or None) if attributes.get("holdout") == "done" else None,
        database=found.label,
        fingerprints={task: (one, two) for task, (one, two) in tasks.items()},
        objective=Objective(weights, scales),
    )


def _with_record(folder: Path) -> tuple[Path, str | None]:
    """Returns the folder of a run's record, and the study's name in a database; of several stages, the last one's."""
    for stage in reversed(stage_names(folder) or []):
        if (folder / stage).is_dir():
            return folder / stage, study_name(folder, stage)
    whole = folder.resolve()
    return folder, study_name(whole.parent, whole.name) if whole.name in (stage_names(whole.parent) or []) else None


def _recipe(folder: Path, identity: Mapping[str, Any]) -> Recipe:
    """Returns the search recipe: of recipe.yaml, which finds models and tasks; without it, of the record."""
    recorded_recipe = Recipe.model_validate({**identity["recipe"], "search": identity["search"]})
    try:
        written = Recipe.load(folder / RECIPE)
    except EvomergeError:
        return recorded_recipe
    return written if written.merge_only() == recorded_recipe.merge_only() else recorded_recipe


def _layers(recipe: Mapping[str, Any]) -> str:
    """Returns a stack's layers in few words, for example ``a[0:12] b[10:20]``."""
    sources: Sequence[Mapping[str, Any]] = [source for part in recipe["slices"] for source in part["sources"]]
    return " ".join("{}[{}:{}]".format(source["model"], *source["layer_range"]) for source in sources)
