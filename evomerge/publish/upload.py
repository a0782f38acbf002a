"""`publish`: checks a model's folder, or makes it from a run, and sends it to the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from evomerge.checkpoint import TEMPLATES, replace_file
from evomerge.errors import EvomergeError, PublishError
from evomerge.merge import checked_method, into_directory, open_recipe
from evomerge.publish.benchmarks import FOLDER
from evomerge.publish.card import (
    card_files,
    is_sealed,
    public_names,
    public_recipe,
    score_files,
    with_licence,
)
from evomerge.publish.checks import (
    CARD,
    RECIPE,
    Progress,
    check_model,
    check_repo_id,
    check_revision,
    read_card,
    unwatched,
)
from evomerge.publish.licences import CONDITIONS, Licence, named
from evomerge.publish.parents import Parent, licence_of, parents
from evomerge.publish.repository import Repository, hub_errors, stale_files, token_for_hub
from evomerge.recipe import BEST, Recipe, is_run
from evomerge.study import runs
from evomerge.study.stages import MODEL


@dataclass(frozen=True)
class Publication:
    """What was sent to the Hub, or would be.

    Attributes:
        repo_id: the repository, as ``OWNER/NAME``.
        folder: the model's folder.
        files: the files' sizes in bytes, by name.
        left_out: what else is in the folder, and is not sent.
        notes: what its user should know, a sentence or two each.
        url: of the commit; None in a dry run.
    """

    repo_id: str
    folder: Path
    files: Mapping[str, int]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    url: str | None

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(self.files.values())


def publish(  # noqa: PLR0913 (each is an option of the command, but for the last)
    source: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    licence: str | None = None,
    card: bool = True,
    progress: Progress = unwatched,
) -> Publication:
    """Sends a model to a repository on the Hub, which is made where there is none.

    Everything is checked before a byte is sent. What was sent of an upload that broke off is not sent again. The
    token is the one of `hf auth login` or HF_TOKEN. The recipe is sent without paths of this machine. Files of another
    model in the repository are removed by the same commit; a card that was edited there stays.

    Args:
        source: a model's folder, or the folder of a run, whose winner is then applied into its folder ``model``.
        repo_id: ``OWNER/NAME``.
        private: make the repository private; an existing one must be private already.
        revision: the branch to send to, which is made where there is none; by default ``main``.
        dry_run: check and make everything, and send nothing.
        licence: the Hub's name of the licence to state in the card, in place of the one it states.
        card: send scores on benchmarks, and README.md, which is written where there is none and must state a licence.
            The card of a run that nobody has edited is written again, with what is known of the search by now.
        progress: called with ``writing`` or ``checking``, the bytes that are done, and all that there are.

    Raises:
        PublishError: a check fails, or the Hub refuses; the message says how to complete it.
        RecipeError: the run's winner cannot be applied.
        CheckpointError: a file is missing, truncated, unsafe or inconsistent.
    """
    source = Path(source)
    check_repo_id(repo_id)
    if revision is not None:
        check_revision(revision)
    stated = None if licence is None else named(licence)
    token = None if dry_run else token_for_hub()
    run = source if is_run(source) else None
    folder = apply_winner(run, progress) if run else source
    before = _states(folder)
    names = check_model(folder, progress)
    recipe = Recipe.load(folder / RECIPE) if RECIPE in names else None
    models = parents(recipe) if recipe is not None else []
    own = _text(folder / CARD)
    written = _card(folder, own, recipe, run, repo_id.rpartition("/")[2], stated) if card else None
    texts = {CARD: written} if written is not None and written != own else {}
    notes = _notes(run, recipe, models, written)
    if recipe is not None:
        texts[RECIPE] = _public_text(recipe, models)
        if run is not None and card:
            texts |= score_files(recipe, run)
    about = (CARD, f"{FOLDER}/")
    sent = sorted(name for name in {*names, *texts} if card or not name.startswith(about))
    left_out = tuple(sorted(path.name for path in folder.iterdir() if path.name not in {*sent, TEMPLATES, FOLDER}))
    url = None
    if token is not None:
        unwritten = [folder / name for name in sent if name not in texts]
        _check_unchanged(before, unwritten, "while it was checked, and nothing was sent")
        if CARD in texts:
            _write(folder / CARD, texts[CARD])
        with hub_errors(repo_id, token), TemporaryDirectory(prefix="evomerge-") as staged:
            hub = Repository(repo_id, revision, token)
            there = hub.make(private)
            if CARD in there and CARD in sent and is_sealed(str(written)) and hub.card_is_edited():
                sent.remove(CARD)
                notes.append(f"{CARD} was edited in {repo_id} and stays as it is; delete it there to have evomerge's")
            stale = stale_files(there, sent)
            if stale:
                notes.append(f"removed from {repo_id}, as parts of another model: {', '.join(stale)}")
            _stage(folder, Path(staged), sent, texts)
            url = hub.send(Path(staged), sent, stale)
        _check_unchanged(before, unwritten, f"while it was sent, so what {repo_id} has was not checked")
    files = {name: len(texts[name].encode()) if name in texts else (folder / name).stat().st_size for name in sent}
    return Publication(repo_id, folder, files, left_out, tuple(notes), url)


def _stage(folder: Path, staged: Path, names: Sequence[str], texts: Mapping[str, str]) -> None:
    """Fills a folder with what is sent: links to a model's files, and the texts that take the place of some."""
    for name in names:
        path = staged / name
        path.parent.mkdir(exist_ok=True)
        if name in texts:
            path.write_text(texts[name], encoding="utf-8", newline="")
        else:
            path.symlink_to((folder / name).resolve())


