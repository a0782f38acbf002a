"""Spaces of stacks: every genome decodes to a recipe within the bounds, and scales fold into its layers."""

import json
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, is_choice
from evomerge.search import IndicatorSpace, Layer, Stack, StackSpace

DEPTHS = (4, 6)


@dataclass(frozen=True)
class Fold:
    filters: tuple[str, ...] = ("o_proj", "down_proj")
    offset: bool = False


def recipe(**hole) -> Recipe:
    search = {"models": ["a", "b"], "repeats": 2, "min_layers": 3, "max_layers": 9, **hole}
    return Recipe.model_validate({"merge_method": "passthrough", "slices": {"search": search}, "dtype": "bfloat16"})


PLAIN = StackSpace(recipe(), DEPTHS)
SCALED = StackSpace(recipe(scale=[0.5, 1.5]), DEPTHS, Fold())
NUMBERS = st.integers(-3, 9) | st.floats() | st.integers()
ANY_DATA = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=30)


def layers_of(made: Recipe) -> list[tuple[str, int]]:
    assert isinstance(made.slices, tuple)
    return [(part.sources[0].model, layer) for part in made.slices for layer in range(*part.sources[0].layer_range)]


def factors_of(made: Recipe, parameter: str = "scale", filter_: str = "o_proj") -> list[float | None]:
    """The number of each layer of the result, None where its slice has no parameters."""
    found: list[float | None] = []
    for part in made.slices:
        value = part.sources[0].parameters.get(parameter)
        assert value is None or is_choice(value)
        number = None if value is None else next(rule.value for rule in value if rule.filter == filter_)
        found += [number] * part.num_layers
    return found


@pytest.mark.parametrize("space", [PLAIN, SCALED])
@given(data=ANY_DATA)
def test_any_list_of_numbers_is_a_stack_that_decodes_to_a_valid_recipe(space: StackSpace, data: list):
    stack = space.from_json(data)
    assert space.min_layers <= len(stack) <= space.max_layers
    assert max(Counter(layer[:2] for layer in stack).values()) <= space.repeats
    made = space.decode(stack)
    assert made.holes() == {}
    assert Recipe.parse(made.to_yaml()) == made
    assert layers_of(made) == [(space.models[layer.model], layer.layer) for layer in stack]
    assert all(0 <= layer < DEPTHS["ab".index(model)] for model, layer in layers_of(made))
    assert space.repaired(stack) == stack
    assert space.from_json(json.loads(json.dumps(space.to_json(stack)))) == stack


@given(seed=st.integers(0, 2**32 - 1))
def test_random_stacks_are_within_the_bounds_and_come_back_from_json(seed: int):
    for space in (PLAIN, SCALED):
        stack = space.sample(np.random.default_rng(seed))
        assert space.from_json(json.loads(json.dumps(space.to_json(stack)))) == stack


def test_random_stacks_differ_in_depth_and_use_every_layer():
    rng = np.random.default_rng(0)
    found = [PLAIN.sample(rng) for _ in range(500)]
    assert {len(stack) for stack in found} == set(range(3, 10))
    assert {layer for stack in found for layer in stack} == set(PLAIN.layers)


def test_layers_that_follow_each_other_are_one_slice_of_plain_mergekit():
    stack = [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (0, 2), (0, 2), (0, 1)]
    made = PLAIN.decode(tuple(Layer(*one) for one in stack))
    assert made.as_data() == {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": model, "layer_range": layers}]}
            for model, layers in [("a", [0, 2]), ("b", [2, 5]), ("a", [2, 3]), ("a", [2, 3]), ("a", [1, 2])]
        ],
        "dtype": "bfloat16",
    }


def test_a_stack_is_repaired_from_its_end():
    inside = [Layer(0, 0), Layer(1, 5), Layer(0, 0)]
    assert PLAIN.repaired([*inside, Layer(0, 0), Layer(-7, 99)]) == (*inside, Layer(0, 3))
    assert PLAIN.repaired([Layer(1, 0)]) == (Layer(1, 0), Layer(1, 0), Layer(1, 1))
    assert len(PLAIN.repaired(PLAIN.layers * 2)) == 9


def test_a_scale_divides_what_its_layer_and_all_after_it_add():
    scales = (1.0, 0.5, 1.0, 1.25, 1.5)
    stack: Stack = tuple(Layer(0, i % 4, scale) for i, scale in enumerate(scales))
    expected = [1 / math.prod(scales[: i + 1]) for i in range(len(scales))]
    made = SCALED.decode(stack)
    factors = factors_of(made)
    assert factors[0] is None  # a factor of 1 needs no parameters
    assert factors[1:] == pytest.approx(expected[1:], rel=1e-5)
    assert factors == factors_of(made, filter_="down_proj")
    # A scale of 1 changes nothing, so layers 1 and 2 are one slice.
    assert [part.num_layers for part in made.slices] == [1, 2, 1, 1]
    assert made.slices[1].sources[0].parameters["scale"][-1].filter is None
    assert made.slices[1].sources[0].parameters["scale"][-1].value == 1.0


