"""On how many of the search items a search scores each generation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from evomerge.document import Strict


class ItemSubsets(Strict):
    """Each generation is scored on a fresh random subset of the search items.

    Attributes:
        start: items of the first generation's subset; at least one a task is taken.
        growth: each generation's subset is larger by this factor, until it has all items.
        estimator: what predicts the items of a candidate that are not scored: ``items``, how hard each item was for
            earlier candidates; ``neighbors``, also what similar candidates scored on it.
    """

    start: int = Field(ge=1)
    growth: float = Field(default=1.0, ge=1, le=10)
    estimator: Literal["items", "neighbors"] = "items"


def _items_kind(raw: Any) -> str:
    return "word" if isinstance(raw, str) else "subsets"


Items = Annotated[
    Annotated[Literal["all", "auto"], Tag("word")] | Annotated[ItemSubsets, Tag("subsets")],
    Discriminator(_items_kind),
    BeforeValidator(
        lambda raw: {"start": raw} if isinstance(raw, int) and not isinstance(raw, bool) else raw,
        json_schema_input_type=Literal["all", "auto"] | Annotated[int, Field(ge=1)] | ItemSubsets,
    ),
]
"""``all`` items for every candidate, ``auto``, a number for each generation, or a number and how it grows."""
