"""Every method against its slow float64 twin."""

import numpy as np
import pytest
import torch

from evomerge.errors import MergeError
from evomerge.kernels.noise import FIRST, LEVELS, noise_piece
from evomerge.methods import METHODS

from .inputs import complete, draw, merge_tensors, method, result_of, same_bits
from .reference import TWINS

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 5), (33, 31)]
KINDS = ["normal", "equal magnitudes", "copies", "one copy", "zeros", "tiny", "far apart"]
TOLERANCE = 2e-6


def twin_of(method, arguments):
    return TWINS[method.name](
        [tensor.numpy() for tensor in arguments.tensors],
        None if arguments.base is None else arguments.base.numpy(),
        arguments.parameters.shared,
        arguments.parameters.models,
        arguments.noise,
    )


def assert_close(got, want, arguments):
    inputs = [*arguments.tensors, *([] if arguments.base is None else [arguments.base])]
    clear = ~np.isnan(want)
    scale = max([np.abs(want[clear]).max(initial=0), *(float(t.abs().max()) for t in inputs)])
    error = np.abs(got.numpy().astype(np.float64) - want)[clear]
    assert error.max(initial=0) <= TOLERANCE * scale, arguments.parameters


def test_every_method_has_a_twin():
    assert set(TWINS) == set(METHODS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_agrees_with_its_twin(name, kind):
    compared = 0
    for shape in SHAPES:
        for seed in range(8):
            dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
            arguments = draw(METHODS[name], shape, seed, kind, dtype)
            want = np.asarray(twin_of(METHODS[name], arguments))
            assert_close(arguments.merge(METHODS[name]), want, arguments)
            # What a search keeps between candidates changes no bit.
            found = METHODS[name](arguments.operands(kept=True), arguments.parameters)
            assert same_bits(result_of(found, shape), arguments.merge(METHODS[name]))
            compared += int((~np.isnan(want)).sum())
    # Elements left out as hanging on rounding must stay the exception.
    assert compared > 0.7 * 8 * sum(np.prod(shape, dtype=int) for shape in SHAPES)


def merge(name, models, base=None, each=(), **shared):
    """Merges lists of numbers."""
    chosen = method(name)
    tensors = [torch.tensor(numbers) for numbers in models]
    parameters = complete(chosen, {key.rstrip("_"): value for key, value in shared.items()}, each)
    return merge_tensors(chosen, tensors, None if base is None else torch.tensor(base), parameters, "w").tolist()


# Worked by hand, so that a twin that errs with its method is seen.


def test_linear_by_hand():
    each = [{"weight": 3.0}, {"weight": 1.0}]
    assert merge("linear", [[4.0, 8.0], [0.0, -8.0]], each=each) == [3.0, 4.0]
    assert merge("linear", [[4.0, 8.0], [0.0, -8.0]], each=each, normalize=False) == [12.0, 16.0]


def test_slerp_by_hand():
    half = merge("slerp", [[0.0, 2.0]], base=[2.0, 0.0], each=[{}], t=0.5)
    assert half == pytest.approx([2**0.5, 2**0.5], rel=1e-6)  # on the arc, not the chord's [1, 1]
    assert merge("slerp", [[3.0, 3.0]], base=[1.0, 1.0], each=[{}], t=0.25) == [1.5, 1.5]  # parallel: a line


def test_task_arithmetic_by_hand():
    models, each = [[3.0, 1.0], [1.0, 5.0]], [{"weight": 0.5}, {"weight": -0.25}]
    assert merge("task_arithmetic", models, base=[1.0, 1.0], each=each) == [2.0, 0.0]
    assert merge("task_arithmetic", models, base=[1.0, 1.0], each=each, lambda_=2.0) == [3.0, -1.0]
    assert merge("task_arithmetic", models, base=[1.0, 1.0], each=each, normalize=True) == [5.0, -3.0]
    each = [{"weight": 0.5}, {"weight": -0.5}]  # weights that cancel divide by 1
    assert merge("task_arithmetic", models, base=[1.0, 1.0], each=each, normalize=True) == [2.0, -1.0]


def test_ties_by_hand():
    # Two of four are kept: [4, -3, 0, 0] and [0, 2, 3, 0]; elements 0 and 2 have one voter, and at
    # element 1 the sum is -1, so that only the first model counts.
    models = [[4.0, -3.0, 1.0, 0.0], [1.0, 2.0, 3.0, 0.0]]
    each = [{"weight": 1.0, "density": 0.5}] * 2
    assert merge("ties", models, base=[0.0] * 4, each=each) == [4.0, -3.0, 3.0, 0.0]
    # The weights vote: at 0.25 the first model is outvoted at element 1, and the mean is of those kept.
    each = [{"weight": 0.25}, {"weight": 0.75}]
    assert merge("ties", models, base=[0.0] * 4, each=each) == [1.75, 2.0, 2.5, 0.0]
    assert merge("ties", models, base=[0.0] * 4, each=each, normalize=False) == [1.75, 1.5, 2.5, 0.0]


def test_ties_elects_plus_where_the_votes_cancel():
    each = [{"weight": 1.0}, {"weight": 1.0}]
    assert merge("ties", [[-2.0, 2.0], [2.0, -2.0]], base=[0.0, 0.0], each=each) == [2.0, 2.0]


def test_ties_with_a_negative_weight_divides_by_the_sum_of_the_kept_weights():
    # w d is 2 and 1 at element 0: kept both, weights 1 and -0.5 sum to 0.5.
    each = [{"weight": 1.0}, {"weight": -0.5}]
    assert merge("ties", [[2.0, 2.0], [-2.0, 2.0]], base=[0.0, 0.0], each=each) == [6.0, 2.0]
    # Kept weights that cancel divide by 1.
    each = [{"weight": 0.5}, {"weight": -0.5}]
    assert merge("ties", [[2.0], [-2.0]], base=[0.0], each=each) == [2.0]


def test_dare_by_hand():
    low, high = (noise_piece(0, source, "w", 0, 4) < FIRST + LEVELS // 2 for source in (0, 1))
    assert low.tolist() == [False, False, False, True]
    assert high.tolist() == [False, True, True, False]
    models, each = [[1.0, 1.0, 3.0, 3.0], [2.0, 1.0, 1.0, -3.0]], [{"weight": 1.0, "density": 0.5}] * 2
    # Kept: [-, -, -, 3] of L1 norm 3 of 8, and [-, 1, 1, -] of 2 of 7.
    merged = merge("dare_linear", models, base=[0.0] * 4, each=each)
    assert merged == pytest.approx([0, 3.5, 3.5, 8])
    merged = merge("dare_linear", models, base=[0.0] * 4, each=each, rescale=False)
    assert merged == [0.0, 1.0, 1.0, 3.0]
    full = [{"weight": 1.0, "density": 0.5}, {"weight": 1.0}]
    merged = merge("dare_ties", models, base=[0.0] * 4, each=full)
    assert merged == pytest.approx([2, 1, 1, 8])


def test_breadcrumbs_by_hand():
    # Of five, the largest is an outlier, and two are kept.
    each = [{"weight": 1.0, "density": 0.4, "gamma": 0.2}]
    assert merge("breadcrumbs", [[5.0, -1.0, 2.0, 3.0, 4.0]], base=[0.0] * 5, each=each) == [0, 0, 0, 3, 4]
    # Where four are to be kept and two dropped as outliers, only one is.
    each = [{"weight": 1.0, "density": 0.8, "gamma": 0.4}]
    assert merge("breadcrumbs", [[5.0, -1.0, 2.0, 3.0, 4.0]], base=[0.0] * 5, each=each) == [0, -1, 2, 3, 4]


@pytest.mark.parametrize("rows", [1, 40])
def test_della_keeps_large_elements_rather(rows):
    size, density, epsilon = 20_000, 0.5, 0.25
    tensor = torch.arange(1.0, size + 1).repeat(rows, 1).squeeze(0)
    each = [{"weight": 1.0, "density": density, "epsilon": epsilon}]
    parameters = complete(method("della_linear"), {"rescale": False}, each)
    kept = merge_tensors(method("della_linear"), [tensor], torch.zeros_like(tensor), parameters, "w")
    kept = kept.bool().view(rows, size)
    for part in range(10):
        here = kept[:, part * size // 10 : (part + 1) * size // 10].float().mean().item()
        chance = density - epsilon + 2 * epsilon * (part + 0.5) / 10
        assert abs(here - chance) < 5 * (0.25 / (size / 10 * rows)) ** 0.5, part


def test_della_refuses_chances_outside_of_zero_to_one():
    each = [{"weight": 1.0, "density": 0.9, "epsilon": 0.15}]
    with pytest.raises(MergeError, match=r"from 0\.75 to 1\.05; expected both inside \(0, 1\), make epsilon smaller"):
        merge("della", [[1.0, 2.0]], base=[0.0, 0.0], each=each)


def test_ties_can_rescale():
    each = [{"weight": 1.0, "density": 0.5}]
    assert merge("ties", [[3.0, 1.0, 1.0, -1.0]], base=[0.0] * 4, each=each, rescale=True) == [4.5, 1.5, 0, 0]


def test_passthrough_by_hand():
    assert merge("passthrough", [[1.0, -2.0]], each=[{"scale": 0.5}]) == [0.5, -1.0]
    assert merge("passthrough", [[1.0, -2.0]], each=[{}]) == [1.0, -2.0]
    # The weight of a norm that multiplies by 1 + weight, for 3 times the norm: 3 (1 + w) - 1.
    assert merge("passthrough", [[1.0, -0.5]], each=[{"scale": 3.0, "shift": 2.0}]) == [5.0, 0.5]


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_random_methods_keep_the_share_that_they_declare(name):
    size, density = 200_000, 0.3
    base, tensor = torch.zeros(size), torch.ones(size)
    parameters = complete(method(name), {"rescale": False, "seed": 3}, [{"weight": 1.0, "density": density}])
    kept = merge_tensors(method(name), [tensor], base, parameters, "w")
    rate = kept.mean().item()
    assert abs(rate - density) < 4 * (density * (1 - density) / size) ** 0.5
    # Independent of the neighbour: both are kept at the rate's square.
    both = (kept[1:] * kept[:-1]).mean().item()
    assert abs(both - density**2) < 5 * (density**2 / size) ** 0.5
