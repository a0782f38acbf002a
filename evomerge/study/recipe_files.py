"""The recipes in a run's folder: what is searched, and the best so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.checkpoint import Reference
from evomerge.errors import StudyError
from evomerge.recipe import BEST, Recipe
from evomerge.study.record import write_atomically
from evomerge.study.trial import Trial

RECIPE = "recipe.yaml"

_RECIPE_HEAD = "The recipe of this search."
_BEST_HEAD = "The best merge of"


def refuse_overwriting(folder: Path) -> None:
    """Refuses a folder in which a search would replace a recipe that no search wrote.

    Raises:
        StudyError: there is one.
    """
    for name, head in ((RECIPE, _RECIPE_HEAD), (BEST, _BEST_HEAD)):
        path = folder / name
        try:
            text = path.read_bytes()
        except OSError:
            continue  # there is none, or the record has the better message
        if not text.startswith(f"# {head}".encode()):
            raise StudyError(
                f"{path}: not written by a search, which would replace it; use another --run-dir, or move it away"
            )


def write_recipe(folder: Path, text: str) -> None:
    """Writes the recipe of a search, given as YAML, into its folder.

    Raises:
        StudyError: it cannot be written.
    """
    write_atomically(folder / RECIPE, f"# {_RECIPE_HEAD}\n{text}")


def write_best(folder: Path, best: Trial, folders: Sequence[Path], made: Mapping[str, Path]) -> None:
    """Writes the recipe of the best merge into a run's folder, with absolute paths.

    Args:
        folder: the run's folder.
        best: the merge.
        folders: where its relative paths are resolved.
        made: see `SearchSpec`.

    Raises:
        StudyError: it cannot be written.
    """
    head = (
        f"{_BEST_HEAD} {folder.name}: trial {best.number}, search score {best.objective:.4f}.\n"
        f"Make its model: evomerge apply {folder / BEST} OUT_DIR"
    )

    def anywhere(name: str) -> str:
        return str(made[name].resolve()) if name in made else Reference.parse(name, folders).absolute(folders)

    write_atomically(folder / BEST, Recipe.model_validate(best.recipe).with_models(anywhere).to_yaml(head))
