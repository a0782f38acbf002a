"""The methods of more than sums, worked by hand, so that a twin that errs with its method is seen."""

import math

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.kernels import PIECE

from .inputs import Arguments, complete, merge_tensors, method


def merge(name, models, base=None, each=None, **shared):
    """Merges lists of numbers."""
    chosen = method(name)
    tensors = [torch.tensor(numbers) for numbers in models]
    parameters = complete(chosen, shared, [{} for _ in models] if each is None else each)
    return merge_tensors(chosen, tensors, None if base is None else torch.tensor(base), parameters, "w").tolist()


def weighing(*weights):
    return [{"weight": weight} for weight in weights]


def test_nuslerp_goes_along_the_arc():
    # t = 1/3 of 90 degrees: sin 60 and sin 30.
    found = merge("nuslerp", [[2.0, 0.0], [0.0, 4.0]], each=weighing(2.0, 1.0))
    assert found == pytest.approx([2 * math.sin(math.pi / 3), 2.0])
    # With a base, from task vector to task vector.
    found = merge("nuslerp", [[3.0, 1.0], [1.0, 5.0]], base=[1.0, 1.0], each=weighing(2.0, 1.0))
    assert found == pytest.approx([1 + 2 * math.sin(math.pi / 3), 3.0])


def test_nuslerp_is_a_line_between_parallels_and_opposites():
    assert merge("nuslerp", [[1.0, 1.0], [5.0, 5.0]], each=weighing(3.0, 1.0)) == [2.0, 2.0]
    assert merge("nuslerp", [[1.0, 1.0], [-1.0, -1.0]], each=weighing(3.0, 1.0)) == [0.5, 0.5]
    # A vector without length is at a right angle to all others: sin 45 degrees of the one that has.
    half = merge("nuslerp", [[0.0, 0.0], [2.0, 0.0]], each=weighing(1.0, 1.0))
    assert half == pytest.approx([2**0.5, 0.0])


def test_nuslerp_takes_the_middle_where_weights_cancel():
    found = merge("nuslerp", [[2.0, 0.0], [0.0, 2.0]], each=weighing(1.0, -1.0))
    assert found == pytest.approx([2**0.5, 2**0.5])


def test_nuslerp_by_rows_and_by_columns():
    models = [[[2.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]]]
    each = weighing(1.0, 1.0)
    root = 2**0.5
    # The first rows are at a right angle, the second ones parallel.
    by_row = merge("nuslerp", models, each=each, nuslerp_flatten=False)
    assert by_row[0] == pytest.approx([root, root])
    assert by_row[1] == pytest.approx([2.0, 0.0])
    # Columns [2, 1] and [0, 3] have a cosine of 1/sqrt(5); [0, 0] is at a right angle to [2, 0].
    theta = math.acos(1 / 5**0.5)
    part = math.sin(theta / 2) / math.sin(theta)
    by_column = merge("nuslerp", models, each=each, nuslerp_flatten=False, nuslerp_row_wise=True)
    assert by_column == [pytest.approx([2 * part, root]), pytest.approx([4 * part, 0.0])]


