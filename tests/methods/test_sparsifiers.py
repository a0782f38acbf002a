"""Which elements are kept: exactly so many, and always the same ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.methods import method
from evomerge.methods.sparsifiers import all_but_largest


def by_sorting(numbers, count):
    """Marks all but the `count` largest magnitudes, the first of equals being kept."""
    order = sorted(range(len(numbers)), key=lambda index: (-abs(numbers[index]), index))
    kept = set(order[:count])
    return [index not in kept for index in range(len(numbers))]


# Few values make many equals; any float32 bits make neighbours that differ in their last bit only.
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1.0000001, -1.0000001, 1e-45, math.inf, -math.inf])
lists = st.lists(few, min_size=1, max_size=40) | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40)


@given(lists, st.data())
@settings(max_examples=300, deadline=None)
def test_agrees_with_sorting(numbers, data):
    count = data.draw(st.integers(1, len(numbers)))
    tensor = torch.tensor(numbers)
    assert all_but_largest(tensor, count).tolist() == by_sorting(tensor.tolist(), count)


@pytest.mark.parametrize("count", [1, 2, 4999, 9999, 10_000])
@pytest.mark.parametrize("round_to", [torch.float32, torch.bfloat16])
def test_agrees_with_sorting_large_tensors(count, round_to):
    numbers = torch.randn(10_000, generator=torch.Generator().manual_seed(1)).to(round_to).float()
    before = numbers.clone()
    marked = all_but_largest(numbers.view(100, 100), count)
    assert marked.shape == (100, 100)
    assert marked.view(-1).tolist() == by_sorting(numbers.tolist(), count)
    assert torch.equal(numbers, before)


def test_equals_are_kept_from_the_lowest_row_major_index():
    tensor = torch.tensor([[1.0, -2.0], [2.0, 2.0]])
    assert all_but_largest(tensor, 2).tolist() == [[True, False], [False, True]]
    assert all_but_largest(tensor.T, 2).tolist() == [[True, False], [False, True]]
    assert all_but_largest(torch.zeros(3), 2).tolist() == [False, False, True]


def test_not_a_number_counts_as_largest():
    assert all_but_largest(torch.tensor([math.inf, -math.nan, 1.0]), 1).tolist() == [True, False, True]


@given(st.integers(1, 400), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_ties_keeps_exactly_floor_of_density_times_size(size, density):
    base, tensor = torch.zeros(size), torch.arange(1.0, size + 1)
    ties = method("ties")
    merged = ties([tensor], base, ties.complete({}, [{"weight": 1.0, "density": density}]), lambda _: base)
    expected = 0 if density == 0 else max(1, math.floor(density * size))
    assert merged.count_nonzero() == expected
    assert torch.equal(merged[size - expected :], tensor[size - expected :])
