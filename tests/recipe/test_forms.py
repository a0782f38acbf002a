"""Every form in which mergekit's users write a recipe is read, and what is none of them is refused in words."""

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import ModelToken, Recipe, TokenizerSection, ZeroToken


def faults_of(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, "r.yaml")
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("org/name", "org/name"),
        ("org/name@main+org/adapter@v2", "org/name@main+org/adapter@v2"),
        ("{model: org/name}", "org/name"),
        ("{model: {path: org/name, revision: main}}", "org/name@main"),
        ("{model: {path: org/name}, lora: org/adapter}", "org/name+org/adapter"),
        ("{model: org/name, lora: {path: org/adapter, revision: v2}}", "org/name+org/adapter@v2"),
        ("{model: org/name, lora: null, override_architecture: LlamaForCausalLM}", "org/name"),
        ("{path: org/name, revision: main}", "org/name@main"),
        ("{path: org/name, revision: ''}", "org/name"),
    ],
)
def test_a_model_may_be_text_or_its_parts(written: str, name: str):
    recipe = Recipe.parse(
        f"merge_method: linear\nbase_model: {written}\nmodels: [{{model: {written}}}]\n"
        f"tokenizer: {{source: {written}}}\n"
    )
    assert recipe.references() == (name,)
    assert recipe.vocabulary() == TokenizerSection(source=name)
    assert Recipe.parse(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{modle: a}", 'unknown key "modle"; did you mean "model"'),
        ("{lora: a}", '"model" or "path"'),
        ("{path: {path: a}}", "expected text"),
        ("{model: a, loras: b}", 'unknown key "loras"; did you mean "lora"'),
        ("{model: {path: a, revision: 3}}", "expected text, found 3; put it in quotes"),
        ("[a]", "expected text"),
    ],
)
def test_what_is_no_model_is_refused(written: str, words: str):
    assert words in faults_of(f"merge_method: linear\nmodels:\n  - model: {written}\n")


@pytest.mark.parametrize(
    ("value", "resolved"),
    [
        ("{value: 0.3}", 0.3),
        ("{filter: mlp, value: [0, 1]}", 0.5),
        ("'0.25'", 0.25),
        ("1e-1", 0.1),
        ("[]", None),
        ("[{filter: attn, value: 1}]", None),
        ("[false, true]", False),
        ("['0', '1']", 0.5),
    ],
)
def test_every_form_of_a_value(value: str, resolved: float | None):
    from evomerge.recipe import resolve

    recipe = Recipe.parse(f"merge_method: linear\nmodels: [{{model: a}}]\nparameters: {{weight: {value}}}\n")
    assert resolve(recipe.parameters["weight"], "model.layers.0.mlp.up_proj.weight", 0.5) == resolved
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_sections_with_nothing_in_them_are_none():
    recipe = Recipe.parse(
        "name: mine\nmerge_method: linear\nmodels:\n  - model: a\n    parameters:\nparameters:\ndtype: torch.bfloat16\n"
        "slices:\nmodules:\ntokenizer_source:\nchat_template:\n"
    )
    assert (recipe.dtype, recipe.parameters, recipe.vocabulary()) == ("bfloat16", {}, None)


ONE = "merge_method: linear\nmodels: [{model: a}]\n"
MODULES = """\
merge_method: ties
base_model: base
modules:
  default:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
        base_model: other
        residual_weight: 0.5
    parameters: {weight: {search: [0, 1]}}
"""


def test_modules_have_models_or_slices_and_parameters():
    recipe = Recipe.parse(MODULES)
    assert recipe.references() == ("a", "b", "other", "base")
    assert recipe.parents() == ("a", "b")
    assert list(recipe.holes()) == [("modules", "default", "parameters", "weight")]
    assert list(recipe.modules_by_place()) == [("modules", "default")]
    assert Recipe.parse(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: linear\nmodules: {x: {parameters: {}}}\n", 'one of "models" and "slices", found none of them'),
        (MODULES + "models: [{model: a}]\n", "found models and modules"),
        (ONE + "tokenizer_source: base\ntokenizer: {}\n", "one of the two"),
        (ONE + "tokenizer: {tokens: {x: {force: true}}}\n", 'needs a "source"'),
        (
            ONE + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
            'and "token_id", found none',
        ),
        (
            ONE + "tokenizer: {tokens: {x: {source: {kind: one}}}}\n",
            "model_token",
        ),
        (ONE + "tokenizer: {pad_to_multiple_of: 0}\n", "pad_to_multiple_of"),
        (ONE + "tokenizer: {sorce: base}\n", 'did you mean "source"'),
    ],
)
def test_a_faulty_form_is_refused(text: str, words: str):
    assert words in faults_of(text)


def test_the_tokenizer_section():
    recipe = Recipe.parse(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"
        "tokenizer:\n  source: union\n  pad_to_multiple_of: 64\n  tokens:\n"
        "    <|im_start|>: {source: b, force: true}\n"
        "    <|im_end|>: {source: {kind: model_token, model: a, token: </s>}}\n"
        "    <pad>: {source: {kind: zero}}\n"
        "    7: {source: {kind: model_token, model: {model: {path: a, revision: r}}, token_id: 0}}\n"
    )
    section = recipe.vocabulary()
    assert section is not None
    assert (section.source, section.pad_to_multiple_of) == ("union", 64)
    assert section.tokens["<|im_start|>"].source == "b"
    assert section.tokens["<|im_end|>"].source == ModelToken(kind="model_token", model="a", token="</s>")
    assert section.tokens["<pad>"].source == ZeroToken(kind="zero")
    assert section.tokens["7"].source == ModelToken(kind="model_token", model="a@r", token_id=0)
    assert Recipe.parse(recipe.to_yaml()) == recipe
