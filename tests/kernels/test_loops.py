"""Compiled loops: the very bits of the kernels run by torch, whatever the numbers, dtypes and methods."""

import itertools
import math
import shutil

import numpy as np
import pytest
import torch

from evomerge.kernels import LazyTensor
from evomerge.kernels.fused import PIECE, Fused, combination
from evomerge.kernels.loops import loop
from evomerge.kernels.trace import hardshrink, maximum, trace
from evomerge.methods import METHODS

from ..methods.inputs import draw, same_bits, tensors_of

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-45, -1e-45, 1.1754944e-38, 3e38, -3e38, math.inf, -math.inf, math.nan)


def twice(x, y):
    """Something that needs one of its steps after others."""
    return (x * y - x) / (y + x)


OPERATIONS = {
    "+": (lambda x, y, n: x + y, lambda x, y, n: x + y),
    "3 +": (lambda x, y, n: 3 + x, lambda x, y, n: x + 3),
    "-": (lambda x, y, n: x - y, lambda x, y, n: x - y),
    "1 -": (lambda x, y, n: 1 - x, lambda x, y, n: 1 - x),
    "*": (lambda x, y, n: x * y, lambda x, y, n: x * y),
    "* a number": (lambda x, y, n: n * x, lambda x, y, n: x.mul(n)),
    "* a constant": (lambda x, y, n: x * 0.1, lambda x, y, n: x * 0.1),
    "/": (lambda x, y, n: x / y, lambda x, y, n: x / y),
    "1 /": (lambda x, y, n: 1 / x, lambda x, y, n: x.reciprocal()),
    "abs": (lambda x, y, n: abs(x), lambda x, y, n: x.abs()),
    "<": (lambda x, y, n: x < y, lambda x, y, n: (x < y).float()),
    "<=": (lambda x, y, n: x <= y, lambda x, y, n: (x <= y).float()),
    ">": (lambda x, y, n: x > y, lambda x, y, n: (x > y).float()),
    ">=": (lambda x, y, n: x >= y, lambda x, y, n: (x >= y).float()),
    "==": (lambda x, y, n: x == y, lambda x, y, n: (x == y).float()),
    "< a number": (lambda x, y, n: x < n, lambda x, y, n: (x < n).float()),
    "a constant <=": (lambda x, y, n: 0.5 <= x, lambda x, y, n: (x >= 0.5).float()),  # noqa: SIM300
    "maximum": (lambda x, y, n: maximum(x, y), lambda x, y, n: x.maximum(y)),
    "clip": (lambda x, y, n: maximum(x, 0.5), lambda x, y, n: x.clamp(0.5)),
    "hardshrink": (lambda x, y, n: hardshrink(x, n), lambda x, y, n: x.hardshrink(n)),
    "hardshrink by less than 0": (lambda x, y, n: hardshrink(x, abs(n) * -1), lambda x, y, n: x.hardshrink(-abs(n))),
    "count": (lambda x, y, n: (x > 0) + (y > 0) + 1, lambda x, y, n: (x > 0) * 1.0 + (y > 0) * 1.0 + 1),
    "one of the blocks": (lambda x, y, n: y, lambda x, y, n: y),
    "used twice": (lambda x, y, n: twice(x + 1, y), lambda x, y, n: twice(x + 1, y)),
    "numbers alone": (lambda x, y, n: x + (n + n), lambda x, y, n: x + (n + n)),
    "multiply, then add": (lambda x, y, n: x * y + x, lambda x, y, n: (x * y).add_(x)),
}
"""What a kernel says of two elements and a number, and what torch is told to do for it."""


def pairs() -> list[torch.Tensor]:
    """Every pair of special numbers, and many of others."""
    rng = np.random.default_rng(0)
    special = np.array(list(itertools.product(SPECIAL, SPECIAL)), np.float32).T
    some = rng.standard_normal((2, 1001)) * 10.0 ** rng.integers(-30, 30, (2, 1001))
    return [torch.from_numpy(row) for row in np.concatenate([special, some.astype(np.float32)], axis=1)]


def run(kernel, blocks, numbers, rounded=torch.float32, stored=None):
    """What the compiled loop gives, and what it says of it."""
    stored = stored or rounded
    output = torch.full(blocks[0].shape, 7.0, dtype=stored)
    made = loop(kernel, tuple(block.dtype for block in blocks), len(numbers), rounded, stored)
    assert made is not None
    return output, made(blocks, [(len(output), numbers)], output)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("way", ["compiled", "by torch"])
