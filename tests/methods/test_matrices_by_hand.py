"""The methods that see matrices, worked by hand."""

import math

import pytest
import torch

from .inputs import Arguments, complete, merge_tensors, method
from .test_by_hand import merge, weighing


def added(name, deltas, each=None, **shared):
    """What is added to a base of zeros."""
    zeros = torch.zeros_like(torch.tensor(deltas[0])).tolist()
    return torch.tensor(merge(name, deltas, base=zeros, each=each, **shared))


def near(found, want):
    torch.testing.assert_close(found, torch.tensor(want), rtol=1e-5, atol=1e-5)


def test_tsv_keeps_each_tasks_leading_vectors():
    # Two tasks share a rank of two: one vector each.
    deltas = [[[4.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 3.0]]]
    near(added("tsv", deltas), [[4.0, 0.0], [0.0, 3.0]])
    near(added("tsv", deltas, each=weighing(0.5, -1.0), **{"lambda": 2.0}), [[4.0, 0.0], [0.0, -6.0]])
    # Alone, a task keeps all; a share of a half, one of two; of nothing, nothing.
    near(added("tsv", deltas[:1]), deltas[0])
    near(added("tsv", deltas[:1], rank=0.5), [[4.0, 0.0], [0.0, 0.0]])
    near(added("tsv", deltas[:1], rank=0.0), [[0.0, 0.0], [0.0, 0.0]])


def test_tsv_turns_vectors_until_they_are_orthogonal():
    # Vectors at 0 and 45 degrees go to -22.5 and 67.5: a a^T and b b^T.
    deltas = [[[2.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 2.0]]]
    a, b = (torch.tensor([math.cos(angle), math.sin(angle)]) for angle in (-math.pi / 8, 3 * math.pi / 8))
    near(added("tsv", deltas), (2 * a.outer(a) + 4 * b.outer(b)).tolist())


def test_tsv_makes_up_no_directions():
    """Tasks alike share theirs, and one without change has none."""
    one = [[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    near(added("tsv", [one, one]), [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    nothing = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    near(added("tsv", [one, nothing]), [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_iso_c_makes_singular_values_alike():
    deltas = [[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]]
    near(added("iso_c", deltas), [[3.0, 0.0], [0.0, 3.0]])
    near(added("iso_c", deltas, each=weighing(1.0, -1.0)), [[3.0, 0.0], [0.0, -3.0]])
    near(added("iso_c", deltas, each=weighing(0.5, 2.0), **{"lambda": 2.0}), [[6.0, 0.0], [0.0, 6.0]])
    # A direction without a singular value counts in the mean, and stays without.
    near(added("iso_c", [[[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]), [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # A turn by 90 degrees has both singular values alike already.
    near(added("iso_c", [[[0.0, -3.0], [3.0, 0.0]]]), [[0.0, -3.0], [3.0, 0.0]])


def test_wudi_adds_up_what_does_not_interfere():
    near(added("wudi", [[[2.0, 0.0]], [[0.0, 3.0]]]), [[2.0, 3.0]])
    # Tasks that see the same inputs can only have the mean of what they want, whatever their lengths.
    near(added("wudi", [[[2.0, 0.0]], [[4.0, 0.0]]]), [[3.0, 0.0]])
    near(added("wudi", [[[2.0]], [[4.0]]], each=weighing(1.0, -0.5)), [[0.0]])
    # Both outputs of the first task see input 1: of its energy there is 1, of the second's 9/25 there and 16/25 at
    # input 2. Input 1 has (4 * 1 + 3 * 9/25) / (34/25) for the first row's output; input 2 is the second task's.
    a, b = [[4.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]]
    near(added("wudi", [a, b]), [[(4 + 27 / 25) / (34 / 25), 0.0], [0.0, 4.0]])


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (9, 9)])
def test_wudi_is_the_least_interference(shape):
    base, *tensors = torch.randn(4, *shape, generator=torch.Generator().manual_seed(5)).double()
    deltas = [tensor - base for tensor in tensors]

    def loss(merged):
        return sum((((merged - delta) @ delta.T) ** 2).sum() / (delta**2).sum() for delta in deltas).item()

    wudi = method("wudi")
    found = merge_tensors(wudi, [t.float() for t in tensors], base.float(), complete(wudi, {}, [{}] * 3)) - base
    least = loss(found)
    assert least < loss(sum(deltas)) / 3
    assert least < loss(sum(deltas) / 3)
    for seed in range(20):
        step = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
        assert loss(found + 0.01 * step) > least
    # Four rows of three tasks do not span thirty inputs: no loss is left.
    assert least < 1e-6 or shape != (4, 30)


@pytest.mark.parametrize("name", ["tsv", "iso_c", "wudi"])
def test_tensors_that_are_no_matrices_are_averaged(name):
    found = added(name, [[2.0, 4.0], [4.0, 0.0]])
    near(found, [3.0, 2.0])
    near(added(name, [[2.0, 4.0], [4.0, 0.0]], each=weighing(1.0, 3.0), **{"lambda": 0.5}), [3.5, 1.0])
    # One without weight is not counted.
    near(added(name, [[2.0, 4.0], [4.0, 0.0]], each=weighing(1.0, 0.0)), [2.0, 4.0])
    near(added(name, [[[[2.0]]], [[[4.0]]]]), [[[3.0]]])


@pytest.mark.parametrize("name", ["tsv", "iso_c", "wudi"])
@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_a_search_goes_from_candidate_to_candidate(name, shape):
    """What is kept of one candidate changes no bit of another."""
    chosen = method(name)
    base, *tensors = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    kept = Arguments(tensors, base, complete(chosen, {}, [{}] * 3)).operands(kept=True)
    for each, shared in [
        (weighing(1.0, 1.0, 1.0), {}),
        (weighing(0.3, -0.2, 1.0), {"lambda": 0.5}),
        (weighing(0.3, 0.0, 1.0), {"lambda": 0.5}),
        (weighing(1.0, 1.0, 1.0), {"lambda": 2.0}),
        (weighing(1.0, 1.0, 1.0), {"rank": 0.5} if name == "tsv" else {}),
    ]:
        arguments = Arguments(tensors, base, complete(chosen, shared, each))
        result = torch.empty(base.numel())
        found = chosen(kept, arguments.parameters)
        for start, stop in found.parts():
            found.merge(start, stop, result[start:stop])
        assert torch.equal(result.view(shape), arguments.merge(chosen))
