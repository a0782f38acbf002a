"""Sums in float64 whose bits do not depend on the number of threads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.methods.reduction import inner_product, l1_norm

# Around the edges of a row and a block.
SIZES = [0, 1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 4097]


@pytest.mark.parametrize("size", SIZES)
def test_sums_every_element_once(size):
    generator = torch.Generator().manual_seed(size)
    left, right = torch.randn(2, size, generator=generator).unbind()
    products = (left.double() * right.double()).tolist()
    bound = 1e-14 * math.fsum(map(abs, products))
    assert abs(inner_product(left, right) - math.fsum(products)) <= bound
    assert l1_norm(left) == pytest.approx(math.fsum(map(abs, left.tolist())), rel=1e-14)


@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), max_size=50))
@settings(max_examples=50, deadline=None)
def test_l1_norm_is_the_sum_of_magnitudes(numbers):
    assert l1_norm(torch.tensor(numbers)) == pytest.approx(math.fsum(map(abs, numbers)), rel=1e-14)


def test_bits_do_not_depend_on_threads_or_layout():
    tensor = torch.randn(1237, 1001, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = l1_norm(tensor), inner_product(tensor, tensor)
        torch.set_num_threads(2)
        assert (l1_norm(tensor), inner_product(tensor, tensor)) == alone
        turned = tensor.T.contiguous().T
        assert (l1_norm(turned), inner_product(turned, tensor)) == alone
    finally:
        torch.set_num_threads(before)


def test_infinities_do_not_raise():
    tensor = torch.tensor([math.inf, -math.inf, 1.0])
    assert l1_norm(tensor) == math.inf
    assert math.isnan(inner_product(tensor, torch.ones(3)))
