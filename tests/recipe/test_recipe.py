"""Recipes: faults with their places, holes, filling, and YAML both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import Hole, Recipe, gradient, resolve

SEARCH = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters:
      weight: {search: [0, 1], layers: 3}
      density: [0.1, {search: [0.2, 0.9]}]
  - model: b
    parameters:
      weight:
        - filter: mlp
          value: {search: [1e-3, 1], log: true, init: 0.5}
        - value: 0.25
dtype: bfloat16
"""


def faults_of(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, "r.yaml")
    return list(caught.value.faults)


def test_holes_are_found_with_their_places():
    holes = Recipe.parse(SEARCH).holes()
    assert list(holes) == [
        ("models", 0, "parameters", "weight"),
        ("models", 0, "parameters", "density", 1),
        ("models", 1, "parameters", "weight", 0, "value"),
    ]
    assert holes["models", 0, "parameters", "weight"].layers == 3
    assert holes["models", 1, "parameters", "weight", 0, "value"] == Hole(search=(1e-3, 1), log=True, init=0.5)


def test_filling_leaves_all_else_as_it_was():
    recipe = Recipe.parse(SEARCH)
    first, second, third = recipe.holes()
    filled = recipe.fill({first: (0.1, 0.2, 0.3), second: 0.5})
    data = filled.as_data()
    assert data["models"][0]["parameters"] == {"weight": [0.1, 0.2, 0.3], "density": [0.1, 0.5]}
    assert list(filled.holes()) == [third]
    assert recipe.holes().keys() == {first, second, third}
    assert data["models"][1] == recipe.as_data()["models"][1]


def test_filling_where_there_is_no_hole_is_refused():
    with pytest.raises(KeyError, match="dtype"):
        Recipe.parse(SEARCH).fill({("dtype",): 0.5})


def test_every_fault_is_told_at_once_with_its_line_and_the_nearest_key():
    faults = faults_of(
        "merge_methd: ties\n"
        "models:\n"
        "  - modl: a\n"
        "  - model: b\n"
        "    parameters:\n"
        "      weight: {serch: [0, 1]}\n"
        "      density: {search: [1, 0]}\n"
        "      gamma: high\n"
        "dtype: int8\n"
    )
    text = "\n".join(faults)
    assert 'r.yaml:1: merge_methd: unknown key "merge_methd"; did you mean "merge_method"?' in faults
    assert 'r.yaml:3: models[0].modl: unknown key "modl"; did you mean "model"?' in faults
    assert 'r.yaml:6: models[1].parameters.weight.serch: unknown key "serch"; did you mean "search"?' in faults
    assert "r.yaml:7: models[1].parameters.density: search is [1, 0]" in text
    assert "r.yaml:8: models[1].parameters.gamma: expected a number" in text
    assert "found 'high'" in text
    assert "r.yaml:9: dtype: expected 'float32', 'float16' or 'bfloat16', found 'int8'" in faults


@pytest.mark.parametrize(
    ("hole", "words"),
    [
        ("{search: [0, 1], init: 2}", "init is 2, outside search [0, 1]"),
        ("{search: [0, 1], log: true}", "log needs search to start above 0"),
        ("{search: [0, 1], layers: 0}", "layers: expected 1 or more, found 0"),
        ("{search: [0, 1], interpolate: true}", "interpolate needs layers"),
        ("{search: [0, .inf]}", "search is [0, inf]"),
        ("{search: [0.5, 0.5]}", "search is [0.5, 0.5]"),
        ("{search: [0]}", "weight.search"),
        ("{search: [0, 1], layer: 3}", 'did you mean "layers"?'),
        (".nan", "expected a number"),
        ("'half'", "expected a number"),
    ],
)
def test_a_faulty_hole_or_value_is_refused(hole: str, words: str):
    (fault,) = faults_of(f"merge_method: linear\nmodels:\n  - {{model: a, parameters: {{weight: {hole}}}}}\n")
    assert words in fault
    assert fault.startswith("r.yaml:3:")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: linear\n", "exactly one of"),
        (
            "merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n",
            "found models and slices",
        ),
        ("merge_method: linear\nmodels: []\n", "models"),
        ("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [3, 1]}]}]\n", "[3, 1]"),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]},"
            " {model: b, layer_range: [0, 3]}]}]\n",
            "[2, 3] layers",
        ),
        ("merge_method: linear\nmodels: [{model: a}]\nsearch: {evaluations: 0}\n", "evaluations"),
        ("merge_method: linear\nmodels: [{model: a}]\ntasks: [{task: t, weight: 0}]\n", "weight"),
        ("merge_method: linear\nmodels: [{model: a}]\ntasks: [{task: t, weight: 5e-324}]\n", "weight"),
        ("merge_method: linear\nmodels: [{model: a}]\ntasks: [{task: t, weight: 1e308}]\n", "weight"),
        ("merge_method: linear\nmodels: [{model: a}]\ntasks: [{task: t, weight: .nan}]\n", "weight"),
        ("- linear\n", "expected a mapping"),
    ],
)
def test_a_faulty_document_is_refused(text: str, words: str):
    assert words in "\n".join(faults_of(text))


