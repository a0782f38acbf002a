"""`publish`: checks a model's folder, or makes it from a run, and sends it to the Hub."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoint import TEMPLATES, replace_text
from evomerge.errors import EvomergeError, PublishError
from evomerge.merge import checked_method, into_directory, open_recipe
from evomerge.publish.card import card_files
from evomerge.publish.checks import CARD, RECIPE, check_model, check_repo_id, read_card
from evomerge.publish.licences import Licence, named
from evomerge.publish.parents import folders_named, licence_of, parents
from evomerge.recipe import BEST, Recipe, is_run
from evomerge.study.stages import MODEL


@dataclass(frozen=True)
class Publication:
    """What was sent to the Hub, or would be.

    Attributes:
        repo_id: the repository, as ``OWNER/NAME``.
        folder: the model's folder.
        files: the files' sizes in bytes, by name.
        left_out: what else is in the folder, and is not sent.
        local_models: models that the recipe names by paths of this machine, which become public.
        url: of the commit; None in a dry run.
    """

    repo_id: str
    folder: Path
    files: Mapping[str, int]
    left_out: tuple[str, ...]
    local_models: tuple[str, ...]
    url: str | None

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(self.files.values())


def publish(
    source: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    licence: str | None = None,
    card: bool = True,
) -> Publication:
    """Sends a model to a repository on the Hub, which is made where there is none.

    Everything is checked before a byte is sent. What was sent of an upload that broke off is not sent again. The
    token is the one of `hf auth login` or HF_TOKEN.

    Args:
        source: a model's folder, or the folder of a run, whose winner is then applied into its folder ``model``.
        repo_id: ``OWNER/NAME``.
        private: make the repository private; an existing one must be private already.
        revision: the branch to send to, which is made where there is none; by default ``main``.
        dry_run: check and make everything, and send nothing.
        licence: the Hub's name of the licence to state in the card, in place of the one it states.
        card: send README.md, which is written where there is none and must state a licence.

    Raises:
        PublishError: a check fails, or the Hub refuses; the message says how to complete it.
        RecipeError: the run's winner cannot be applied.
        CheckpointError: a file is missing, truncated, unsafe or inconsistent.
    """
    source = Path(source)
    check_repo_id(repo_id)
    stated = None if licence is None else named(licence)
    if not dry_run:
        _check_token()
    folder = apply_winner(source) if is_run(source) else source
    names = check_model(folder)
    recipe = Recipe.load(folder / RECIPE) if RECIPE in names else None
    texts = _with_card(folder, recipe, CARD in names, repo_id.rpartition("/")[2], stated) if card else {}
    sent = sorted({*names, *texts}) if card else [name for name in names if name != CARD]
    files = {name: len(texts[name].encode()) if name in texts else (folder / name).stat().st_size for name in sent}
    left_out = tuple(sorted(path.name for path in folder.iterdir() if path.name not in {*sent, TEMPLATES}))
    url = None
    if not dry_run:
        for name, text in texts.items():
            _write(folder / name, text)
        with _hub_errors(repo_id):
            url = _send(folder, repo_id, sent, private, revision)
    return Publication(repo_id, folder, files, left_out, folders_named(recipe) if recipe else (), url)


def apply_winner(run: Path) -> Path:
    """Returns the folder of the model of a run's best recipe, written there unless it was before.

    Raises:
        EvomergeError: as `open_recipe` and `into_directory`.
    """
    path, folder = run / BEST, run / MODEL
    recipe = Recipe.load(path)
    try:
        if Recipe.load(folder / RECIPE) == recipe.merge_only() and (folder / "config.json").is_file():
            return folder
    except EvomergeError:
        pass
    texts = card_files(recipe, run.resolve().name, run)
    into_directory(open_recipe(recipe), folder, overwrite=True, needed=[path], texts=texts)
    return folder


def _with_card(
    folder: Path, recipe: Recipe | None, has_card: bool, name: str, licence: Licence | None
) -> dict[str, str]:
    """Returns the files to write so that the folder has a card that states a licence: none, if it has that already."""
    path = folder / CARD
    if has_card:
        texts = {CARD: path.read_text(encoding="utf-8", errors="replace")}
    elif recipe is not None:
        checked_method(recipe)
        texts = card_files(recipe, name, licence=licence)
    else:
        raise PublishError(
            f"{folder}: has no {CARD}, and no {RECIPE} to write one from; write one, or publish without: --no-card"
        )
    card = read_card(texts[CARD], str(path))
    if card.data.get("license") and licence is None:
        return {} if has_card else texts
    found = licence or (licence_of(parents(recipe)) if recipe is not None else f"{path} states none")
    if isinstance(found, str):
        raise PublishError(
            f"no licence to publish {name} under: {found}; nothing was sent. Read the licences of the models, decide,"
            " and name the merge's: --license apache-2.0, for instance"
        )
    card.data.license, card.data.license_name, card.data.license_link = found.id, found.name, found.link
    return {**texts, CARD: str(card)}


def _write(path: Path, text: str) -> None:
    """Writes a file so that the old one stays until the new one is complete."""
    try:
        replace_text(path, text)
    except OSError as fault:
        raise PublishError(f"{path}: cannot be written: {fault.strerror or fault}; nothing was sent") from None


def _check_token() -> None:
    """Checks that there is a token, without keeping it.

    Raises:
        PublishError: there is none.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise PublishError(
            "no token for the Hub: log in with `hf auth login`, or set HF_TOKEN to a token with write access"
            " (https://huggingface.co/settings/tokens); nothing was sent"
        )


