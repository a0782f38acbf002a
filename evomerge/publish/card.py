"""The model card: README.md with the Hub's metadata, from a recipe and the run that found it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from evomerge.checkpoint import Reference
from evomerge.errors import EvomergeError
from evomerge.methods import METHODS
from evomerge.publish.benchmarks import benchmark_files
from evomerge.publish.checks import CARD, PICTURE, RECIPE, read_card
from evomerge.publish.licences import Licence
from evomerge.publish.parents import Parent, licence_of, parents
from evomerge.recipe import Recipe
from evomerge.report import drawing_of, to_svg
from evomerge.report.names import printable, short_names, with_short_names
from evomerge.study.record import read_result
from evomerge.study.stages import MODEL
from evomerge.study.trial import MEAN

_OWN_METHODS = frozenset({"tsv", "iso_c", "wudi"})
"""The methods that mergekit does not have."""

_NEGATED = frozenset({"nll_per_token", "bits_per_byte"})
"""Metrics whose scores are their negatives, so that higher is better."""

_SEAL = "\n<!-- Written by evomerge, which replaces this card until somebody edits it: "

_PICTURE_LINE = f"![The recipe]({PICTURE})\n\n"

_Scores = Mapping[str, Any]


def card_files(recipe: Recipe, name: str, run: Path | None = None, licence: Licence | None = None) -> dict[str, str]:
    """Returns the texts of the card, the recipe's picture and scores on benchmarks, by their names in the folder.

    Args:
        recipe: what the model was made from.
        name: the model's name, the card's title.
        run: the folder of the run that found the recipe, if one did; its result is used if the recipe is its winner.
        licence: the licence to state; by default the one that follows from the models' cards, if one does.
    """
    models = parents(recipe)
    resolved = licence or licence_of(models)
    result = _result(run, recipe) if run else None
    benchmarks = score_files(recipe, run) if run else {}
    metadata = _metadata(recipe, name, models, resolved, _results(result))
    body = [
        _introduction(recipe, name, models),
        _found(result) if result else "",
        _scores(result) if result else "",
        _reproduction(recipe, models),
        _licences(models, resolved) if isinstance(resolved, Licence) else "",
    ]
    text = f"---\n{metadata}\n---\n\n" + "\n".join(part for part in body if part)
    try:
        return {CARD: sealed(text), PICTURE: to_svg(drawing_of(recipe.merge_only())), **benchmarks}
    except EvomergeError:  # More layers than a picture shows.
        return {CARD: sealed(text.replace(_PICTURE_LINE, "")), **benchmarks}


def score_files(recipe: Recipe, run: Path) -> dict[str, str]:
    """Returns the files of a run's scores on benchmarks, by their names in the model's folder; see `card_files`."""
    result = _result(run, recipe)
    return benchmark_files(result) if result else {}


def sealed(text: str) -> str:
    """Returns a card with a last line by which `is_sealed` knows that nobody has edited it."""
    return f"{text}{_SEAL}{sha256(text.encode()).hexdigest()[:16]} -->\n"


def unsealed(text: str) -> str:
    """Returns a card without the line that `sealed` adds."""
    return text.rpartition(_SEAL)[0] or text


def is_sealed(text: str) -> bool:
    """Returns whether a card is as evomerge wrote it, so that it may be replaced."""
    return text == sealed(unsealed(text))


def with_licence(text: str, licence: Licence) -> str:
    """Returns a card that states this licence, and is sealed if it was."""
    card = read_card(unsealed(text) if is_sealed(text) else text, CARD)
    card.data.license, card.data.license_name, card.data.license_link = licence.id, licence.name, licence.link
    return sealed(str(card)) if is_sealed(text) else str(card)


def _result(run: Path, recipe: Recipe) -> Mapping[str, Any] | None:
    """Returns what result.json says, if the run has ended and the recipe is its winner."""
    try:
        result = read_result(run)
        winner = Recipe.model_validate(result["winner"]["recipe"])
    except (ValueError, LookupError, TypeError):
        return None

    # best.yaml has absolute paths, and a stage's model in its folder; result.json has the search recipe's names.
    def bare(one: Recipe) -> Recipe:
        return one.merge_only().with_models(lambda name: name.rstrip("/").removesuffix(f"/{MODEL}").rpartition("/")[2])

    return result if bare(winner) == bare(recipe) else None


def _results(result: Mapping[str, Any] | None) -> list[Any]:
    """Returns the winner's holdout scores as the Hub's `EvalResult`, one for each task."""
    from huggingface_hub import EvalResult

    if result is None:
        return []
    metrics = {task["task"]: task["metric"] for task in _search(result)["tasks"]}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=f"{name}, held-out items",
            dataset_split="holdout",
            metric_type=metrics.get(name, "score"),
            metric_value=-value if metrics.get(name) in _NEGATED else value,
        )
        for name, value in (result["winner"]["holdout_tasks"] or {}).items()
    ]


def _search(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns how the search was done; runs of earlier versions do not say."""
    return result.get("search") or {"tasks": []}