def test_parents_and_references_are_listed_once_in_order():
    recipe = Recipe.parse(SEARCH)
    assert recipe.parents() == ("a", "b")
    assert recipe.references() == ("a", "b", "base")


def test_recipes_are_equal_by_what_they_say_and_not_by_layout():
    recipe = Recipe.parse(SEARCH)
    assert Recipe.parse("# a comment\ndtype: bfloat16\n" + SEARCH.replace("dtype: bfloat16\n", "")) == recipe
    assert Recipe.parse(SEARCH.replace("0.25", "0.26")) != recipe


numbers = st.one_of(
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
)
holes = st.tuples(st.floats(-10, 10), st.floats(0.01, 10)).map(lambda r: {"search": [r[0], r[0] + r[1]]})
points = st.one_of(numbers, holes)
plain = st.one_of(numbers, holes, st.lists(points, min_size=1, max_size=4))
filtered = st.fixed_dictionaries({"filter": st.sampled_from(["mlp", "*", "a b"]), "value": plain})
values = st.one_of(plain, st.lists(filtered, min_size=1, max_size=3))
names = st.text(min_size=1, max_size=12)


sections = st.dictionaries(names, values, max_size=2)
entries = st.fixed_dictionaries({"model": names}, optional={"parameters": sections})
layers = st.tuples(names, st.integers(0, 9)).map(lambda s: {"model": s[0], "layer_range": [s[1], s[1] + 3]})
slices = st.fixed_dictionaries(
    {"sources": st.lists(layers, min_size=1, max_size=2)}, optional={"base_model": names, "parameters": sections}
)
bodies = st.one_of(
    st.fixed_dictionaries({"models": st.lists(entries, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"slices": st.lists(slices, min_size=1, max_size=2)}),
)
forms = st.one_of(
    bodies,
    st.fixed_dictionaries({"modules": st.dictionaries(names, bodies, min_size=1, max_size=2)}),
)
token_sources = st.one_of(
    names,
    st.just({"kind": "zero"}),
    st.fixed_dictionaries({"kind": st.just("model_token"), "model": names, "token": names}),
    st.fixed_dictionaries({"kind": st.just("model_token"), "model": names, "token_id": st.integers(0, 9)}),
)
tokens = st.fixed_dictionaries({"source": token_sources}, optional={"force": st.booleans()})
vocabularies = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"tokenizer_source": names}),
    st.fixed_dictionaries(
        {
            "tokenizer": st.fixed_dictionaries(
                {},
                optional={
                    "source": names,
                    "tokens": st.dictionaries(names, tokens, max_size=2),
                    "pad_to_multiple_of": st.integers(1, 9),
                },
            )
        }
    ),
)
rest = st.fixed_dictionaries(
    {"merge_method": names},
    optional={
        "base_model": names,
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "chat_template": names,
        "parameters": sections,
    },
)


@given(rest, forms, vocabularies)
def test_yaml_round_trip_keeps_every_bit(head: dict, form: dict, vocabulary: dict):
    recipe = Recipe.model_validate(head | form | vocabulary)
    assert recipe.as_data() == head | form | vocabulary
    assert Recipe.parse(recipe.to_yaml("a comment\nof two lines")).as_data() == recipe.as_data()


@pytest.mark.parametrize("name", ["1e3", "-2E-5", "0x1f", "true", "null", "~", "2020-01-01", "=", "<<", "1_000", ".5"])
def test_names_that_look_like_something_else_stay_text(name: str):
    data = {
        "merge_method": name,
        "models": [{"model": name, "parameters": {name: 1e-7}}],
        "tokenizer": {
            "source": name,
            "tokens": {name: {"source": {"kind": "model_token", "model": name, "token": name}}},
        },
    }
    assert Recipe.parse(Recipe.model_validate(data).to_yaml()).as_data() == data


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(0, 1))
def test_a_gradient_interpolates_between_its_points(points: list[float], t: float):
    found = gradient(points, t)
    place = t * (len(points) - 1)
    below = min(int(place), len(points) - 1)
    above = min(below + 1, len(points) - 1)
    expected = points[below] + (points[above] - points[below]) * (place - below)
    assert found == pytest.approx(expected, abs=1e-7)
    assert min(points) - 1e-9 <= found <= max(points) + 1e-9


