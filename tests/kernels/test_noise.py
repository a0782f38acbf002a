"""Random numbers depend on the seed, the source and the tensor's name, and on nothing else."""

import numpy as np
import pytest
import torch

from evomerge.kernels import PIECE
from evomerge.kernels.noise import FIRST, LEVELS, as_numbers, cut, noise_piece, number_of

from ..methods.inputs import Arguments, complete, merge_tensors, method


def test_numbers_are_pinned():
    """A saved recipe must rebuild exactly with a later version."""
    numbers = noise_piece(0, 1, "model.layers.0.mlp.up_proj.weight", 2, 3)
    assert numbers.dtype == np.int16
    assert numbers.tolist() == [1744, 25019, 28306]


def test_numbers_are_uniform():
    numbers = noise_piece(1, 2, "w", 0, 100_000)
    assert FIRST <= numbers.min() < FIRST + 8
    assert FIRST + LEVELS - 8 < numbers.max() < FIRST + LEVELS
    counts = np.histogram(numbers, bins=16, range=(FIRST, FIRST + LEVELS))[0]
    chi_square = ((counts - 6250) ** 2 / 6250).sum()
    assert chi_square < 37.7  # 15 degrees of freedom, 1 in 1000


@pytest.mark.parametrize(
    "other", [(8, 1, "a", 0), (7, 2, "a", 0), (7, 1, "b", 0), (71, 1, "a", 0), (7, 11, "a", 0), (7, 1, "a", 1)]
)
def test_each_part_of_the_key_matters(other):
    one, two = noise_piece(7, 1, "a", 0, 4096), noise_piece(*other, 4096)
    assert not np.array_equal(one, two)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.08  # five standard deviations


def test_a_longer_piece_begins_with_a_shorter_one():
    assert noise_piece(7, 1, "a", 0, 9)[:5].tolist() == noise_piece(7, 1, "a", 0, 5).tolist()


def test_a_tensor_reads_the_same_numbers_however_it_is_cut():
    tensor = torch.zeros(2 * PIECE + 100)
    arguments = Arguments([tensor], tensor, complete(method("dare_linear"), {}, [{"weight": 1.0}]))
    noise = arguments.operands().noise(3, 0)
    kept = arguments.operands(kept=True).noise(3, 0)
    whole = noise.piece(0, tensor.numel())
    assert torch.equal(whole, kept.piece(0, tensor.numel()))
    for start, stop in [(0, 10), (PIECE - 3, PIECE + 5), (PIECE, 2 * PIECE), (7, 2 * PIECE + 100)]:
        assert torch.equal(noise.piece(start, stop), whole[start:stop])
        assert torch.equal(kept.piece(start, stop), whole[start:stop])


def test_levels_read_as_numbers_keep_their_order():
    levels = torch.arange(FIRST, FIRST + LEVELS, dtype=torch.int16)
    numbers = as_numbers(levels).float()
    smallest = torch.finfo(torch.float32).tiny
    assert (numbers.diff() >= smallest).all()
    assert numbers[0] >= smallest
    assert numbers[-1].isfinite()
    assert [number_of(FIRST + level) for level in (0, 1, 777)] == numbers[[0, 1, 777]].tolist()
    assert number_of(FIRST + LEVELS) > numbers[-1]


def test_a_density_keeps_that_share_of_all_levels():
    assert [cut(density) for density in (0.5, 0.25, 1e-9, 1 - 1e-9)] == [
        FIRST + count for count in (LEVELS // 2, LEVELS // 4, 1, LEVELS)
    ]


def test_two_candidates_share_their_masks():
    """More density keeps what less density kept: candidates differ by their numbers, not by luck."""
    dare, base, tensor = method("dare_linear"), torch.zeros(999), torch.ones(999)

    def kept(density, seed=0):
        parameters = complete(dare, {"rescale": False, "seed": seed}, [{"weight": 1.0, "density": density}])
        return merge_tensors(dare, [tensor], base, parameters, "w").bool()

    assert (kept(0.6) | ~kept(0.3)).all()
    assert kept(0.6).sum() > kept(0.3).sum() > 0
    assert torch.equal(kept(0.3), kept(0.3))
    assert not torch.equal(kept(0.3), kept(0.3, seed=1))


def test_each_source_has_its_own_mask():
    dare, base, tensor = method("dare_linear"), torch.zeros(999), torch.ones(999)
    parameters = complete(dare, {"rescale": False}, [{"weight": 1.0, "density": 0.5}, {"weight": 4.0, "density": 0.5}])
    assert set(merge_tensors(dare, [tensor, tensor], base, parameters).tolist()) == {0.0, 1.0, 4.0, 5.0}
