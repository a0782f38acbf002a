"""Uniform numbers depend on the seed, the source and the tensor's name, and on nothing else."""

import pytest
import torch

from evomerge.methods import method, noise_for, uniform

from .inputs import same_bits


def test_numbers_are_pinned():
    """A saved recipe must rebuild exactly with a later version."""
    numbers = uniform(0, 1, "model.layers.0.mlp.up_proj.weight", (3,), "cpu")
    assert [round(x * 2**24) for x in numbers.tolist()] == [491383, 8100135, 9343924]


def test_numbers_are_uniform_in_the_half_open_unit_interval():
    numbers = uniform(1, 2, "w", (100_000,), "cpu")
    assert numbers.dtype == torch.float32
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum().item()
    assert chi_square < 27.9  # 9 degrees of freedom, 1 in 1000


@pytest.mark.parametrize("other", [(8, 1, "a"), (7, 2, "a"), (7, 1, "b"), (71, 1, "a"), (7, 11, "a"), (-7, 1, "a")])
def test_each_part_of_the_key_matters(other):
    one, two = uniform(7, 1, "a", (4096,), "cpu"), uniform(*other, (4096,), "cpu")
    assert not torch.equal(one, two)
    correlation = torch.corrcoef(torch.stack([one, two]))[0, 1].item()
    assert abs(correlation) < 0.08  # five standard deviations


def test_nothing_else_matters():
    first = uniform(7, 1, "a", (64, 3), "cpu")
    torch.manual_seed(99)
    uniform(7, 2, "a", (5,), "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    again = noise_for(7, "a", (64, 3), "cpu")(1)
    torch.set_num_threads(before)
    assert same_bits(first, again)


def test_two_candidates_share_their_masks():
    """More density keeps what less density kept: candidates differ by their numbers, not by luck."""
    dare, base, tensor = method("dare_linear"), torch.zeros(999), torch.ones(999)

    def kept(density, seed=0):
        parameters = dare.complete({"rescale": False}, [{"weight": 1.0, "density": density}])
        return dare([tensor], base, parameters, noise_for(seed, "w", (999,), "cpu")).bool()

    assert (kept(0.6) | ~kept(0.3)).all()
    assert kept(0.6).sum() > kept(0.3).sum() > 0
    assert torch.equal(kept(0.3), kept(0.3))
    assert not torch.equal(kept(0.3), kept(0.3, seed=1))


def test_each_source_has_its_own_mask():
    dare, base, tensor = method("dare_linear"), torch.zeros(999), torch.ones(999)
    parameters = dare.complete({"rescale": False}, [{"weight": 1.0, "density": 0.5}, {"weight": 4.0, "density": 0.5}])
    merged = dare([tensor, tensor], base, parameters, noise_for(0, "w", (999,), "cpu"))
    assert set(merged.tolist()) == {0.0, 1.0, 4.0, 5.0}
