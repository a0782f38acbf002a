"""What every method in the table keeps to."""

import ast
import importlib
import inspect
import itertools
import math
import pkgutil

import numpy as np
import pytest
import torch

import evomerge.methods
from evomerge.errors import MergeError
from evomerge.methods import KNOWN_PARAMETERS, METHODS, MergeMethod, Parameter

from .inputs import Arguments, complete, defaults, draw, fewest_and_most, merge_tensors, method, same_bits

# Over the 2^15 elements from which torch shares work among threads, and odd.
LARGE = (331, 701)

every_method = pytest.mark.parametrize("method_", METHODS.values(), ids=METHODS.keys())


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@every_method
def test_declares_itself(method_):
    assert METHODS[method_.name] is method_
    assert method_.summary.endswith(".")
    assert "\n" not in method_.summary
    assert method_.paper.startswith("https://")
    assert method_.base in ("required", "endpoint", "optional", "unused")
    fewest, most = method_.models
    assert fewest >= 1
    assert most is None or most >= fewest


@every_method
def test_declares_its_parameters(method_):
    names = [parameter.name for parameter in method_.parameters]
    assert len(set(names)) == len(names)
    for parameter in method_.parameters:
        assert parameter.name in KNOWN_PARAMETERS
        assert parameter.summary.endswith(".")
        assert "\n" not in parameter.summary
        assert parameter.low < parameter.high
        if parameter.default is not None:
            assert parameter.fault(parameter.default) is None
        if parameter.start not in (None, "share"):
            assert parameter.fault(parameter.start) is None


def test_every_method_is_documented_where_it_is_defined():
    documented = set()
    for module_info in pkgutil.iter_modules(evomerge.methods.__path__):
        module = importlib.import_module(f"evomerge.methods.{module_info.name}")
        body = ast.parse(inspect.getsource(module)).body
        for statement, after in itertools.pairwise(body):
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                found = getattr(module, statement.targets[0].id)
                if isinstance(found, MergeMethod) and isinstance(after, ast.Expr):
                    assert found.paper in ast.literal_eval(after.value)
                    documented.add(found.name)
    assert documented == set(METHODS)


@every_method
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (5,), (4, 3, 2)])
def test_keeps_shape_dtype_and_arguments(method_, shape):
    for arguments in (defaults(method_, shape), *(draw(method_, shape, seed) for seed in range(6))):
        inputs = [*arguments.tensors, *([] if arguments.base is None else [arguments.base])]
        before = [tensor.clone() for tensor in inputs]
        merged = arguments.merge(method_)
        assert merged.shape == shape
        assert merged.dtype == torch.float32
        assert all(same_bits(now, then) for now, then in zip(inputs, before, strict=True))


@every_method
def test_merging_copies_of_the_base_gives_the_base(method_):
    for count in {fewest_and_most(method_)[0], fewest_and_most(method_)[1]}:
        arguments = defaults(method_, (37, 11), kind="copies", count=count)
        torch.testing.assert_close(arguments.merge(method_), arguments.tensors[0], rtol=3e-7, atol=0, msg=method_.name)
        if method_.base in ("required", "endpoint"):
            assert torch.equal(arguments.merge(method_), arguments.base)


@every_method
def test_bits_do_not_depend_on_the_number_of_threads(method_, threads):
    for arguments in (defaults(method_, LARGE), *(draw(method_, LARGE, seed) for seed in (1, 5))):
        threads(1)
        alone = arguments.merge(method_)
        threads(2)
        assert same_bits(alone, arguments.merge(method_))


@every_method
def test_bits_do_not_depend_on_memory_layout(method_):
    arguments = draw(method_, (13, 17), 5)

    def turned(tensor):
        return tensor.T.contiguous().T

    base = None if arguments.base is None else turned(arguments.base)
    tensors = [arguments.tensors[0], *(turned(tensor) for tensor in arguments.tensors[1:])]
    other = Arguments(tensors, base, arguments.parameters, arguments.noise)
    assert same_bits(arguments.merge(method_), other.merge(method_))
    tensors = [turned(tensor) for tensor in arguments.tensors]
    other = Arguments(tensors, base, arguments.parameters, arguments.noise)
    assert same_bits(arguments.merge(method_), other.merge(method_))


@every_method
def test_bits_do_not_depend_on_the_default_dtype_or_gradients(method_):
    arguments = draw(method_, (13, 17), 5)
    plain = arguments.merge(method_)
    for tensor in (*arguments.tensors, *([] if arguments.base is None else [arguments.base])):
        tensor.requires_grad_()
    torch.set_default_dtype(torch.bfloat16)
    try:
        merged = arguments.merge(method_)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(plain, merged.detach())
    assert merged.grad_fn is None


@every_method
def test_the_global_generator_is_neither_read_nor_moved(method_):
    arguments = draw(method_, (13, 17), 5)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = arguments.merge(method_)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert same_bits(first, arguments.merge(method_))