def test_a_gradient_as_long_as_the_depth_gives_each_layer_its_own_value():
    for layers in range(1, 70):
        points = [0.1 * i for i in range(layers)]
        t = [i / (layers - 1) if layers > 1 else 1.0 for i in range(layers)]
        assert [gradient(points, one) for one in t] == points


def test_the_first_filter_that_matches_decides():
    recipe = Recipe.parse(
        "merge_method: slerp\nmodels: [{model: a}]\nparameters:\n  t:\n"
        "    - {filter: self_attn, value: [0, 1]}\n    - {filter: mlp, value: 0.75}\n    - {filter: norm, value: 0.5}\n"
    )
    t = recipe.parameters["t"]
    assert resolve(t, "model.layers.1.self_attn.q_proj.weight", 0.25) == 0.25
    assert resolve(t, "model.layers.1.mlp.up_proj.weight", 0.25) == 0.75
    assert resolve(t, "lm_head.weight", 0) is None


def test_a_hole_has_no_value_until_it_is_filled():
    with pytest.raises(TypeError, match="fill"):
        resolve(Hole(search=(0, 1)), "x", 0.0)


FORM = "merge_method: linear\nmodels: [{model: a, parameters: {weight: %s}}]\n%s"


@pytest.mark.parametrize(
    ("value", "rest", "fault"),
    [
        ("{search: [-1.0e+308, 1.0e+308]}", "", "r:2: models[0].parameters.weight: search is [-1e+308, 1e+308], but"),
        ("{search: [1.0e-308, 1.0e+308], log: true}", "", "too wide for its logarithm"),
        ("{search: [0, 1], layers: 10000000, interpolate: true}", "", "layers: expected 10000 or less, found 10000000"),
        ("9" * 400, "", "r:2: models[0].parameters.weight: expected a number, true, false, a list"),
        ("[1, -" + "9" * 400 + "]", "", "r:2: models[0].parameters.weight[1]: expected a number"),
        ("1", "search: {sigma: " + "9" * 400 + "}", "r:3: search.sigma: expected a number, found 9999"),
        ("1", "search: {population: 10000000}", "r:3: search: population is 10,000,000, more than the 200 evaluations"),
        ("1", "search: {evaluations: 10000000}", "r:3: search.evaluations: expected 1000000 or less, found 10000000"),
        ("1", "search: {seed: 4294967296}", "r:3: search.seed: expected less than 4294967296, found 4294967296"),
        ("1", "tasks: [x]", "r:3: tasks[0]: expected a mapping of keys to values with \"task\", found 'x'"),
        ("1", "tasks: x", "r:3: tasks: expected a list, found 'x'"),
        ("1", "base_model: 3", "r:3: base_model: expected text, found 3; put it in quotes"),
        ("1", "search: {normalize: maybe}", "r:3: search.normalize: expected true or false, found 'maybe'"),
        ("1", "search:", None),
        ("{search: [1]}", "", "r:2: models[0].parameters.weight.search: expected a list of at least 2, found [1]"),
        ("{search: [1, 2, 3]}", "", "weight.search: expected a list of at most 2, found [1, 2, 3]"),
    ],
)
def test_what_is_out_of_bounds_or_of_another_kind_is_told_in_plain_words(value, rest, fault):
    if fault is None:
        assert Recipe.parse(FORM % (value, rest), "r").search is None
        return
    with pytest.raises(RecipeError) as error:
        Recipe.parse(FORM % (value, rest), "r")
    (line,) = error.value.faults
    assert fault in line
    assert len(line) < 200
    for jargon in ("valid", "instance of", "tuple", "dictionary", "integer", "Input should", "None"):
        assert jargon not in line


def test_models_get_other_names_wherever_they_are_named_and_nothing_else_does():
    text = """\
merge_method: linear
base_model: base
slices:
  - sources: [{model: {model: a, lora: l}, layer_range: [0, 1], parameters: {weight: 1}}]
    base_model: union
tokenizer: {source: base, tokens: {a: {source: a}, b: {source: {kind: model_token, model: b, token: a}}}}
chat_template: a
name: base
"""
    renamed = Recipe.parse(text).with_models(lambda name: f"/x/{name}").as_data()
    assert renamed == {
        "merge_method": "linear",
        "base_model": "/x/base",
        "slices": [
            {
                "sources": [{"model": "/x/a+l", "layer_range": [0, 1], "parameters": {"weight": 1}}],
                "base_model": "/x/union",
            }
        ],
        "tokenizer": {
            "source": "base",
            "tokens": {
                "a": {"source": "/x/a"},
                "b": {"source": {"kind": "model_token", "model": "/x/b", "token": "a"}},
            },
        },
        "chat_template": "a",
        "name": "base",
    }