@pytest.mark.parametrize("columns", [False, True])
def test_rows_and_columns_may_cross_pieces(columns):
    """Pieces end within rows, and a row of a wide tensor is longer than a piece."""
    rng = torch.Generator().manual_seed(3)
    chosen = method("nuslerp")
    for shape in [(3, PIECE // 2 + 7), (2, PIECE + 5), (PIECE + 9, 2)]:
        one, two = torch.randn(2, *shape, generator=rng)
        parameters = complete(chosen, {"nuslerp_flatten": False, "nuslerp_row_wise": columns}, weighing(1.0, 2.0))
        found = merge_tensors(chosen, [one, two], None, parameters)
        axis = 0 if columns else 1
        cosine = (one.double() * two).sum(axis) / (one.double().norm(dim=axis) * two.double().norm(dim=axis))
        theta = cosine.acos()
        start, end = (((part * theta).sin() / theta.sin()).unsqueeze(axis) for part in (1 / 3, 2 / 3))
        # Rows of two can be opposite to each other; then they are a line.
        clear = (theta.sin() > 1e-2).unsqueeze(axis).expand(shape)
        want = start * one + end * two
        torch.testing.assert_close(found.double()[clear], want[clear], rtol=1e-5, atol=1e-4)


def test_multislerp_averages_directions_and_lengths():
    # Directions (1, 0) and (0, 1), lengths 1 and 3: the diagonal, at length 2.
    found = merge("multislerp", [[1.0, 0.0], [0.0, 3.0]], each=weighing(1.0, 1.0))
    assert found == pytest.approx([2**0.5, 2**0.5])
    # Weights of 3 : 1 give direction (3, 1) and length 1.5.
    found = merge("multislerp", [[1.0, 0.0], [0.0, 3.0]], each=weighing(3.0, 1.0))
    assert found == pytest.approx([4.5 / 10**0.5, 1.5 / 10**0.5])
    # Not normalized: the length is 3 + 3.
    found = merge("multislerp", [[1.0, 0.0], [0.0, 3.0]], each=weighing(3.0, 1.0), normalize_weights=False)
    assert found == pytest.approx([18 / 10**0.5, 6 / 10**0.5])
    found = merge("multislerp", [[2.0, 1.0], [1.0, 4.0]], base=[1.0, 1.0], each=weighing(1.0, 1.0))
    assert found == pytest.approx([1 + 2**0.5, 1 + 2**0.5])


def test_multislerp_adds_up_where_directions_cancel():
    assert merge("multislerp", [[1.0, 0.0], [-3.0, 0.0]], each=weighing(1.0, 1.0)) == [-1.0, 0.0]
    # Models like their base have no directions.
    base = [1.0, 2.0]
    assert merge("multislerp", [base] * 3, base=base, each=weighing(1.0, 1.0, 1.0)) == base
    assert merge("multislerp", [[1.0, 2.0]], each=weighing(0.25)) == [1.0, 2.0]


def test_multislerp_refuses_to_normalize_weights_that_cancel():
    with pytest.raises(MergeError, match=r"\[1\.0, -1\.0\] sum to zero.*set normalize_weights to false"):
        merge("multislerp", [[1.0], [2.0]], each=weighing(1.0, -1.0))


def test_karcher_is_the_middle_of_the_arc():
    # Lengths 2 and 4 at a right angle: the diagonal at length 3.
    found = merge("karcher", [[2.0, 0.0], [0.0, 4.0]])
    assert found == pytest.approx([3 / 2**0.5, 3 / 2**0.5])
    # The mean of the axes of space is its diagonal.
    found = merge("karcher", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert found == pytest.approx([3**-0.5] * 3)
    # Two at 0 and one at 90 degrees: at 30, where the normalised mean of the three is at 26.6.
    found = merge("karcher", [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert found == pytest.approx([3**0.5 / 2, 0.5], abs=1e-5)
    start = merge("karcher", [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], max_iter=0)
    assert start == pytest.approx([2 / 5**0.5, 1 / 5**0.5])


def test_karcher_counts_zeros_in_the_length_alone():
    assert merge("karcher", [[4.0, 0.0], [0.0, 0.0]]) == [2.0, 0.0]
    assert merge("karcher", [[0.0, 0.0], [0.0, 0.0]]) == [0.0, 0.0]
    # Opposites have no middle: the first one's direction.
    assert merge("karcher", [[2.0, 0.0], [-4.0, 0.0]]) == [3.0, 0.0]


def test_nearswap_by_hand():
    # Nearer than t: taken over; else moved by t.
    assert merge("nearswap", [[1.25, 3.0, -3.0, 1.0]], base=[1.0] * 4, t=0.5) == [1.25, 1.5, 0.5, 1.0]
    assert merge("nearswap", [[1.25, 3.0]], base=[1.0, 1.0], t=0.0) == [1.0, 1.0]
    # Elements nearer than 1e-6 count as so far apart: t of 5e-7 moves by half their difference.
    near = merge("nearswap", [[4e-7]], base=[0.0], t=5e-7)
    assert near == pytest.approx([2e-7])


def test_nearswap_takes_over_exactly():
    base, other = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    nearswap = method("nearswap")
    assert torch.equal(merge_tensors(nearswap, [other], base, complete(nearswap, {"t": 9.0}, [{}])), other)
    assert torch.equal(merge_tensors(nearswap, [other], base, complete(nearswap, {"t": 0.0}, [{}])), base)


def test_model_stock_by_hand():
    # At a right angle the base is kept; parallel, the mean is taken.
    assert merge("model_stock", [[3.0, 1.0], [1.0, 4.0]], base=[1.0, 1.0]) == [1.0, 1.0]
    assert merge("model_stock", [[3.0, 1.0], [5.0, 1.0]], base=[1.0, 1.0]) == pytest.approx([4.0, 1.0])
    # At 60 degrees t = 2 (1/2) / (1 + 1/2) = 2/3 of the mean [1.5, 0.866].
    found = merge("model_stock", [[2.0, 0.0], [1.0, 3**0.5]], base=[0.0, 0.0])
    assert found == pytest.approx([1.0, 1 / 3**0.5])
    # Three: cosines 1, 0, 0, so c = 1/3 and t = 1 / (1 + 2/3) = 3/5 of the mean [2/3, 1/3].
    found = merge("model_stock", [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], base=[0.0, 0.0])
    assert found == pytest.approx([0.4, 0.2])
    # Opposites: no finite t.
    assert merge("model_stock", [[2.0, 1.0], [0.0, 1.0]], base=[1.0, 1.0]) == [1.0, 1.0]


def test_model_stock_by_rows():
    models = [[[2.0, 0.0], [1.0, 0.0]], [[4.0, 0.0], [0.0, 1.0]]]
    base = [[0.0, 0.0], [0.0, 0.0]]
    assert merge("model_stock", models, base=base, filter_wise=True)[0] == pytest.approx([3.0, 0.0])
    assert merge("model_stock", models, base=base, filter_wise=True)[1] == [0.0, 0.0]
    # As one vector: 8 over sqrt(5) sqrt(17), for all.
    c = 8 / 85**0.5
    t = 2 * c / (1 + c)
    assert merge("model_stock", models, base=base)[1] == pytest.approx([t / 2, t / 2])


def test_sce_by_hand():
    # Mean squares are 26/2 and 20/2: weights 26/46 and 20/46. At element 0 the sum is 1: the second is erased.
    models, base = [[5.0, 1.0], [-4.0, 2.0]], [0.0, 0.0]
    assert merge("sce", models, base=base) == pytest.approx([5.0, (26 + 40) / 46])


def test_sce_selects_where_models_differ_most():
    # Variances are 0, 1, 4, 1: three differ; a share of 0.4 of three is one, of 0.7 two, the first of equals.
    models, base = [[1.0, 1.0, 2.0, 1.0], [1.0, 3.0, 6.0, 3.0]], [0.0] * 4
    assert merge("sce", models, base=base, select_topk=0.4) == pytest.approx([0, 0, (4 * 2 + 36 * 6) / 40, 0])
    kept = merge("sce", models, base=base, select_topk=0.7)
    assert kept == pytest.approx([0, (5 * 1 + 45 * 3) / 50, (5 * 2 + 45 * 6) / 50, 0])
    assert merge("sce", models, base=base, select_topk=0.3) == base
    assert merge("sce", models, base=base, select_topk=0.0) == base


def test_sce_counts_models_alike_where_changes_are_small():
    found = merge("sce", [[1e-4, 0.0], [3e-4, 0.0]], base=[0.0, 0.0])
    assert found == pytest.approx([2e-4, 0.0])


def test_arcee_fusion_by_hand():
    # Importances are |d| times the row's divergence: here 0, 0.5 k, 8 k and thrice 0, whose elements 1, 2 and 3 of
    # 0 to 5 are zeros. So is the threshold, and no importance is less.
    base = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    model = [[1.0, 1.5, 9.0], [2.0, 2.0, 2.0]]
    assert merge("arcee_fusion", [model], base=base) == model
    # In one row of eight importances 1 to 7 and 30 times k: elements 1, 3, 5 of 0 to 7 are 2, 4, 6, and the
    # threshold is 4 + 1.5 (6 - 2) = 10.
    base = [0.0] * 8
    model = [1.0, -2.0, 3.0, 4.0, -5.0, 6.0, 7.0, 30.0]
    assert merge("arcee_fusion", [model], base=base) == [0.0] * 7 + [30.0]
    # One of exactly 10 is taken over.
    model[-1] = 10.0
    assert merge("arcee_fusion", [model], base=base) == [0.0] * 7 + [10.0]


def test_ram_by_hand():
    # Active: both, the first, none, the second.
    models, base = [[3.0, 2.0, 1.25, 1.0], [5.0, 1.0, 1.0, 0.0]], [1.0] * 4
    assert merge("ram", models, base=base, epsilon=0.5) == [4.0, 2.0, 1.0, 0.0]
    assert merge("ram", models, base=base) == [4.0, 2.0, 1.25, 0.0]
    # At epsilon itself an element is not active.
    assert merge("ram", [[1.5]], base=[1.0], epsilon=0.5) == [1.0]


def test_ramplus_by_hand():
    # The first shares 1 element of 3 and has 2 alone, ratio 1/2; the second shares 1 and has 1 alone, ratio 1.
    models, base = [[2.0, 4.0, 8.0, 0.0], [4.0, 0.0, 0.0, 16.0]], [0.0] * 4
    found = merge("ramplus_tl", models, base=base, r=0.5, alpha=0.75)
    assert found == [3.0, 4 * 1.25, 8 * 1.25, 16 * 1.375]
    assert merge("ramplus_tl", models, base=base, r=0.0, alpha=0.75) == merge("ram", models, base=base)


@pytest.mark.parametrize("name", ["nearswap", "ram", "ramplus_tl", "sce", "model_stock", "arcee_fusion"])
def test_nothing_is_written_into_what_is_merged(name):
    chosen = method(name)
    base, *tensors = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    tensors = tensors[: chosen.models[1] or 2]
    shared = {p.name: 0.5 for p in chosen.parameters if p.default is None} | (
        {"select_topk": 0.5} if name == "sce" else {}
    )
    arguments = Arguments(tensors, base, complete(chosen, shared, [{} for _ in tensors]))
    before = [tensor.clone() for tensor in (base, *tensors)]
    operands = arguments.operands(kept=True)
    first, second = (torch.empty(50), torch.empty(50))
    for result in (first, second):
        found = chosen(operands, arguments.parameters)
        for start, stop in found.parts():
            found.merge(start, stop, result[start:stop])
    assert torch.equal(first, second)
    assert all(torch.equal(now, then) for now, then in zip((base, *tensors), before, strict=True))


@pytest.mark.parametrize(("last", "expected"), [(0.0, 0.5), (1e-40, 0.5), (-1e-40, -0.5)])
def test_ties_elects_the_sign_of_the_smallest_sum(last, expected):
    """Two votes that cancel, and a third that is next to nothing."""
    tensors, base = [torch.tensor([number]) for number in (0.5, -0.5, last)], torch.zeros(1)
    parameters = complete(method("ties"), {"normalize": False}, [{"weight": 1.0}] * 3)
    assert merge_tensors(method("ties"), tensors, base, parameters).item() == pytest.approx(expected)
