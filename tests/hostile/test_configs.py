"""Configs with a value of the wrong kind: one line with the model and the key, from every command."""

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.architecture import check_values, parsed
from evomerge.errors import ArchitectureError, RecipeError
from evomerge.merge import open_recipe
from tests.study.search_case import write_case
from tests.test_cli import evomerge
from tests.tiny import tiny_checkpoint, tiny_config

TEXTS: dict[str, Any] = {
    "hidden_size": "big",
    "intermediate_size": "bigger",
    "num_attention_heads": "two",
    "num_key_value_heads": "one",
    "num_hidden_layers": "4",
    "vocab_size": "259",
    "eos_token_id": "</s>",
    "rms_norm_eps": "small",
    "rope_theta": "10000",
    "rope_parameters.rope_theta": "10000",
    "rope_parameters.factor": "two",
    "hidden_act": 3,
}
IMPOSSIBLE: dict[str, Any] = {
    "hidden_act": "nope",
    "num_attention_heads": 0,
    "num_key_value_heads": 0,
    "dtype": "float99",
}
UNRUNNABLE: dict[str, Any] = {
    "pretraining_tp": "x",
    "rope_parameters.rope_type": "bad",
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"), evaluations=1)


def set_entry(config: dict[str, Any], path: str, value: object) -> None:
    *outer, key = path.split(".")
    for name in outer:
        config = config[name]
    config[key] = value


@pytest.fixture
def broken(case: Path, request: pytest.FixtureRequest) -> Any:
    """The case with one entry of the base's config changed."""
    path = case.parent / "base" / "config.json"
    text = path.read_text()
    config = json.loads(text)
    set_entry(config, *request.param)
    path.write_text(json.dumps(config))
    yield case, request.param[0]
    path.write_text(text)


def assert_one_line(done: Any, folder: Path, key: str) -> None:
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.strip() not in ("1 fault", ""))
    assert f"{folder / 'base'}: config.json: {key} is " in line


@pytest.mark.parametrize("broken", [*TEXTS.items(), *IMPOSSIBLE.items()], ids=str, indirect=True)
def test_a_wrong_value_is_one_line_from_every_command(broken: tuple[Path, str], tmp_path: Path):
    recipe, key = broken
    folder = recipe.parent
    alone = tmp_path / "alone.yaml"
    alone.write_text(f"merge_method: linear\nmodels: [{{model: {folder}/base, parameters: {{weight: 1}}}}]\n")
    for command in (
        ("check", recipe),
        ("search", recipe, "--run-dir", tmp_path / "run"),
        ("eval", folder / "base", folder / "tasks" / "likely.yaml"),
        ("apply", alone, tmp_path / "out"),
    ):
        assert_one_line(evomerge(*command), folder, key)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", UNRUNNABLE.items(), ids=UNRUNNABLE, indirect=True)
def test_a_value_that_no_model_can_be_made_with_is_told_before_a_search(broken: tuple[Path, str], tmp_path: Path):
    recipe, key = broken
    for command in (("check", recipe), ("search", recipe, "--run-dir", tmp_path / "run")):
        assert_one_line(evomerge(*command), recipe.parent, key)


def test_the_key_is_found_in_the_text_model_of_a_model_of_images():
    config = tiny_config("llava").to_dict()
    config["text_config"]["pretraining_tp"] = "two"
    with pytest.raises(ArchitectureError, match=r"config\.json: text_config\.pretraining_tp is 'two'"):
        parsed(config)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "torch.float16", None])
def test_a_dtype_is_read_in_all_forms_of_it(dtype: str | None):
    check_values({"model_type": "llama", "torch_dtype": dtype, "hidden_act": "xielu"})


def test_layers_that_cannot_be_found_are_told_for_every_model_with_its_line(tmp_path: Path):
    lines = ["merge_method: linear", "models:"]
    for name, depth in (("a", 3), ("b", 10**9)):
        folder = tiny_checkpoint(tmp_path / name, layers=2)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": depth}))
        lines.append(f"  - {{model: {folder}, parameters: {{weight: 1}}}}")
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError) as error:
        open_recipe(tmp_path / "recipe.yaml")
    for (name, depth), line, fault in zip((("a", 3), ("b", 10**9)), (3, 4), error.value.faults, strict=True):
        assert f"recipe.yaml:{line}: " in fault
        assert f"{tmp_path / name}: the config states {depth} layers" in fault


def test_a_flag_that_is_a_text_is_told_what_it_should_be():
    with pytest.raises(ArchitectureError, match="tie_word_embeddings is 'yes'; expected true or false"):
        check_values({"tie_word_embeddings": "yes"})


def test_functions_of_other_models_than_those_of_transformers_are_their_own():
    check_values({"model_type": "mine", "hidden_act": "mine"})
