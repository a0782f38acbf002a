"""`StagedRecipe`: several searches, one after another; a later one can merge the models that earlier ones made."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, StrictBool

from evomerge import document
from evomerge.document import Source, Strict
from evomerge.errors import RecipeError
from evomerge.recipe.document import Recipe, TaskEntry

_SHARED = ("tasks", "data", "allow_test_set")
"""The keys at the root that all stages have."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class StagesDocument(Strict):
    """Several searches, one after another, with the same tasks; a later one can merge the models of earlier ones.

    Attributes:
        stages: search recipes by name, in order; a stage names the model of an earlier one by that stage's name.
        tasks: what candidates of all stages are scored on.
        data: local files in place of the data sets on the Hub that tasks name: ``openai/gsm8k:test: test.jsonl``.
        allow_test_set: search even on a well-known test set; result and model card then say so.
        name: a name for people; without effect.
    """

    stages: dict[str, dict[str, Any]] = Field(min_length=2)
    tasks: tuple[TaskEntry, ...] = Field(min_length=1)
    data: dict[str, str] = Field(default_factory=dict)
    allow_test_set: StrictBool = False
    name: str | None = None


@dataclass(frozen=True)
class StagedRecipe:
    """A document with ``stages``: search recipes by name, in order, with the same tasks.

    A stage names the model that an earlier one made by that stage's name.

    Attributes:
        stages: the recipes by their names, each with the tasks.
        source: the document.
    """

    stages: Mapping[str, Recipe]
    source: Source

    @classmethod
    def checked(cls, source: Source) -> StagedRecipe:
        """Returns the stages that a parsed document holds.

        Raises:
            RecipeError: with one line for every fault.
        """
        document.validate(source, StagesDocument, RecipeError)
        names = list(source.data["stages"])
        stages: dict[str, Recipe] = {}
        faults: list[str] = []
        for name, data in source.data["stages"].items():
            inside = ("stages", name)
            if not _NAME.fullmatch(name):
                message = f'"{name}" is not a name for a folder; use letters, digits, "-" and "_"'
                faults.append(source.fault(inside, message))
            own = [key for key in _SHARED if key in data]
            if own:
                faults += [
                    source.fault((*inside, key), f"all stages have the same {key}; move it to the root") for key in own
                ]
                continue
            shared = {key: source.data[key] for key in _SHARED if key in source.data}
            whole = {**data, **shared}
            try:
                stages[name] = Recipe.checked(replace(source, data=whole, within=inside, shared=_SHARED))
            except RecipeError as fault:
                faults += fault.faults
                continue
            if not stages[name].holes():
                message = (
                    "nothing to search; a stage is a search recipe, with {search: ...} in place of numbers or slices"
                )
                faults.append(source.fault(inside, message))
            for later in set(names[names.index(name) :]) & set(stages[name].references()):
                message = f"merges {later}, which is not an earlier stage; put the stages into the order of their use"
                faults.append(source.fault(inside, message))
        for i, name in enumerate(names[:-1]):
            later_ones = [stages[later] for later in names[i + 1 :] if later in stages]
            if len(later_ones) == len(names) - i - 1 and not any(name in one.references() for one in later_ones):
                faults.append(
                    source.fault(("stages", name), f"no later stage merges {name}; name it as a model, or remove it")
                )
        if faults:
            raise RecipeError(faults)
        return cls(stages, source)

    def as_data(self) -> Any:
        """Returns the document as plain dicts, lists, numbers and strings."""
        return self.source.data


def load(path: Path | str) -> Recipe | StagedRecipe:
    """Returns the recipe, or the stages, in the file `path`.

    Raises:
        RecipeError: with one line for every fault of the file.
    """
    source = document.read(Path(path), RecipeError)
    staged = isinstance(source.data, dict) and "stages" in source.data
    return StagedRecipe.checked(source) if staged else Recipe.checked(source)


BEST = "best.yaml"
"""The best recipe so far, in a run's folder."""


def is_run(path: Path) -> bool:
    """Returns whether `path` is the folder of a run that has scored a candidate, and not a model's."""
    return os.path.isfile(path / BEST) and not os.path.exists(path / "config.json")


def recipe_file(path: Path) -> Path:
    """Returns the recipe that `path` means: a run's folder stands for its best.yaml.

    Raises:
        RecipeError: it is a folder and has none.
    """
    if not os.path.isdir(path):  # False for a name that is too long, where Path.is_dir raises
        return path
    if (path / BEST).is_file():
        return path / BEST
    raise RecipeError([f"{path}: is a folder without {BEST}; name a recipe, or a run that has scored a candidate"])