def test_an_operation_gives_the_bits_that_torch_gives(name, way):
    blocks = pairs()
    before = [block.clone() for block in blocks]
    said, meant = OPERATIONS[name]

    def kernel(elements, numbers):
        return said(*elements, *numbers)

    for number in (0.3, 0.0, math.inf):
        expected = meant(*before, number)
        if way == "compiled":
            found, _ = run(kernel, blocks, [number])
        else:
            found = trace(kernel, 2, 1).run(blocks, [number])
        # Which of its many bits NaN has is nobody's to say.
        clear = ~expected.isnan()
        assert torch.equal(found.isnan(), ~clear)
        assert torch.equal(found[clear].view(torch.int32), expected[clear].view(torch.int32))
    assert all(same_bits(block, old) for block, old in zip(blocks, before, strict=True) if not old.isnan().any())


def test_a_kernel_cannot_branch_on_values():
    with pytest.raises(TypeError, match="cannot branch on the value of an element; multiply by a comparison instead"):
        trace(lambda blocks, numbers: blocks[0] if blocks[0] > 0 else blocks[1], 2, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounded", DTYPES[:3])
def test_reading_and_rounding_give_the_bits_that_torch_gives(dtype, rounded):
    numbers = torch.cat([pairs()[0], torch.arange(-70000, 70000, 7) * 1.0, torch.linspace(-1e-6, 1e-6, 999)]).to(dtype)
    expected = numbers.float().to(rounded)
    found, _ = run(combination, [numbers], [1.0], rounded)
    clear = ~expected.isnan()
    assert torch.equal(found[clear], expected[clear])
    assert torch.equal(found[clear].signbit(), expected[clear].signbit())
    wide, _ = run(combination, [numbers], [1.0], rounded, torch.float32)
    assert torch.equal(wide[clear], expected[clear].float())


@pytest.mark.parametrize("rounded", DTYPES[:3])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_is_not_finite_is_told_wherever_it_is(bad, rounded):
    finite = bad == 3.4e38 and rounded == torch.float32  # else it is rounded to infinity
    for place in (0, 5, 999):
        numbers = torch.ones(1000)
        assert run(combination, [numbers], [1.0], rounded)[1]
        numbers[place] = bad
        assert run(combination, [numbers], [1.0], rounded)[1] == finite
    # All bits of the mantissa: rounding must not carry into the sign.
    numbers.view(torch.int32)[place] = 0x7FFFFFFF
    assert not run(combination, [numbers], [1.0], rounded)[1]


def test_numbers_hold_for_their_span():
    source = LazyTensor.of(torch.ones(10))
    fused = Fused(combination, (source,), ((3, (2.0,)), (4, (5.0,)), (10, (-1.0,))))
    for start, stop in ((0, 10), (2, 4), (3, 9), (4, 10), (0, 1)):
        output = torch.empty(stop - start)
        assert fused.merge(start, stop, output)
        assert output.tolist() == ([2.0] * 3 + [5.0] + [-1.0] * 6)[start:stop]


def test_a_block_need_not_be_contiguous():
    output = torch.empty(50)
    source = LazyTensor((50,), torch.device("cpu"), lambda start, stop: torch.arange(100.0)[::2])
    assert Fused.uniform(combination, [source], [1.0]).merge(0, 50, output)
    assert torch.equal(output, torch.arange(0, 100.0, 2))


def test_a_dtype_without_a_loop_is_merged_by_torch():
    eighths = torch.tensor([0.5, -1.0, 2.0]).to(torch.float8_e4m3fn)
    assert loop(combination, (eighths.dtype,), 1, torch.float32, torch.float32) is None
    output = torch.empty(3)
    assert Fused.uniform(combination, [LazyTensor.of(eighths)], [3.0]).merge(0, 3, output)
    assert output.tolist() == [1.5, -3.0, 6.0]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_bits_without_a_compiler(name, use_compiler):
    """Over more than a piece, of models stored in each dtype, with equal magnitudes and zeros."""
    cases = []
    for seed, (kind, dtype) in enumerate(itertools.product(("normal", "equal magnitudes"), DTYPES[:3])):
        shape = (PIECE // 64 + 3, 65) if seed == 0 and name not in ("tsv", "iso_c", "wudi") else (129, 65)
        arguments = draw(METHODS[name], shape, seed, kind, dtype)
        # As they are stored; the base in another dtype than the rest.
        arguments.tensors = [tensor.to(dtype) for tensor in arguments.tensors]
        cases.append((arguments, arguments.merge(METHODS[name])))
    use_compiler("")
    for arguments, compiled in cases:
        assert same_bits(compiled, arguments.merge(METHODS[name])), arguments.parameters


def test_a_kernel_is_compiled_once_for_all_numbers():
    base, (tensor,) = tensors_of("normal", (64,), 1, np.random.default_rng(0))
    run(combination, [base, tensor], [0.1, 0.2])
    before = loop.cache_info().misses
    run(combination, [base, tensor], [0.3, 0.4])
    assert loop.cache_info().misses == before
