"""`Stages`: several searches in one run; what an earlier one finds, later ones merge."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from evomerge.checkpoint import Checkpoint, open_checkpoint
from evomerge.document import to_yaml
from evomerge.errors import EvomergeError, RecipeError, StudyError
from evomerge.merge import into_directory, open_models, open_recipe
from evomerge.recipe import BEST, StagedRecipe, load
from evomerge.search import Outcome
from evomerge.study.objective import Scale
from evomerge.study.recipe_files import RECIPE, refuse_overwriting, write_recipe
from evomerge.study.record import RESULT, write_atomically
from evomerge.study.report_data import ReportData, conclude
from evomerge.study.search_spec import SearchSpec, prepare
from evomerge.study.storage import DATABASE
from evomerge.study.study import Study
from evomerge.tasks import LocalFiles

MODEL = "model"
"""The folder in a stage's folder that holds the model of its winner."""


class Stages:
    """The searches of a recipe with stages, each in a folder of its own in the run's folder.

    Everything is checked before the first search starts: a model that an earlier stage has yet to make is taken to be
    like that stage's first candidate's config and tokenizer.

    Args:
        recipe: the recipe.
        evaluations: replaces the last stage's number.
        seed: replaces the seed of every stage.
        compute_dtype: see `SearchSpec`.
        data: see `prepare`.

    Attributes:
        names: the stages, in order.
        checks: each stage as it was checked.

    Raises:
        RecipeError: with a line for every fault of any stage.
    """

    def __init__(
        self,
        recipe: StagedRecipe,
        *,
        evaluations: int | None = None,
        seed: int | None = None,
        compute_dtype: str = "auto",
        data: LocalFiles = MappingProxyType({}),
    ) -> None:
        self.names = list(recipe.stages)
        self._recipe = recipe
        self._evaluations = evaluations
        self._seed = seed
        self._dtype = compute_dtype
        self._data = data
        self._outcomes: dict[str, tuple[Outcome, Outcome]] = {}  # of all models so far: search and holdout
        self._scales: Mapping[str, Scale] = {}  # of the first stage that normalizes
        self.checks: dict[str, SearchSpec] = {}
        donors: dict[str, Checkpoint] = {}
        faults: list[str] = []
        for name in self.names:
            if set(self._uses(name)) - donors.keys():
                continue  # it merges a stage whose models cannot be opened
            made = {other: donors[other] for other in self._uses(name)}
            try:
                self.checks[name] = self._prepared(name, made)
                donors[name] = self.checks[name].first.layout.donor
            except EvomergeError as fault:
                faults += str(fault).splitlines()
                with contextlib.suppress(EvomergeError):
                    donors[name] = next(iter(open_models(recipe.stages[name], made).values()))
        if faults:
            raise RecipeError(list(dict.fromkeys(faults)))

    def _uses(self, name: str) -> list[str]:
        """Returns the earlier stages that a stage names as models."""
        return [model for model in self._recipe.stages[name].references() if model in self.names]

    def _prepared(self, name: str, made: Mapping[str, Checkpoint]) -> SearchSpec:
        evaluations = self._evaluations if name == self.names[-1] else None
        return prepare(
            self._recipe.stages[name],
            evaluations=evaluations,
            seed=self._seed,
            compute_dtype=self._dtype,
            made=made,
            data=self._data,
        )

    def open(self, folder: Path) -> None:
        """Makes the run's folder, or refuses that of another run.

        Raises:
            StudyError: it holds another search.
        """
        refuse_overwriting(folder)
        if (folder / DATABASE).exists():
            raise StudyError(f"{folder}: holds a search without stages; use another --run-dir")
        known = stage_names(folder)
        if known is not None and known != self.names:
            raise StudyError(
                f"{folder}: holds a search with the stages {', '.join(known)}, not {', '.join(self.names)}; use"
                " another --run-dir"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise StudyError(
                f"{folder}: cannot be used as a run's folder ({fault.strerror}); use another --run-dir"
            ) from None
        if known is None:
            write_recipe(folder, to_yaml(self._recipe.as_data()))

    def prepare(self, name: str, folder: Path) -> SearchSpec:
        """Returns a stage's search; the models of the stages that it merges must have been made.

        Args:
            name: the stage.
            folder: the run's folder.
        """
        made = {other: open_checkpoint(str((folder / other / MODEL).absolute())) for other in self._uses(name)}
        return replace(self._prepared(name, made), scales=self._scales)

    def conclude(self, name: str, study: Study) -> ReportData:
        """Returns the report of a stage whose search has run, and writes its winner's model for later stages.

        The last stage's winner is compared with the models of all stages. After a kill, a model that was not complete
        is written again.

        Raises:
            StudyError: no merge could be scored, or a file cannot be written.
            CheckpointError: the model cannot be written.
        """
        folder, last = study.folder, name == self.names[-1]
        report = conclude(study, self._outcomes if last else {})
        self._scales = self._scales or study.objective.scales
        for model, outcome in study.baselines.items():
            self._outcomes[model] = outcome, Outcome.from_data(study.record.attribute(f"holdout:{model}"))
        best = study.ranked()[0]
        self._outcomes[name] = best.outcome, Outcome.from_data(study.record.attribute(f"holdout:{best.name}"))
        if not last and (study.record.attribute(MODEL) != best.key or not (folder / MODEL).is_dir()):
            into_directory(open_recipe(folder / BEST), folder / MODEL, overwrite=True)
            study.record.set_attribute(MODEL, best.key)
        write_atomically(folder.parent / BEST, (folder / BEST).read_text(encoding="utf-8"))
        if last:
            write_atomically(folder.parent / RESULT, (folder / RESULT).read_text(encoding="utf-8"))
        return report


def study_name(folder: Path, stage: str) -> str:
    """Returns the name of a stage's study in a database, of a run in `folder`."""
    return f"{folder.resolve().name}-{stage}"


def stage_names(folder: Path) -> list[str] | None:
    """Returns the stages of the run in a folder; None where it is no run with stages."""
    try:
        found = load(folder / RECIPE)
    except RecipeError:
        return None
    return list(found.stages) if isinstance(found, StagedRecipe) else None