def _metadata(recipe: Recipe, name: str, models: Sequence[Parent], licence: Licence | str, results: list[Any]) -> str:
    from huggingface_hub import ModelCardData

    bases = list(dict.fromkeys(base for one in models for base in one.bases))
    languages = list(dict.fromkeys(language for one in models for language in one.languages))
    runs_in_mergekit = recipe.merge_method in METHODS.own.keys() - _OWN_METHODS and recipe.component is None
    stated = licence if isinstance(licence, Licence) else None
    data = ModelCardData(
        base_model=bases or None,
        base_model_relation="merge" if bases else None,
        library_name="transformers",
        license=stated.id if stated else None,
        license_name=stated.name if stated else None,
        license_link=stated.link if stated else None,
        language=languages or None,
        tags=["merge", "evomerge", *(["mergekit"] if runs_in_mergekit else [])],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _introduction(recipe: Recipe, name: str, models: Sequence[Parent]) -> str:
    method = METHODS[recipe.merge_method]
    shown = public_names(models)
    lines = [f"- {_link(one, shown[one.name])}" for one in models]
    return (
        f"# {_escaped(name)}\n\nA merge of these models by `{method.name}` ([source]({method.paper})), made with"
        f" evomerge without any training:\n\n" + "\n".join(lines) + f"\n\n{_PICTURE_LINE}"
        f"{_yaml(recipe, models)}"
    )


def _yaml(recipe: Recipe, models: Sequence[Parent]) -> str:
    """Returns a recipe as a block of YAML, without paths of this machine."""
    text = public_recipe(recipe, models).to_yaml()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}{fence}\n"


def _found(result: Mapping[str, Any]) -> str:
    search = _search(result)
    how = f", with the optimizer `{search['optimizer']}` and seed {search['seed']}" if "seed" in search else ""
    failures = f", {result['failures']} of which failed" if result["failures"] else ""
    names = [other["model"] for other in _others(result)]
    said = [_escaped(with_short_names(text, names)) for text in (result["verdict"], *result.get("notes", ()))]
    lines = [
        f"- `{task['task']}`: `{task['metric']}`, {task['holdout_items']} held-out items, weight {task['weight']:g}"
        for task in search["tasks"]
    ]
    return "\n".join(
        [
            "## How it was found\n",
            f"By a search over {result['evaluations']} candidates{failures}{how}. The search saw one set of items; the"
            f" scores below named holdout are on others.\n",
            *(f"{text}\n" for text in said),
            *([*lines, ""] if lines else []),
        ]
    )


def _others(result: Mapping[str, Any]) -> list[_Scores]:
    """Returns the models that the winner is compared with."""
    return [*result["parents"], *filter(None, (result["base"], result["mean"])), *result.get("others", ())]


def _scores(result: Mapping[str, Any]) -> str:
    others = _others(result)
    shown = _shown([other["model"] for other in others])
    names = list(result["winner"]["holdout_tasks"] or ())
    tasks = names if len(names) > 1 else []
    rows = [_row("**this model**", result["winner"], tasks)]
    for other in others:
        label = "mean of the parents" if other["model"] == MEAN else shown[other["model"]]
        rows.append(_row(_escaped(label), other, tasks))
    head = ["model", "search", "holdout", "95% interval", *map(_escaped, tasks)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])
    several = " Search and holdout are the weighted mean of the tasks; the tasks' columns are of the holdout."
    return f"## Scores\n\nHigher is better.{several if tasks else ''}\n\n{table}\n"


def _row(label: str, scores: _Scores, tasks: Sequence[str]) -> list[str]:
    interval = scores["holdout_ci"]
    between = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "none"
    means = (_number(scores["holdout_tasks"].get(task)) for task in tasks)
    return [label, _number(scores["search"]), _number(scores["holdout"]), between, *means]


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.3f}"


def _reproduction(recipe: Recipe, models: Sequence[Parent]) -> str:
    text = (
        f"## How to reproduce it\n\nThe recipe is in [`{RECIPE}`]({RECIPE}). This makes the same weights, bit for bit,"
        f" from the same models:\n\n```console\nevomerge apply {RECIPE} merged\n```\n"
    )
    package = METHODS.origin(recipe.merge_method)
    if package:
        method = f"`{recipe.merge_method}`"
        text += f"\nThe method {method} is that of the package {_escaped(package)}, which must be installed.\n"
    names = public_names(models)
    local = [f"`{names[one.name]}`" for one in models if one.hub_id is None]
    if local:
        text += f"\n{', '.join(local)}: not on the Hub under this name; in the recipe, name the folder of your copy.\n"
    for one in models:
        if one.recipe is not None:
            text += f"\n`{names[one.name]}` is a merge too, by this recipe:\n\n{_yaml(one.recipe, parents(one.recipe))}"
    return text


def public_names(models: Sequence[Parent]) -> dict[str, str]:
    """Returns what others can call models, by their names in the recipe: ids of the Hub, or folders without paths.

    A stage's model is called as the stage.
    """
    names = [one.hub_name or (one.name.removesuffix(f"/{MODEL}") if one.recipe else one.name) for one in models]
    return {one.name: one.hub_name or end for one, end in zip(models, short_names(names), strict=True)}


def public_recipe(recipe: Recipe, models: Sequence[Parent]) -> Recipe:
    """Returns what is merged, with the names of `public_names` in place of paths of this machine."""
    names = public_names(models)

    def public(reference: str) -> str:
        whole = Reference.parse(reference, recipe.folders)
        parts = [part for part in (whole.model_text, whole.adapter_text) if part is not None]
        return "+".join(names.get(part, part) for part in parts)

    return recipe.merge_only().with_models(public)


def _licences(models: Sequence[Parent], licence: Licence) -> str:
    shown = public_names(models)
    lines = [f"- {_link(one, shown[one.name])}: {_escaped(str(one.licence or 'not stated'))}" for one in models]
    return (
        f"## License\n\n{_escaped(str(licence))}. The models that were merged have these:\n\n" + "\n".join(lines) + "\n"
    )


def _shown(names: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, short_names(names), strict=True))


def _link(model: Parent, public: str) -> str:
    return f"[{_escaped(public)}](https://huggingface.co/{model.hub_id})" if model.hub_id else f"`{public}`"


def _escaped(text: str) -> str:
    """Returns text as one line in which no character is Markdown or HTML."""
    line = printable(" ".join(text.split()))
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#&~" else character for character in line)
