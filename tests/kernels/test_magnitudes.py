"""Which elements are kept: exactly so many, and always the same ones."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.kernels import magnitudes
from evomerge.kernels.magnitudes import Magnitudes

from ..methods.inputs import complete, merge_tensors, method


def kept(tensor, count, *, listed=False):
    """Which elements are the `count` largest, as `Magnitudes` names them."""
    flat = tensor.reshape(-1)
    order = Magnitudes(lambda start, stop: flat[start:stop].abs(), len(flat), kept=listed)
    magnitude, _, position = order.threshold(count)
    sizes = np.abs(flat.numpy())
    return (
        (sizes > magnitude) | np.isnan(sizes) | ((sizes == magnitude) & (np.arange(len(sizes)) < position))
    ).tolist()


def by_sorting(numbers, count):
    """The `count` largest magnitudes, the first of equals being kept."""
    chosen = np.zeros(len(numbers), bool)
    chosen[np.argsort(-np.abs(np.array(numbers)), kind="stable")[:count]] = True
    return chosen.tolist()


# Few values make many equals; any float32 bits make neighbours that differ in their last bit only.
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1.0000001, -1.0000001, 1e-45, math.inf, -math.inf])
lists = st.lists(few, min_size=1, max_size=40) | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40)


@given(lists, st.data())
@settings(max_examples=300, deadline=None)
def test_agrees_with_sorting(numbers, data):
    count = data.draw(st.integers(1, len(numbers)))
    tensor = torch.tensor(numbers)
    want = by_sorting(tensor.tolist(), count)
    assert kept(tensor, count) == want
    assert kept(tensor, count, listed=True) == want


@pytest.mark.parametrize("count", [1, 2, 49_999, 300_000])
@pytest.mark.parametrize("round_to", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("way", ["listed", "held", "read again"])
def test_agrees_with_sorting_large_tensors(count, round_to, way, monkeypatch):
    numbers = torch.randn(300_000, generator=torch.Generator().manual_seed(1)).to(round_to).float()
    if way == "read again":
        monkeypatch.setattr(magnitudes, "_HELD", 0)
    assert kept(numbers, count, listed=way == "listed") == by_sorting(numbers.tolist(), count)


def test_a_threshold_among_distinct_magnitudes_takes_one_pass(monkeypatch):
    monkeypatch.setattr(magnitudes, "_HELD", 0)
    numbers = torch.randperm(300_000, generator=torch.Generator().manual_seed(1)).float()
    lengths = []

    def read(start, stop):
        lengths.append(stop - start)
        return numbers[start:stop]

    order = Magnitudes(read, len(numbers))
    lengths.clear()
    assert order.threshold(1000).magnitude == 299_000
    assert sum(lengths) == len(numbers)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("count", [1, 1000, 100_000, 299_999])
def test_a_sample_may_be_unlike_the_rest(count, held, monkeypatch):
    """All that a sample can see are the smallest, or the largest."""
    monkeypatch.setattr(magnitudes, "_HELD", 1 << 22 if held else 0)
    numbers = torch.rand(300_000, generator=torch.Generator().manual_seed(1)) + 1
    for scale in (1e-3, 1e3):
        odd = numbers.clone()
        odd.view(-1, 100)[:, :70] *= scale
        odd[: magnitudes._RUN] *= scale
        assert kept(odd, count) == by_sorting(odd.tolist(), count)


def test_equals_are_kept_from_the_lowest_row_major_index():
    assert kept(torch.tensor([[1.0, -2.0], [2.0, 2.0]]), 2) == [False, True, True, False]
    assert kept(torch.zeros(3), 2) == [True, True, False]


def test_not_a_number_counts_as_largest():
    tensor = torch.tensor([math.inf, -math.nan, 1.0])
    order = Magnitudes(lambda start, stop: tensor[start:stop].abs(), 3)
    assert math.isnan(order.threshold(1).magnitude)
    assert order.threshold(2).magnitude == math.inf


def test_one_threshold_after_another():
    tensor = torch.tensor([3.0, 1.0, 2.0])
    order = Magnitudes(lambda start, stop: tensor[start:stop].clone(), 3, kept=True)
    assert [order.threshold(count).magnitude for count in (1, 2, 2, 3, 1)] == [3.0, 2.0, 2.0, 1.0, 3.0]


@given(st.integers(1, 400), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_ties_keeps_exactly_floor_of_density_times_size(size, density):
    base, tensor = torch.zeros(size), torch.arange(1.0, size + 1)
    ties = method("ties")
    merged = merge_tensors(ties, [tensor], base, complete(ties, {}, [{"weight": 1.0, "density": density}]))
    expected = 0 if density == 0 else max(1, math.floor(density * size))
    assert merged.count_nonzero() == expected
    assert torch.equal(merged[size - expected :], tensor[size - expected :])