def test_of_weights_stored_less_one_the_shift_follows():
    space = StackSpace(recipe(scale=[0.5, 1.5]), DEPTHS, Fold(("post_norm",), offset=True))
    made = space.decode((Layer(0, 0, 0.8), Layer(0, 1), Layer(0, 2)))
    assert factors_of(made, "scale", "post_norm") == [1.25] * 3
    assert factors_of(made, "shift", "post_norm") == [0.25] * 3
    assert made.slices[0].sources[0].parameters["shift"][-1].value == 0.0


def test_the_factors_of_a_deep_stack_of_small_scales_stay_finite():
    space = StackSpace(recipe(scale=[1e-9, 1], repeats=100, max_layers=400), DEPTHS, Fold())
    factors = factors_of(space.decode(tuple(Layer(i % 2, i % 4, 1e-9) for i in range(400))))
    assert factors[-1] == 1e30


def test_a_range_without_a_fold_and_a_recipe_without_the_hole_are_refused():
    with pytest.raises(ValueError, match="fold"):
        StackSpace(recipe(scale=[0.5, 1.5]), DEPTHS)
    with pytest.raises(ValueError, match="no hole"):
        StackSpace(Recipe.parse("merge_method: linear\nmodels: [{model: a}]\n"), DEPTHS)


def test_bounds_that_no_stack_is_within_are_a_fault_with_its_line():
    text = "merge_method: passthrough\nslices:\n  search:\n    models: [a, b]\n    min_layers: 11\n"
    with pytest.raises(RecipeError) as caught:
        StackSpace(Recipe.parse(text, "r.yaml"), DEPTHS)
    (fault,) = caught.value.faults
    assert fault.startswith("r.yaml:5: slices.search.min_layers: min_layers is 11, but 10 layers")


def test_all_stacks_of_a_small_space():
    space = StackSpace(recipe(models=["a"], repeats=1, min_layers=1, max_layers=3), [3])
    found = list(space.all_stacks())
    assert len(found) == len(set(found)) == 3 + 6 + 6
    assert all(space.repaired(stack) == stack for stack in found)


SWITCHES = IndicatorSpace(recipe(encoding="indicator"), DEPTHS)
SCALED_SWITCHES = IndicatorSpace(recipe(encoding="indicator", scale=[0.5, 2.0]), DEPTHS, Fold())


@pytest.mark.parametrize("space", [SWITCHES, SCALED_SWITCHES])
@given(data=st.data())
def test_every_genome_of_switches_decodes_to_layers_in_sequence(space: IndicatorSpace, data: st.DataObject):
    genome = data.draw(st.lists(st.floats(0, 1), min_size=len(space), max_size=len(space)))
    made = space.decode(tuple(genome))
    assert made.holes() == {}
    assert 3 <= len(layers_of(made)) <= 9
    slots = [("ab"[layer.model], layer.layer) for layer in space.slots]
    position = -1
    for layer in layers_of(made):
        position = slots.index(layer, position + 1)
    assert space.from_json(json.loads(json.dumps(space.to_json(tuple(genome))))) == tuple(genome)


def test_the_start_is_the_first_model():
    assert layers_of(SWITCHES.decode(SWITCHES.start)) == [("a", i) for i in range(4)]
    assert SWITCHES.start.tolist() == pytest.approx([0.5 + 2 / 6] * 4 + [0.5] * 16)
    wide = IndicatorSpace(recipe(encoding="indicator"), DEPTHS, sigma=0.4)
    assert wide.start[:5].tolist() == [1.0] * 4 + [0.5]
    assert factors_of(SCALED_SWITCHES.decode(SCALED_SWITCHES.start)) == [None] * 4


def test_of_too_many_switches_the_largest_win_and_of_too_few_the_largest_others_join():
    genome = [0.6 + 0.01 * i for i in range(20)]
    assert SWITCHES.stack(genome) == SWITCHES.slots[11:]
    genome = [0.1] * 20
    genome[2], genome[7], genome[13] = 0.9, 0.4, 0.3
    assert SWITCHES.stack(genome) == tuple(SWITCHES.slots[i] for i in (2, 7, 13))


def test_a_slot_has_its_own_scale():
    genome = SCALED_SWITCHES.start.tolist()
    assert SCALED_SWITCHES.dimensions[20 + 2].low == 0.5
    genome[20 + 2] = SCALED_SWITCHES.dimensions[20 + 2].gene(2.0)
    stack = SCALED_SWITCHES.stack(genome)
    assert [layer.scale for layer in stack] == [1.0, 1.0, 2.0, 1.0]
    assert len(SCALED_SWITCHES.numbers(genome)) == len(SCALED_SWITCHES) == 40