@every_method
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(method_, number):
    arguments = defaults(method_, (5, 7))
    arguments.tensors[0][2, 3] = number
    assert not arguments.merge(method_)[2, 3].isfinite()


@every_method
def test_names_tensors_that_do_not_fit(method_):
    good = defaults(method_, (3,))
    if len(good.tensors) > 1 or good.base is not None:
        inputs = [*good.tensors, *([] if good.base is None else [good.base])]
        inputs[-1] = torch.zeros(4)
        base = None if good.base is None else inputs.pop()
        said = rf"{method_.name}: expected .* one shape.* found \[3\] on cpu, \[4\] on cpu"
        with pytest.raises(MergeError, match=said):
            merge_tensors(method_, inputs, base, good.parameters)


@every_method
def test_each_value_that_is_out_of_range_is_told(method_):
    for parameter in method_.parameters:
        bad = [math.nan, math.inf, "high", None] if parameter.kind != "bool" else [2, "yes"]
        bad += [] if parameter.low == -math.inf else [parameter.low - 1]
        bad += [] if parameter.high == math.inf else [parameter.high + 0.01]
        for value in bad:
            assert parameter.fault(value) == f"{parameter.name} is {value!r}; expected {parameter.expected}"


def test_defaults_are_those_of_mergekit():
    normalize = {name: p.default for name, m in METHODS.items() for p in m.parameters if p.name == "normalize"}
    rescale = {name: p.default for name, m in METHODS.items() for p in m.parameters if p.name == "rescale"}
    assert {name for name, default in normalize.items() if default} == {"linear", "ties", "della"}
    random = {"dare_linear", "dare_ties", "della", "della_linear"}
    assert {name for name, default in rescale.items() if default} == random
    assert set(rescale) == {"ties", "breadcrumbs", "breadcrumbs_ties"} | random
    others = {
        "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False, "weight": None},
        "multislerp": {"normalize_weights": True, "eps": 1e-8, "weight": None},
        "karcher": {"max_iter": 10, "tol": 1e-5},
        "nearswap": {"t": None},
        "model_stock": {"filter_wise": False},
        "sce": {"select_topk": 1.0},
        "ram": {"epsilon": 1e-5},
        "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
        "arcee_fusion": {},
        "tsv": {"weight": 1.0, "lambda": 1.0, "rank": 1.0},
        "iso_c": {"weight": 1.0, "lambda": 1.0},
        "wudi": {"weight": 1.0, "lambda": 1.0},
    }
    for name, wanted in others.items():
        assert {p.name: p.default for p in method(name).parameters} == wanted


def test_parameters_say_what_they_expect():
    assert Parameter("n", "N.", kind="int", low=1, high=9).expected == "a whole number from 1 to 9"
    assert Parameter("n", "N.", low=0).expected == "a number, 0 or more"
    assert Parameter("n", "N.", high=0).expected == "a number, 0 or less"
    assert Parameter("n", "N.", kind="int").fault(2.5) == "n is 2.5; expected a whole number"
    assert Parameter("n", "N.", kind="int").fault(2.0) is None
    assert Parameter("n", "N.", kind="bool").fault(1) is None


def test_linear_refuses_to_normalize_weights_that_cancel():
    linear = method("linear")
    parameters = complete(linear, {}, [{"weight": 0.1}, {"weight": 0.2}, {"weight": -0.3}])
    with pytest.raises(MergeError, match=r"\[0\.1, 0\.2, -0\.3\] sum to zero.*set normalize to false"):
        merge_tensors(linear, [torch.zeros(2)] * 3, None, parameters)


def test_the_tables_know_mergekits_names():
    means = {"linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "passthrough"}
    family = {"task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear"}
    family |= {"breadcrumbs", "breadcrumbs_ties"}
    not_in_mergekit = {"tsv", "iso_c", "wudi"}
    assert means | family | {"sce", "ram", "ramplus_tl", "arcee_fusion"} | not_in_mergekit == set(METHODS)
    known = {"weight", "density", "gamma", "epsilon", "normalize", "rescale", "lambda", "t", "scale", "int8_mask"}
    known |= {"nuslerp_flatten", "nuslerp_row_wise", "normalize_weights", "eps", "max_iter", "tol", "filter_wise"}
    known |= {"select_topk", "r", "alpha", "shift"}
    assert known | {"seed", "rank"} == KNOWN_PARAMETERS


def test_draws_cover_the_declared_kinds():
    """The suite above is only as good as its arguments: both flags and several models must come up."""
    drawn = [draw(method("ties"), (2,), seed).parameters for seed in range(8)]
    assert {p.shared["normalize"] for p in drawn} == {True, False}
    assert len({len(p.models) for p in drawn}) > 1
    assert np.unique([own["density"] for p in drawn for own in p.models]).size > 3
