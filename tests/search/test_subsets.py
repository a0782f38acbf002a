"""The items that each generation is scored on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import ItemSubsets, Recipe, SearchSettings
from evomerge.search import Subsets

SIZES = {"large": 150, "small": 6}
EQUAL = {"large": 1.0, "small": 1.0}


def settings_of(items: str) -> SearchSettings:
    return Recipe.parse(f"merge_method: linear\nmodels: [{{model: a}}]\nsearch: {{items: {items}}}\n").settings()


def subsets(items: str, sizes: dict[str, int] | None = None, weights: dict[str, float] | None = None) -> Subsets | None:
    return Subsets.of(settings_of(items), sizes or SIZES, weights or EQUAL)


@pytest.mark.parametrize(
    ("items", "counts"),
    [
        ("20", [20, 20, 20]),
        ("{start: 20}", [20, 20, 20]),
        ("{start: 20, growth: 2}", [20, 40, 80, 156, 156]),
        ("auto", [20, 22, 23, 24]),
        ("1", [2, 2]),
        ("1000", [156]),
    ],
)
def test_subsets_grow_until_they_have_all_items(items: str, counts: list[int]):
    found = subsets(items)
    assert [found.count(generation) for generation in range(len(counts))] == counts
    for generation, count in enumerate(counts):
        chosen = found(generation)
        assert chosen is None if count == 156 else len(set(chosen)) == count


def test_all_items_need_no_subsets():
    assert subsets("all") is None
    assert SearchSettings().subsets(100) is None


@given(st.integers(0, 10**6), st.integers(0, 2**32 - 1))
def test_a_subset_follows_from_the_seed_and_the_generation(generation: int, seed: int):
    one, two = (Subsets(SIZES, EQUAL, ItemSubsets(start=9), seed)(generation) for _ in range(2))
    assert one == two
    assert one != Subsets(SIZES, EQUAL, ItemSubsets(start=9), seed)(generation + 1)
    assert all(0 <= index < SIZES[task] for task, index in one)


@pytest.mark.parametrize(
    ("weights", "count", "small"), [((1, 1), 10, 5), ((1, 1), 20, 6), ((9, 1), 20, 2), ((1, 1e-6), 20, 1)]
)
def test_tasks_share_a_subset_by_their_weights(weights: tuple[float, float], count: int, small: int):
    chosen = subsets(str(count), weights=dict(zip(SIZES, weights, strict=True)))(3)
    assert sum(task == "small" for task, _ in chosen) == small
    assert len(chosen) == count


def test_over_the_generations_every_item_is_drawn():
    found = subsets("10")
    assert len({item for generation in range(200) for item in found(generation)}) == 156


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("some", "expected 'all' or 'auto'"),
        ("0", "1 or more"),
        ("{growth: 2}", "start"),
        ("{start: 5, growth: 0.5}", "1.0 or more"),
        ("{start: 5, estimator: magic}", "estimator"),
        ("true", "found true"),
    ],
)
def test_items_that_make_no_sense_are_refused(items: str, said: str):
    with pytest.raises(RecipeError, match=said):
        settings_of(items)
