"""Writes the reference in docs/: the pages of all keys, and the JSON Schemas for editors. Takes seconds.

Everything in it comes from the code: docstrings, the tables of methods, optimizers and metrics, and, as examples, the
recipes and tasks of the repository. Run it after changing one of them:

    .venv/bin/python scripts/write_reference.py
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from evomerge import document
from evomerge.methods import METHODS, MergeMethod, Parameter
from evomerge.metrics import METRICS
from evomerge.schema import metric_summary, recipe_schema, summary, task_schema
from evomerge.search import OF_NUMBERS, OF_STACKS

ROOT = Path(__file__).parent.parent
LONGEST_EXAMPLE = 60
NAMES = {
    "merge_method": "a [name](#merge-methods)",
    "optimizer": "a [name](#optimizers)",
    "metric": "a [name](#metrics), or `{NAME: OPTION}`",
}
"""Keys whose names have a section of their own, and their types."""

RECIPES = """\
# Recipe reference

Every key of a recipe. [recipes.md](recipes.md) explains how they work together. `scripts/write_reference.py` writes
this page from the code.

For completion and checks while you type, editors that use
[yaml-language-server](https://github.com/redhat-developer/yaml-language-server) (VS Code's YAML extension among them)
read the schema that a line of the file names, by its URL, or by its path from the recipe's folder:

<!-- part of: recipe -->
```yaml
# yaml-language-server: $schema=../docs/recipe.schema.json
merge_method: linear
```

`evomerge schema recipe` prints the schema with the methods and optimizers of the packages that you have installed.
`evomerge check` finds more faults than a schema can.
"""

TASKS = """\
# Task reference

Every key of a task file. [tasks.md](tasks.md) explains how items are scored. `scripts/write_reference.py` writes this
page from the code.

`docs/task.schema.json` is the schema of task files for editors, and `evomerge schema task` prints it. A task file with
this line has completion and checks in editors that use
[yaml-language-server](https://github.com/redhat-developer/yaml-language-server); the path starts at the task's folder.

<!-- part of: task -->
```yaml
# yaml-language-server: $schema=../docs/task.schema.json
type: generate
```
"""

RARE = {
    "recipe": """
merge_method: slerp
name: my-merge
base_model: {path: org/base, revision: v1.0}
slices:
  - sources:
      - {model: {model: org/a, lora: {path: org/adapter}}, layer_range: [0, 16]}
      - {model: org/b, layer_range: [0, 16]}
    residual_weight: 0.5
component: {language_of: org/vlm}
parameters: {t: {search: [0.01, 1], init: 0.5, log: true}}
tokenizer:
  tokens: {<|im_end|>: {source: {kind: model_token, model: org/a, token_id: 7}}}
---
merge_method: linear
base_model: {model: org/base, override_architecture: LlamaForCausalLM}
modules: {text_decoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}]}]}}
tokenizer:
  tokens: {<s>: {source: {kind: model_token, model: a, token: <bos>}}, <pad>: {source: {kind: zero}}}
---
merge_method: passthrough
slices: {search: {models: [org/a, org/b], repeats: 2}}
tasks: [{task: task.yaml, weight: 0.5}]
data: {"openai/gsm8k:test": gsm8k_test.jsonl}
allow_test_set: true
search:
  seed: 1
  sigma: 0.1
  normalize: true
  items: {start: 20, growth: 1.1, estimator: neighbors}
  mutations: {insert: 0.2, swap: 0}
---
merge_method: passthrough
slices: {search: {models: [org/a]}}
search:
  mutations: {delete: 0.2, move_block: 0, repeat_block: 0.1, other_model: 0, jitter_scale: 0.5}
---
stages:
  weights: {merge_method: linear, models: [{model: a, parameters: {weight: {search: [0, 1]}}}]}
  layers: {merge_method: passthrough, slices: {search: {models: [weights, a]}}}
tasks: [{task: task.yaml}]
data: {"openai/gsm8k:test": gsm8k_test.jsonl}
allow_test_set: true
name: my-search
""",
    "task": """