def _states(folder: Path) -> dict[Path, tuple[int, ...] | None]:
    """Returns what tells the files of a model's folder from themselves after a change."""
    inner = (path for name in (TEMPLATES, FOLDER) for path in (folder / name).glob("*"))
    return {path: _state(path) for path in (*folder.glob("*"), *inner)}


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _check_unchanged(before: Mapping[Path, tuple[int, ...] | None], files: Sequence[Path], when: str) -> None:
    changed = [path for path in files if _state(path) != before.get(path)]
    if changed:
        raise PublishError(f"{changed[0]}: changed {when}; run the same command again")


def apply_winner(run: Path, progress: Progress = unwatched) -> Path:
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
    plan = open_recipe(recipe)
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        progress("writing", done, plan.layout.nbytes)

    into_directory(plan, folder, overwrite=True, needed=[path], texts=texts, progress=written)
    return folder


def _text(path: Path) -> str | None:
    """Returns the text of a file; None where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _card(
    folder: Path, text: str | None, recipe: Recipe | None, run: Path | None, name: str, licence: Licence | None
) -> str:
    """Returns a model's card, one that states a licence: its own, or one that is written."""
    path = folder / CARD
    if recipe is not None and (text is None or (run is not None and is_sealed(text))):
        checked_method(recipe)
        text = card_files(recipe, name, run, licence or (_stated(text) if text else None))[CARD]
    if text is None:
        raise PublishError(
            f"{folder}: has no {CARD}, and no {RECIPE} to write one from; write one, or publish without: --no-card"
        )
    card = read_card(text, str(path))
    if card.data.get("license") and licence is None:
        return text
    found = licence or (licence_of(parents(recipe)) if recipe is not None else f"{path} states none")
    if isinstance(found, str):
        raise PublishError(
            f"no licence to publish {name} under: {found}; nothing was sent. Read the licences of the models, decide,"
            " and name the merge's: --license apache-2.0, for instance"
        )
    return with_licence(text, found)


def _stated(card: str) -> Licence | None:
    """Returns the licence that a card of ours states."""
    data = read_card(card, CARD).data
    return Licence(data.license, data.license_name, data.license_link) if data.license else None


def _notes(run: Path | None, recipe: Recipe | None, models: Sequence[Parent], card: str | None) -> list[str]:
    """Returns what who publishes should know."""
    notes = []
    if run is not None and "finished" not in (one.state for one in runs(run) if one.folder == run):
        notes.append(
            f"the search in {run} has not ended: this is its best recipe so far, without scores on the holdout; when it"
            " has ended, the same command sends its winner"
        )
    names = public_names(models)
    local = [names[one.name] for one in models if one.hub_id is None]
    if recipe is not None and local:
        notes.append(
            f"models that are not on the Hub have the names of their folders in the recipe: {', '.join(local)}"
        )
    licence = str(read_card(card, CARD).data.get("license")) if card else ""
    if licence in CONDITIONS:
        notes.append(f"{licence} has conditions that you must meet: {CONDITIONS[licence]}")
    return notes


def _public_text(recipe: Recipe, models: Sequence[Parent]) -> str:
    """Returns the recipe as it is sent."""
    names = public_names(models)
    local = ", ".join(names[one.name] for one in models if one.hub_id is None)
    head = "Made by evomerge from this recipe."
    if local:
        head += f"\nNot on the Hub under this name; put the folder of your copy in its place: {local}"
    return public_recipe(recipe, models).to_yaml(head)


def _write(path: Path, text: str) -> None:
    """Writes a file so that the old one stays until the new one is complete."""
    try:
        replace_file(path, text)
    except OSError as fault:
        raise PublishError(f"{path}: cannot be written: {fault.strerror or fault}; nothing was sent") from None
