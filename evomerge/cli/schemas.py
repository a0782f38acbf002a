"""The command schema."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from evomerge.cli.console import argument, say


def schema(
    kind: Annotated[Literal["recipe", "task"], argument(metavar="recipe|task", help="What the schema describes.")],
) -> None:
    """Print a JSON Schema, with which editors complete and check recipes or task files.

    It has the merge methods and optimizers of the packages that are installed beside evomerge, too.

    Example: evomerge schema recipe
    """
    from evomerge.schema import recipe_schema, task_schema

    say(json.dumps(recipe_schema() if kind == "recipe" else task_schema(), indent=2))