type: generate
name: sums
images: photo
require_language: ja
data: {path: org/data, split: test, revision: v1.0}
chat: true
system: "Answer with a number."
few_shot: {rows: [0, 4], data: examples.jsonl, separator: "\\n---\\n", target: " {{ worked }}"}
shuffle: 0
prompt: "{{ question }}"
target: "{{ answer }}"
metric: {regex: 'answer is (\\S+)'}
splits: {search: [0, 100], holdout: [100, 500]}
---
type: multiple_choice
name: quiz
images: [left, right]
data: {path: quiz.csv, columns: [question, right, wrong]}
chat: true
system: "Choose."
few_shot: [0, 4]
shuffle: 0
prompt: "{{ question }}"
choices: ["{{ right }}", "{{ wrong }}"]
answer: 0
splits: {search: [0, 100], holdout: [100, 500]}
---
type: perplexity
name: prose
chat: true
data: prose.jsonl
system: "Go on."
few_shot: [0, 1]
shuffle: 0
prompt: "{{ title }}"
target: "{{ text }}"
metric: bits_per_byte
splits: {search: [0, 100], holdout: [100, 500]}
""",
}
"""Keys that no recipe or task of the repository has."""


class Page:
    """A page of all keys of a kind of document.

    Args:
        schema: its JSON Schema.
        documents: documents to take examples from, as plain data.
    """

    def __init__(self, schema: Mapping[str, Any], documents: Sequence[Any]) -> None:
        self.models: dict[str, Any] = schema["$defs"]
        self.roots = [one["$ref"].rpartition("/")[2] for one in schema["anyOf"]]
        self._validator = Draft202012Validator(schema)
        self._examples: dict[tuple[str, str], list[str]] = {}
        for data in documents:
            self._collect({"anyOf": schema["anyOf"]}, data, "")

    def _collect(self, schema: Any, data: Any, model: str) -> None:
        """Keeps the values of all keys in a valid document."""
        if not isinstance(schema, dict):  # true: anything
            return
        for one in schema.get("anyOf", ()):
            if self._validator.evolve(schema=one).is_valid(data):
                self._collect(one, data, model)
                return
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            self._collect(self.models[name], data, name)
        elif isinstance(data, dict):
            for key, value in data.items():
                known = schema.get("properties", {})
                if key in known:
                    self._examples.setdefault((model, key), []).append(flow(value))
                self._collect(known.get(key, schema.get("additionalProperties")), value, model)
        elif isinstance(data, list):
            for value in data:
                self._collect(schema.get("items"), value, model)

    def example(self, model: str, key: str, default: str) -> str:
        """Returns a short value of a key that differs from its default, from the first documents that have one."""
        dull = (default, "{}", "[]")
        found = [
            text
            for text in self._examples.get((model, key), ())
            if text not in dull and len(text) <= LONGEST_EXAMPLE and "|" not in text
        ]
        return f"`{found[0]}`" if found else ""

    def sections(self) -> Iterator[str]:
        """Yields a section for each mapping, in the order in which they are reached from the root."""
        names = list(self.roots)
        for name in names:  # which grows meanwhile
            names += dict.fromkeys(other for other in references(self.models[name]) if other not in names)
        for name in names:
            model = self.models[name]
            kind = model.get("properties", {}).get("type", {}).get("const")
            yield f"## {f'Tasks of type `{kind}`' if kind else title(name)}\n\n{model['description']}\n"
            if name == "Parameters":
                value = self.type_of(model["additionalProperties"])
                yield f"Each is a {value}. [Merge methods](#merge-methods) lists those of each method.\n"
            elif "anyOf" in model:
                yield "".join(f"- {words}\n" for words in self._kinds(model))
            else:
                yield "| key | type | default | meaning | example |\n|---|---|---|---|---|"
                yield from (self._row(name, key, one) for key, one in model["properties"].items())
                yield ""

    def _row(self, model: str, key: str, schema: Mapping[str, Any]) -> str:
        required = key in self.models[model].get("required", ())
        default = flow(schema["default"]) if schema.get("default") is not None else ""
        cells = (
            f"`{key}`",
            NAMES[key] if key in NAMES and "anyOf" in schema else self.type_of(schema),
            "required" if required else f"`{default}`" if default else "",
            sentence(schema.get("description", "")),
            self.example(model, key, default),
        )
        return f"| {' | '.join(cells)} |"

    def _kinds(self, schema: Mapping[str, Any]) -> list[str]:
        """Returns each of the kinds that a value can be of, in words."""
        parts = [one for one in schema["anyOf"] if one.get("type") != "null"]
        # A pattern is another spelling of what the other parts say.
        return list(dict.fromkeys(self.type_of(one) for one in parts if "pattern" not in one or len(parts) == 1))

    def type_of(self, schema: Mapping[str, Any]) -> str:
        """Returns what a value can be, in words."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return f"[{title(name).lower()}](#{anchor(name)})"
        if "anyOf" in schema:
            return " or ".join(self._kinds(schema))
        if "const" in schema or "enum" in schema:
            return " or ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
        kind = schema.get("type")
        if kind == "array" and "prefixItems" in schema:
            return f"[{', '.join(self.type_of({'type': one['type']}) for one in schema['prefixItems'])}]"
        if kind == "array":
            return f"list of {self.type_of(schema.get('items') or {})}"
        if kind == "object":
            inner = schema.get("additionalProperties")
            return f"mapping of names to {self.type_of(inner)}" if isinstance(inner, dict) else "mapping"
        words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
        return words.get(str(kind), "anything") + bounds(schema)


def bounds(schema: Mapping[str, Any]) -> str:
    """Returns the range of a number, in words."""
    said = [
        f"{words} {f'{schema[key]:,}'.removesuffix('.0')}"
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "more than"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "less than"),
        )
        if key in schema
    ]
    return f", {', '.join(said)}" if said else ""


