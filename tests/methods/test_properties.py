"""What the mathematics of the methods promises, for any tensors and values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.methods import METHODS

from .inputs import complete, merge_tensors, method

weights = st.lists(st.floats(0.05, 2.0), min_size=1, max_size=4)
seeds = st.integers(0, 10_000)
shapes = st.sampled_from([(1,), (6,), (4, 5), (3, 2, 4)])
quick = settings(max_examples=40, deadline=None)


def normal(seed, shape, count, scale=1.0):
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).mul_(scale))


def merge(name, tensors, base=None, each=(), seed=0, **shared):
    chosen = method(name)
    if any(parameter.name == "seed" for parameter in chosen.parameters):
        shared["seed"] = seed
    parameters = complete(chosen, {key.rstrip("_"): value for key, value in shared.items()}, each)
    return merge_tensors(chosen, tensors, base, parameters, "w")


def assert_near(left, right, scale=1.0):
    torch.testing.assert_close(left, right, rtol=0, atol=2e-6 * max(1.0, scale))


@given(seeds, shapes, weights)
@quick
def test_linear_lies_between_its_models(seed, shape, weights):
    tensors = normal(seed, shape, len(weights))
    merged = merge("linear", tensors, each=[{"weight": w} for w in weights])
    stack = torch.stack(tensors)
    assert (merged >= stack.amin(0) - 1e-6).all()
    assert (merged <= stack.amax(0) + 1e-6).all()


@given(seeds, shapes, weights, st.floats(0.1, 5))
@quick
def test_linear_does_not_see_a_common_factor_of_the_weights(seed, shape, weights, factor):
    tensors = normal(seed, shape, len(weights))
    one = merge("linear", tensors, each=[{"weight": w} for w in weights])
    two = merge("linear", tensors, each=[{"weight": w * factor} for w in weights])
    assert_near(one, two)


@given(seeds, shapes, st.floats(0, 1))
@quick
def test_slerp_read_from_the_other_end_is_the_same(seed, shape, t):
    a, b = normal(seed, shape, 2)
    assert_near(merge("slerp", [b], a, [{}], t=t), merge("slerp", [a], b, [{}], t=1 - t), 4.0)


@given(seeds, shapes, st.booleans())
@quick
def test_slerp_ends_are_its_models(seed, shape, close):
    a, b = normal(seed, shape, 2)
    b = a + 0.001 * b if close else b
    assert torch.equal(merge("slerp", [b], a, [{}], t=0.0), a)
    assert torch.equal(merge("slerp", [b], a, [{}], t=1.0), b)


@given(seeds, st.floats(0, 1))
@quick
def test_slerp_of_equal_norms_keeps_the_norm(seed, t):
    a, b = (tensor / tensor.norm() for tensor in normal(seed, (50,), 2))
    assert merge("slerp", [b], a, [{}], t=t).norm().item() == pytest.approx(1, abs=1e-5)


@given(seeds, shapes, weights, st.floats(-2, 2))
@quick
def test_lambda_scales_what_is_added_to_the_base(seed, shape, weights, lambda_):
    base, *tensors = normal(seed, shape, len(weights) + 1)
    for name in ("task_arithmetic", "ties", "dare_linear", "dare_ties"):
        each = [{"weight": w} for w in weights]
        once = merge(name, tensors, base, each) - base
        scaled = merge(name, tensors, base, each, lambda_=lambda_) - base
        assert_near(scaled, once * lambda_, 100.0)


@given(seeds, shapes, weights, st.randoms(use_true_random=False))
@quick
def test_the_order_of_models_does_not_matter(seed, shape, weights, random):
    base, *tensors = normal(seed, shape, len(weights) + 1)
    order = random.sample(range(len(weights)), len(weights))
    for name in ("linear", "task_arithmetic", "ties"):
        # Whole, so that no vote hangs on rounding: |sum| of votes is then never within 1e-6 of zero.
        options = [{"weight": w, **({"density": 0.5} if name == "ties" else {})} for w in weights]
        anchor = None if name == "linear" else base
        one = merge(name, tensors, anchor, options)
        two = merge(name, [tensors[i] for i in order], anchor, [options[i] for i in order])
        if name != "ties":
            assert_near(one, two, 20.0)
        else:
            # A vote within rounding of zero may go either way; hardly any does.
            assert ((one - two).abs() > 1e-4).sum() <= 1


@given(seeds, shapes, st.floats(0.05, 2))
@quick
def test_one_whole_model_normalized_is_that_model(seed, shape, weight):
    base, tensor = normal(seed, shape, 2)
    for name in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"):
        anchor = None if name == "linear" else base
        assert_near(merge(name, [tensor], anchor, [{"weight": weight}], normalize=True), tensor, 5.0)


@given(seeds, st.floats(0.05, 0.95), st.sampled_from(["ties", "dare_linear", "dare_ties"]))
@quick
def test_rescaling_restores_the_l1_norm(seed, density, name):
    base, tensor = torch.zeros(64), normal(seed, (64,), 1)[0]
    each = [{"weight": 1.0, "density": density}]
    merged = merge(name, [tensor], base, each, seed=seed, rescale=True, normalize=False)
    if merged.any():
        assert merged.abs().sum().item() == pytest.approx(tensor.abs().sum().item(), rel=1e-5)


@given(seeds, st.floats(0, 1), st.sampled_from(["ties", "dare_linear", "dare_ties"]))
@quick
def test_what_is_dropped_stays_the_base(seed, density, name):
    base, tensor = normal(seed, (64,), 2)
    merged = merge(name, [tensor], base, [{"weight": 1.0, "density": density}], rescale=False)
    near = (merged - tensor).abs() < 1e-6
    assert (near | (merged == base)).all()


@given(seeds, shapes)
@quick
def test_a_model_without_weight_does_not_take_part(seed, shape):
    base, one, two = normal(seed, shape, 3)
    for name, chosen in METHODS.items():
        weight = [p for p in chosen.parameters if p.name == "weight"]
        if weight and chosen.models[0] == 1:
            anchor = None if chosen.base == "unused" else base
            with_it = merge(name, [one, two], anchor, [{"weight": 0.7}, {"weight": 0.0}])
            assert_near(with_it, merge(name, [one], anchor, [{"weight": 0.7}]))