def _send(folder: Path, repo_id: str, names: list[str], private: bool, revision: str | None) -> str:
    """Makes the repository and the branch where there are none, sends the files, and returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="evomerge")
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise PublishError(
            f"{repo_id}: is public, and --private does not change that; make it private in its settings, name another"
            " repository, or leave out --private; nothing was sent"
        )
    if revision is not None and revision != "main" and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        allow_patterns=[glob.escape(name) for name in names],
        commit_message="Upload a merge made with evomerge",
    )
    return str(commit.commit_url)


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Raises a PublishError in place of the Hub client's errors; the token is in none of its words."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except PublishError:
        raise
    # The Hub's client, the HTTP client under it and the disk raise errors of many kinds.
    except Exception as fault:
        root: BaseException = fault
        while root.__cause__ is not None and not isinstance(root, HfHubHTTPError):
            root = root.__cause__
        text = _refused(root, repo_id) if isinstance(root, HfHubHTTPError) else _broken_off(root, repo_id)
        raise PublishError(text.replace(get_token() or "\0", "(token)")) from None


def _refused(fault: Any, repo_id: str) -> str:
    """Returns what an answer of the Hub that is an error means, and what to do."""
    status = fault.response.status_code
    said = f" ({status}: {fault.server_message or 'no reason given'})".replace("\n", " ")
    owner = repo_id.partition("/")[0]
    if status == 401:
        return (
            f"{repo_id}: the Hub does not accept the token{said}; log in again with `hf auth login`, or set HF_TOKEN to"
            " a valid one"
        )
    if status == 403:
        return (
            f"{repo_id}: the token may not write there{said}; it needs write access to {owner}: make one in"
            " https://huggingface.co/settings/tokens, or name a repository of your own"
        )
    if status == 404:
        return f"{repo_id}: the Hub finds no such repository or branch{said}; check the name and --revision"
    again = "run the same command again: it completes the upload"
    if status == 409:
        return f"{repo_id}: somebody else changed the repository at the same time{said}; {again}"
    if status == 429:
        wait = fault.response.headers.get("Retry-After")
        return f"{repo_id}: too many requests to the Hub{said}; wait {f'{wait} s' if wait else 'a while'}, and {again}"
    if status >= 500:
        return f"{repo_id}: the Hub fails{said}; {again}"
    return f"{repo_id}: the Hub refuses it{said}"


def _broken_off(fault: BaseException, repo_id: str) -> str:
    reason = (str(fault).strip().splitlines() or ["no reason given"])[0]
    if isinstance(fault, ValueError) and not isinstance(fault, json.JSONDecodeError):
        return f"{repo_id}: the Hub refuses it: {' '.join(str(fault).split())}"  # The card's metadata, for instance.
    return (
        f"{repo_id}: the upload broke off ({type(fault).__name__}: {reason}); check the connection, unset"
        " HF_HUB_OFFLINE, and run the same command again: it completes the upload"
    )