def references(schema: Any) -> Iterator[str]:
    """Yields the names of the models that a schema refers to, in order."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for one in schema.values():
            yield from references(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from references(one)


def title(model: str) -> str:
    """Returns the heading of a model: its class's name in words."""
    words = re.findall("[A-Z][a-z]+", model.removesuffix("Spec").removesuffix("Document"))
    return " ".join([words[0], *map(str.lower, words[1:])])


def anchor(model: str) -> str:
    """Returns what a link to the section of a model ends in."""
    return title(model).lower().replace(" ", "-")


def sentence(text: str) -> str:
    """Returns a description as a cell of a table."""
    return (text[:1].upper() + text[1:]).replace("\n", "<br>").replace("|", "\\|")


def flow(value: Any) -> str:
    """Returns a value as YAML in one line."""
    text: str = yaml.dump(value, Dumper=_Line, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


class _Line(yaml.SafeDumper):
    """Writes text with line ends in one line."""


_Line.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None),
)


def methods_section() -> Iterator[str]:
    """Yields the section of merge methods."""
    yield "## Merge methods\n"
    for method in METHODS.own.values():
        yield f"### {method.name}\n\n{method.summary} [Source]({method.paper}). {merges(method)}\n"
        if method.parameters:
            rows = (parameter_row(parameter) for parameter in method.parameters)
            yield "\n".join(
                ["| parameter | given for | value | default | meaning |", "|---|---|---|---|---|", *rows, ""]
            )


def merges(method: MergeMethod) -> str:
    """Returns what a method merges, in a sentence."""
    fewest, most = method.models
    count = f"{fewest} or more models" if most is None else f"{fewest} model{'s' * (fewest > 1)}"
    count = count if most in (None, fewest) else f"{fewest} to {most} models"
    base = {
        "required": "and their base, which it needs",
        "endpoint": "and the base: the two ends",
        "optional": "and a base, if the recipe has one",
        "unused": "and no base",
    }[method.base]
    return f"Merges {count} {base}."


def parameter_row(parameter: Parameter) -> str:
    """Returns the line of a parameter in its method's table."""
    default = "required" if parameter.default is None else f"`{flow(parameter.default)}`"
    each = "each model" if parameter.per_model else "the merge"
    return f"| `{parameter.name}` | {each} | {parameter.expected} | {default} | {parameter.summary} |"


def optimizers_section() -> Iterator[str]:
    """Yields the section of optimizers."""
    yield "## Optimizers\n\n| name | searches | meaning |\n|---|---|---|"
    for table, what in ((OF_NUMBERS, "numbers"), (OF_STACKS, "stacks of layers")):
        for name, maker in table.own.items():
            yield f"| `{name}` | {what} | {summary(maker)} |"


def metrics_section() -> Iterator[str]:
    """Yields the section of metrics of completions."""
    yield "## Metrics\n\nOf tasks of type `generate`.\n\n| name | meaning |\n|---|---|"
    for name, metric in METRICS.own.items():
        yield f"| `{name}` | {sentence(metric_summary(metric))} |"


def written() -> dict[str, str]:
    """Returns the texts of all files of the reference, by their paths in the repository."""
    folders = {"recipe": [ROOT / "recipes", ROOT / "recipes" / "mergekit"], "task": [ROOT / "eval_tasks"]}
    schemas = {"recipe": recipe_schema(), "task": task_schema()}
    pages = {}
    for kind, schema in schemas.items():
        paths = [path for folder in folders[kind] for path in sorted(folder.glob("*.yaml"))]
        pages[kind] = Page(schema, [*(document.read(path).data for path in paths), *yaml.safe_load_all(RARE[kind])])
    more = {"recipe": [*methods_section(), *optimizers_section()], "task": [*metrics_section()]}
    heads = {"recipe": RECIPES, "task": TASKS}
    found = {f"docs/{kind}.schema.json": json.dumps(schema, indent=2) + "\n" for kind, schema in schemas.items()}
    for kind, page in pages.items():
        parts = [heads[kind], *page.sections(), *more[kind]]
        found[f"docs/{kind}-reference.md"] = "\n".join(parts).rstrip("\n") + "\n"
    return found


def main() -> None:
    """Writes the files."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path, text in written().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(f"{path}: written")


if __name__ == "__main__":
    main()
