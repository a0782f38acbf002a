"""What the cards of a recipe's models say: their licences and languages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoint import Reference
from evomerge.checkpoint.hub import HUB_ID
from evomerge.errors import RecipeError
from evomerge.paths import find
from evomerge.publish.checks import CARD, RECIPE
from evomerge.publish.licences import LICENCE_ID, Licence, combined
from evomerge.recipe import Recipe

_MOST_BYTES = 1 << 20
"""A card with more is not read."""

_CACHED = re.compile(r"([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})")
"""A model's folder in the Hub's cache, after ``models--``: its owner, name and commit."""

# Of somebody else's card, no more is repeated than this: its text must not become markup of ours.
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z]{2,8})*|multilingual|code")
_LICENCE_NAME = re.compile(r"[\w .()+-]{1,100}", re.ASCII)
_LINK = re.compile(r"(https://)?[\w./~%+-]{1,300}", re.ASCII)


@dataclass(frozen=True)
class Parent:
    """A model, or an adapter, that a recipe names.

    Attributes:
        name: as the recipe names it.
        hub_id: its id on the Hub; None for a folder, but for one in the Hub's cache.
        hub_name: the id and the revision, as a recipe on any machine can name it; None where there is no id.
        licence: as its card states it, or as it follows for a merge without a card; None where it is not known.
        languages: as its card lists them.
        recipe: of a folder that holds a merge without a card, such as a stage of a search, its recipe.
        bases: ids of models on the Hub that it is or was merged from.
    """

    name: str
    hub_id: str | None
    hub_name: str | None
    licence: Licence | None
    languages: tuple[str, ...]
    recipe: Recipe | None
    bases: tuple[str, ...]


def parents(recipe: Recipe, inside: frozenset[Path] = frozenset()) -> list[Parent]:
    """Returns every model and adapter that a recipe names, once each, with what its card says.

    The card of a folder is the README.md in it. The card of a model on the Hub is downloaded into the Hub's cache;
    where that is not possible, nothing is known of it.

    Args:
        recipe: the recipe.
        inside: folders whose recipes are being read, which are not read again.
    """
    return [
        _merged(name, folder, inside | {folder.resolve()})
        if folder is not None and folder.resolve() not in inside and not (folder / CARD).exists()
        else _parent(name, model, folder, _metadata(folder / CARD if folder else _downloaded(model, revision)))
        for name, model, revision, folder in _named(recipe)
    ]


def _merged(name: str, folder: Path, inside: frozenset[Path]) -> Parent:
    """Returns a folder without a card: what is known of it follows from the recipe in it, if it has one."""
    try:
        recipe = Recipe.load(folder / RECIPE)
    except RecipeError:
        return Parent(name, None, None, None, (), None, ())
    models = parents(recipe, inside)
    licence = licence_of(models)
    languages = dict.fromkeys(language for one in models for language in one.languages)
    bases = dict.fromkeys(base for one in models for base in one.bases)
    stated = licence if isinstance(licence, Licence) else None
    return Parent(name, None, None, stated, tuple(languages), recipe, tuple(bases))


def licence_of(models: Iterable[Parent]) -> Licence | str:
    """Returns the licence of a merge of these models, or why there is none."""
    return combined({one.name: one.licence for one in models})


def _named(recipe: Recipe) -> Iterator[tuple[str, str, str | None, Path | None]]:
    """Yields each model and adapter of a recipe once: as it is named, its path or id, its revision, and its folder."""
    seen = set()
    for reference in recipe.references():
        whole = Reference.parse(reference, recipe.folders)
        parts = [(whole.model_text, whole.model, whole.revision)]
        if whole.adapter is not None:
            parts.append((str(whole.adapter_text), whole.adapter, whole.adapter_revision))
        for part in parts:
            if part not in seen:
                seen.add(part)
                yield *part, find(part[1], recipe.folders, os.path.isdir)


def _parent(name: str, model: str, folder: Path | None, metadata: Mapping[str, Any]) -> Parent:
    # A path of a folder that is no longer there is no id.
    hub_id, hub_name = (model, name) if folder is None and HUB_ID.fullmatch(model) else (None, None)
    if folder is not None and (cached := _CACHED.fullmatch(folder.absolute().as_posix().rpartition("/models--")[2])):
        hub_id = f"{cached[1]}/{cached[2]}"
        hub_name = f"{hub_id}@{cached[3]}"
    languages = metadata.get("language")
    listed = [languages] if isinstance(languages, str) else languages if isinstance(languages, list) else []
    spoken = tuple(one for one in listed if isinstance(one, str) and _LANGUAGE.fullmatch(one))
    return Parent(name, hub_id, hub_name, _licence(metadata, hub_id), spoken, None, (hub_id,) if hub_id else ())


def _licence(metadata: Mapping[str, Any], hub_id: str | None) -> Licence | None:
    """Returns the licence that a card states; None where it states none as the Hub names them."""
    licence, name, link = (metadata.get(key) for key in ("license", "license_name", "license_link"))
    if isinstance(licence, list) and len(licence) == 1:
        licence = licence[0]
    if not isinstance(licence, str) or not LICENCE_ID.fullmatch(licence.strip().lower()):
        return None
    name = name if isinstance(name, str) and _LICENCE_NAME.fullmatch(name) else None
    if not isinstance(link, str) or not _LINK.fullmatch(link):
        link = None
    elif not link.startswith("https://"):
        # The name of a file beside that card.
        link = f"https://huggingface.co/{hub_id}/blob/main/{link}" if hub_id else None
    return Licence(licence.strip().lower(), name, link)


def _downloaded(model: str, revision: str | None) -> Path | None:
    """Returns the path of a card in the Hub's cache; None where there is none and it cannot be downloaded."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, CARD, revision=revision))
    # Any failure (the Hub's, the HTTP client's, the disk's) means the same: the card is not known.
    except Exception:
        return None


def _metadata(path: Path | None) -> Mapping[str, Any]:
    """Returns the metadata of a card; nothing where it is not valid, as somebody else wrote it."""
    from huggingface_hub.repocard import metadata_load

    try:
        if path is None or path.stat().st_size > _MOST_BYTES:
            return {}
        return metadata_load(path) or {}
    except Exception:
        return {}
