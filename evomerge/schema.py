"""JSON Schemas of recipes and task files, for editors: made from the models that check them.

Descriptions are those of the models' docstrings; the names of merge methods and optimizers are those of their tables,
with those of installed packages.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from evomerge.methods import METHODS
from evomerge.metrics import METRICS, Metric
from evomerge.recipe import Recipe
from evomerge.recipe.staged import StagesDocument
from evomerge.search import OF_NUMBERS, OF_STACKS
from evomerge.tasks.spec import DEFAULT_METRIC, TYPES

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """Returns the JSON Schema of recipes: with or without holes, or with stages."""
    schema = _schema("Recipe", [Recipe, StagesDocument])
    made = schema["$defs"]
    # Without this, every section of parameters would have its own copy of what a value can be.
    section = made["Recipe"]["properties"]["parameters"]["anyOf"][0]
    for one in [*made.values()]:
        if "parameters" in one.get("properties", {}):
            one["properties"]["parameters"]["anyOf"][0] = {"$ref": "#/$defs/Parameters"}
    made["Value"] = {"description": "What a parameter can be.", **section["additionalProperties"]}
    made["Parameters"] = {
        "description": "The merge method's parameters, by name.",
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/Value", "description": text} for name, text in _parameters().items()},
        "additionalProperties": {"$ref": "#/$defs/Value"},
    }
    optimizers = {name: summary(maker) for table in (OF_NUMBERS, OF_STACKS) for name, maker in table.items()}
    methods = {name: method.summary for name, method in METHODS.items()}
    for model, key, names in (("Recipe", "merge_method", methods), ("SearchSettings", "optimizer", optimizers)):
        del made[model]["properties"][key]["type"]
        made[model]["properties"][key]["anyOf"] = _choices(names)
    made["StagesDocument"]["properties"]["stages"]["additionalProperties"] = {"$ref": "#/$defs/Recipe"}
    return schema


def task_schema() -> Schema:
    """Returns the JSON Schema of task files."""
    schema = _schema("Task", list(TYPES.values()))
    for kind, model in TYPES.items():
        schema["$defs"][model.__name__]["properties"]["type"]["const"] = kind
    key = schema["$defs"]["GenerateSpec"]["properties"]["metric"]
    del schema["$defs"]["MetricSpec"], key["$ref"]
    names = {name: metric_summary(metric) for name, metric in METRICS.items()}
    with_option = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    options = {name: {"description": f"The option of {name}."} for name in names}
    key["anyOf"] = [*_choices(names), {**with_option, "properties": options}]
    key["default"] = DEFAULT_METRIC
    return schema


def metric_summary(metric: Metric) -> str:
    """Returns what a metric scores, in a line."""
    text = summary(metric.compare).removeprefix("Returns ")
    return text[:1].upper() + text[1:]


def summary(described: object) -> str:
    """Returns the first paragraph of a docstring as one line."""
    return _text(inspect.getdoc(described) or "").partition("\n\n")[0].replace("\n", " ")


class _Generator(GenerateJsonSchema):
    """Takes descriptions from docstrings, and leaves out titles, which would repeat the names."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made, model = super().model_schema(schema), schema["cls"]
        del made["title"]
        made["description"] = summary(model)
        described = {name: text for base in reversed(model.__mro__) for name, text in _attributes(base).items()}
        for name, one in made.get("properties", {}).items():
            if name in described:
                one["description"] = described[name]
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        made = super().tagged_union_schema(schema)
        # An empty list is both a gradient and a list of rules.
        made["anyOf"] = made.pop("oneOf")
        return made


def _schema(title: str, models: Sequence[type[BaseModel]]) -> Schema:
    """Returns the schema of documents that one of `models` checks."""
    references, made = models_json_schema([(model, "validation") for model in models], schema_generator=_Generator)
    return {
        "$schema": _Generator.schema_dialect,
        "title": title,
        "anyOf": [references[model, "validation"] for model in models],
        **made,
    }


def _attributes(model: type) -> dict[str, str]:
    """Returns the texts of the section Attributes of a class's own docstring, by name."""
    section = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", _text(text)) for name, text in found}


def _text(docstring: str) -> str:
    return docstring.replace("``", "`")


def _parameters() -> dict[str, str]:
    """Returns what each parameter of a method is; where methods differ, of each of them."""
    said: dict[str, dict[str, list[str]]] = {}
    for name, method in METHODS.items():
        for parameter in method.parameters:
            said.setdefault(parameter.name, {}).setdefault(parameter.summary, []).append(name)
    found = {}
    for name, texts in sorted(said.items()):
        several = [f"{', '.join(methods)}: {text}" for text, methods in texts.items()]
        found[name] = "\n".join(several if len(texts) > 1 else texts)
    return found


def _choices(names: Mapping[str, str]) -> list[Schema]:
    """Returns the schemas of some names, each with its description."""
    return [{"const": name, "description": text} for name, text in names.items()]
