"""The JSON Schemas that editors use, and the reference that is made from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from evomerge import document
from evomerge.errors import DocumentError
from evomerge.recipe import load
from evomerge.schema import recipe_schema, task_schema
from evomerge.tasks import Task
from scripts.write_reference import RARE, written

from .test_cli import evomerge

ROOT = Path(__file__).parent.parent
SCHEMAS = {"recipe": recipe_schema(), "task": task_schema()}
SHIPPED = {
    # One of them has an unknown key, which mergekit ignores and evomerge refuses.
    "recipe": [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.name != "unknown-key.yaml"],
    "task": sorted((ROOT / "eval_tasks").glob("*.yaml")),
}


def faults(kind: str, data: Any) -> list[str]:
    return [fault.message for fault in Draft202012Validator(SCHEMAS[kind]).iter_errors(data)]


def test_the_reference_is_what_its_script_writes():
    for path, text in written().items():
        assert (ROOT / path).read_text() == text, f"{path} is out of date; run python scripts/write_reference.py"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_schema_is_valid_and_describes_every_key(kind: str):
    Draft202012Validator.check_schema(SCHEMAS[kind])
    for name, model in SCHEMAS[kind]["$defs"].items():
        assert model["description"], name
        for key, value in model.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key} has no line in the Attributes of its class"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_recipe_and_task_of_the_repository_is_valid(kind: str):
    assert len(SHIPPED[kind]) > 9
    for path in SHIPPED[kind]:
        assert not faults(kind, document.read(path).data), path
    for data in yaml.safe_load_all(RARE[kind]):
        assert not faults(kind, data), data


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_key_has_an_example_or_a_section(kind: str):
    for line in written()[f"docs/{kind}-reference.md"].splitlines():
        cells = line.split(" | ")
        if line.startswith("| `") and len(cells) == 5 and cells[1] not in ("each model", "the merge"):
            assert cells[4] != " |" or "](#" in line, line


RECIPE = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
TASK = """\
type: generate
prompt: "{{ q }}"
target: "{{ a }}"
data: rows.jsonl
splits: {search: [0, 8], holdout: [8, 24]}
"""
BAD = {
    "an unknown key": ("recipe", RECIPE + "dtpye: float32"),
    "a dtype": ("recipe", RECIPE + "dtype: int8"),
    "no method": ("recipe", RECIPE.partition("\n")[2]),
    "text for a number": ("recipe", RECIPE.replace("1", "high")),
    "a hole of one number": ("recipe", RECIPE.replace("1", "{search: [0]}")),
    "a hole's key": ("recipe", RECIPE.replace("1", "{search: [0, 1], layer: 4}")),
    "too many evaluations": ("recipe", RECIPE + "search: {evaluations: 2000000}"),
    "an unknown key of a stage": ("recipe", "stages: {a: {merge_method: linear, modls: []}, b: {}}\ntasks: []"),
    "a model's part": ("recipe", RECIPE.replace("model: a", "model: {path: a, revison: b}")),
    "a token's kind": ("recipe", RECIPE + "tokenizer: {tokens: {a: {source: {kind: one}}}}"),
    "a type": ("task", TASK.replace("generate", "generation")),
    "a key of another type": ("task", TASK + "choices: [a, b]"),
    "a metric": ("task", TASK + "metric: exact"),
    "rows": ("task", TASK.replace("[0, 8]", "[0, 8, 9]")),
    "a negative row": ("task", TASK.replace("[0, 8]", "[-1, 8]")),
    "no splits": ("task", TASK.rpartition("splits")[0]),
}
LOOKED_UP = {  # by check, and not where the document is read
    "a method": ("recipe", RECIPE.replace("linear", "lnear")),
    "an optimizer": ("recipe", RECIPE + "search: {optimizer: cmaes}"),
}


@pytest.mark.parametrize("name", [*BAD, *LOOKED_UP])
def test_what_evomerge_refuses_is_not_valid(name: str, tmp_path: Path):
    kind, text = {**BAD, **LOOKED_UP}[name]
    assert not faults(kind, yaml.safe_load(RECIPE if kind == "recipe" else TASK))
    assert faults(kind, yaml.safe_load(text))
    path = tmp_path / "document.yaml"
    path.write_text(text)
    if name in BAD:
        with pytest.raises(DocumentError):
            load(path) if kind == "recipe" else Task.load(path)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_command_prints_the_schema(kind: str):
    done = evomerge("schema", kind)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == SCHEMAS[kind]
