"""`Recipe`: one document that says how to make one model out of others, with or without holes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, StrictBool, Tag, model_validator

from evomerge import document
from evomerge.document import Location, Source, Strict
from evomerge.errors import RecipeError
from evomerge.paths import find
from evomerge.recipe.items import Items, ItemSubsets
from evomerge.recipe.sources import ModelEntry, ModelName, Module, Section, Slice, TokensName, exactly_one
from evomerge.recipe.stacks import Mutations, StackHole, stack_faults
from evomerge.recipe.tokens import TokenizerSection
from evomerge.recipe.values import Hole, Number

_DTypeName = Literal["float32", "float16", "bfloat16"]
DType = Annotated[
    _DTypeName,
    BeforeValidator(
        lambda raw: raw.removeprefix("torch.") if isinstance(raw, str) else raw,
        json_schema_input_type=_DTypeName | Annotated[str, Field(pattern=r"^torch\.(float32|float16|bfloat16)$")],
    ),
]
"""What tensors are stored in; ``torch.bfloat16`` is ``bfloat16`` too."""


def _slices_kind(raw: Any) -> str:
    return "stack" if isinstance(raw, dict | StackHole) else "slices"


Slices = Annotated[
    Annotated[Annotated[tuple[Slice, ...], Field(min_length=1)], Tag("slices")] | Annotated[StackHole, Tag("stack")],
    Discriminator(_slices_kind),
]
"""The layers of the result from the first to the last, or a hole in their place."""


class Component(Strict):
    """The part of a larger model that is merged; its other parts are copied unchanged.

    Attributes:
        language_of: a model of text and images whose language model is merged; so is the result.
    """

    language_of: ModelName


class TaskEntry(Strict):
    """A task that candidates are scored on, and its share in the objective.

    Attributes:
        task: the task file, or ``lm_eval:NAME`` for one of lm-eval's tasks.
        weight: its share, relative to the other tasks'. Within these bounds no sum of weights overflows, and no
            task is lost to rounding.
    """

    task: str
    weight: float = Field(default=1.0, ge=1e-6, le=1e6)


AUTO_START = 20
AUTO_SHARE = 0.08
AUTO_GROWTH = 1.06
"""What ``items: auto`` stands for: it starts with this share of the items, but at least so many."""

MOST_EVALUATIONS = 1_000_000
"""More are refused: at a second each they would take eleven days."""


class SearchSettings(Strict):
    """How the holes are searched.

    Attributes:
        optimizer: what proposes candidates; by default cma-es, for stacks of layers in any order genetic.
        evaluations: candidates to score, in addition to the parents and their mean; with subsets of items, a candidate
            that is scored on several generations' subsets counts once for each.
        seed: seeds every random choice of the search.
        sigma: CMA-ES's first step, as a fraction of each range; by default a sixth.
        population: candidates per generation, at most `evaluations`; by default 4 + floor(3 ln n) for n numbers, and 32
            for stacks of layers.
        mutations: the genetic search's rates; those that are not given keep their defaults.
        items: on how many of the search items each generation is scored.
        normalize: standardize the scores of each task before the weighted mean; by default where the tasks' metrics
            have different units.
    """

    optimizer: str = "cma-es"
    evaluations: int = Field(default=200, ge=1, le=MOST_EVALUATIONS)
    seed: int = Field(default=0, ge=0, lt=2**32)
    sigma: float | None = Field(default=None, gt=0, le=1)
    population: int | None = Field(default=None, ge=2)
    mutations: Mutations = Field(default_factory=Mutations)
    items: Items = "all"
    normalize: bool | None = None

    @model_validator(mode="after")
    def _bounded(self) -> SearchSettings:
        if self.population is not None and self.population > self.evaluations:
            raise ValueError(f"population is {self.population:,}, more than the {self.evaluations:,} evaluations")
        return self

    def subsets(self, total: int) -> ItemSubsets | None:
        """Returns the subsets to score generations on, of `total` items; None where each is scored on all."""
        if self.items == "auto":
            return ItemSubsets(start=max(AUTO_START, round(total * AUTO_SHARE)), growth=AUTO_GROWTH)
        return None if self.items == "all" else self.items


SEARCH_KEYS = ("tasks", "data", "allow_test_set", "search")
"""The keys of a search recipe that say nothing of the merge."""

_NOWHERE = Source("recipe", {}, {})
_MODEL_KEYS = frozenset({"model", "models", "base_model", "language_of"})


class Recipe(Strict):
    """A merge recipe in mergekit's vocabulary; a search recipe if it has holes.

    Attributes:
        merge_method: how tensors are merged.
        base_model: the common ancestor, or slerp's first end; gives the config and the tokenizer.
        models: the models of a merge over all their layers. A recipe has one of `models`, `slices` and `modules`.
        slices: the layers of the result from the first to the last, or a hole in their place.
        modules: parts of the model, such as its text decoder, each with its own `models` or `slices`.
        component: the part of a larger model that is merged, if not all of it.
        parameters: values for all models that do not have their own.
        dtype: what the result is stored in; the base's own if unset.
        out_dtype: what the result is stored in; overrides `dtype` (in which mergekit also computes).
        tokenizer_source: the vocabulary of the result: ``base``, ``union`` or a model; short for `tokenizer`.
        tokenizer: the vocabulary of the result, and where its tokens' embeddings come from.
        chat_template: Jinja text for the result's tokenizer, or the name of a known template; ``auto`` takes the
            one that most of the models have. By default, the tokenizer keeps its own.
        name: a name for people; without effect.
        tasks: what candidates are scored on.
        data: local files in place of the data sets on the Hub that tasks name: ``openai/gsm8k:test: test.jsonl``.
        allow_test_set: search even on a well-known test set; result and model card then say so.
        search: how the holes are searched.
    """

    merge_method: str
    base_model: ModelName | None = None
    models: tuple[ModelEntry, ...] | None = Field(default=None, min_length=1)
    slices: Slices | None = None
    modules: dict[str, Module] | None = Field(default=None, min_length=1)
    component: Component | None = None
    parameters: Section = Field(default_factory=dict)
    dtype: DType | None = None
    out_dtype: DType | None = None
    tokenizer_source: TokensName | None = None
    tokenizer: TokenizerSection | None = None
    chat_template: str | None = None
    name: str | None = None
    tasks: tuple[TaskEntry, ...] = ()
    data: dict[str, str] = Field(default_factory=dict)
    allow_test_set: StrictBool = False
    search: SearchSettings | None = None

    _source: Source = PrivateAttr(default=_NOWHERE)

    @model_validator(mode="after")
    def _one_form(self) -> Recipe:
        exactly_one(self, "models", "slices", "modules")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError('tokenizer_source is short for "tokenizer: {source: ...}"; use one of the two')
        return self

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """Returns the recipe in the file `path`.

        Raises:
            RecipeError: with one line for every fault of the file.
        """
        return cls.checked(document.read(Path(path), RecipeError))

    @classmethod
    def parse(cls, text: str, name: str = "recipe") -> Recipe:
        """Returns the recipe in `text`, called `name` in messages.

        Raises:
            RecipeError: with one line for every fault of the text.
        """
        return cls.checked(document.parse(text, name, RecipeError))

    @classmethod
    def checked(cls, source: Source) -> Recipe:
        """Returns the recipe that a parsed document, or a part of one, holds.

        Raises:
            RecipeError: with one line for every fault.
        """
        if isinstance(source.data, dict) and "stages" in source.data:
            message = "stages make a model in several searches: expected one recipe; run evomerge search"
            raise RecipeError([source.fault(("stages",), message)])
        # Before the rest is validated, so that all faults are reported at once.
        faults = [source.fault(location, message) for location, message in stack_faults(source.data)]
        try:
            recipe = document.validate(source, cls, RecipeError)
        except RecipeError as fault:
            raise RecipeError([*fault.faults, *faults]) from None
        if faults:
            raise RecipeError(faults)
        recipe._source = source
        return recipe

    @property
    def folders(self) -> Sequence[Path]:
        """Where relative paths are resolved: beside the recipe's file, then in the current folder."""
        return self._source.folders

    def local_files(self) -> dict[str, Path]:
        """Returns the local files that are read in place of data sets on the Hub, found in `folders`."""
        return {key: find(file, self.folders) or Path(file) for key, file in self.data.items()}

    def fault(self, location: Location, message: str) -> str:
        """Returns a fault with the file and line of `location`."""
        return self._source.fault(location, message)

    def model_faults(self, name: str, error: Exception) -> list[str]:
        """Returns the faults of a model, each with the line where the recipe first names it."""
        named = (location for location, part in self.leaves() if part == name and _MODEL_KEYS & {*location[-2:]})
        location = next(named, ())
        lines = str(error).splitlines()
        if self._source is _NOWHERE:
            return lines
        return [self.fault(location, line if line.startswith(name) else f"{name}: {line}") for line in lines]

    @property
    def stack_hole(self) -> StackHole | None:
        """The hole in place of the slices, if the recipe has one."""
        return self.slices if isinstance(self.slices, StackHole) else None

    def settings(self) -> SearchSettings:
        """Returns how the holes are searched, with the default optimizer for them."""
        given = self.search or SearchSettings()
        ordered = self.stack_hole is not None and self.stack_hole.search.encoding == "order"
        if ordered and "optimizer" not in given.model_fields_set:
            return given.model_copy(update={"optimizer": "genetic"})
        return given

    def modules_by_place(self) -> dict[Location, Module]:
        """Returns every module by its location; a recipe of models or slices is one module, at ``()``.

        A recipe whose slices are searched has none yet.
        """
        if isinstance(self.slices, StackHole):
            return {}
        if self.modules is not None:
            return {("modules", name): module for name, module in self.modules.items()}
        return {(): Module(models=self.models, slices=self.slices)}

    def vocabulary(self) -> TokenizerSection | None:
        """Returns the recipe's tokenizer section, in either form; None if it has none."""
        if self.tokenizer_source is not None:
            return TokenizerSection(source=self.tokenizer_source)
        return self.tokenizer

    def references(self) -> tuple[str, ...]:
        """Returns every model that the recipe merges, once: in the recipe's order, bases last."""
        modules = self.modules_by_place().values()
        bases = [part.base_model for module in modules for part in module.slices or () if part.base_model]
        whole = self.component.language_of if self.component else None
        return tuple(dict.fromkeys([*self.parents(), *bases, *filter(None, (self.base_model, whole))]))

    def parents(self) -> tuple[str, ...]:
        """Returns the models that are merged, once each: those listed, a base only if it is listed too.

        slerp and similar methods name one end as the base alone; the merge counts it as a parent all the same.
        """
        if self.stack_hole is not None:
            return self.stack_hole.search.models
        return tuple(dict.fromkeys(name for module in self.modules_by_place().values() for name in module.listed()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.as_data() == other.as_data()

    def __hash__(self) -> int:
        return hash(self.parents())

    def holes(self) -> dict[Location, Hole | StackHole]:
        """Returns every hole by its location, in the document's order."""
        return {location: part for location, part in self.leaves() if isinstance(part, Hole | StackHole)}

    def leaves(self) -> Iterator[tuple[Location, Any]]:
        """Yields every hole and every plain value with its location, in the document's order."""
        return _parts(self, ())

    def number_holes(self) -> dict[Location, Hole]:
        """Returns the holes for numbers by their locations: all but a `stack_hole`."""
        return {location: hole for location, hole in self.holes().items() if isinstance(hole, Hole)}

    def fill(self, values: Mapping[Location, Number | tuple[Number, ...] | tuple[Slice, ...]]) -> Recipe:
        """Returns the recipe with numbers, gradients or slices instead of the holes at the given locations.

        Raises:
            KeyError: there is no hole at one of the locations.
        """
        unknown = set(values) - set(self.holes())
        if unknown:
            raise KeyError(f"no hole at {', '.join(sorted(map(document.spelled, unknown)))}")
        filled = self
        for location, value in values.items():
            filled = _replaced(filled, location, value)
        return filled

    def structure(self) -> Hashable:
        """Returns a value that is equal for recipes that differ only in the numbers of their parameters."""
        return _structure(self.as_data(), numbers=False)

    def merge_only(self) -> Recipe:
        """Returns the recipe without its tasks and search settings."""
        kept = Recipe.model_validate({k: v for k, v in self.as_data().items() if k not in SEARCH_KEYS})
        kept._source = self._source
        return kept

    def with_models(self, rename: Callable[[str], str]) -> Recipe:
        """Returns the recipe with its models renamed."""
        return Recipe.model_validate(self.as_data(), context=rename)

    def as_data(self) -> dict[str, Any]:
        """Returns the document as plain dicts, lists, numbers and strings; only keys that were given."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_yaml(self, comment: str = "") -> str:
        """Returns the document as YAML; the lines of `comment` come first, each after ``#``.

        Parsing the text gives an equal recipe, every number exact.
        """
        head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
        return head + document.to_yaml(self.as_data())


def _parts(value: Any, location: Location) -> Iterator[tuple[Location, Any]]:
    """Yields every hole and every plain value with its location."""
    if isinstance(value, StackHole):
        yield location, value
    if isinstance(value, Strict) and not isinstance(value, Hole):
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name), (*location, name))
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _parts(part, (*location, key))
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _parts(part, (*location, i))
    else:
        yield location, value


def _replaced(whole: Any, location: Location, value: Any) -> Any:
    """Returns `whole` with `value` at `location`; other parts are shared, and nothing is validated again."""
    if not location:
        return value
    key, rest = location[0], location[1:]
    if isinstance(whole, Strict):
        return whole.model_copy(update={str(key): _replaced(getattr(whole, str(key)), rest, value)})
    if isinstance(whole, dict):
        return {**whole, key: _replaced(whole[key], rest, value)}
    return tuple(_replaced(part, rest, value) if i == key else part for i, part in enumerate(whole))


def _structure(data: Any, *, numbers: bool) -> Hashable:
    """Returns plain data as a hashable value; if `numbers`, without its numbers and lists of them."""
    if isinstance(data, dict):
        return tuple((key, _structure(part, numbers=numbers or key == "parameters")) for key, part in data.items())
    if isinstance(data, list):
        parts = tuple(_structure(part, numbers=numbers) for part in data)
        return parts if not numbers or any(part is not None for part in parts) else None
    return None if numbers and isinstance(data, bool | int | float) else data
