"""What must hold of a folder before a byte of it is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.checkpoint import Checkpoint, files_beside
from evomerge.checkpoint.folder import leads_out
from evomerge.checkpoint.header import CONFIG, INDEX, WEIGHTS, reading
from evomerge.errors import PublishError
from evomerge.kernels.fused import all_finite
from evomerge.publish.benchmarks import FOLDER

CARD = "README.md"
RECIPE = "evomerge_recipe.yaml"
PICTURE = "evomerge_recipe.svg"

Progress = Callable[[str, int, int], None]
"""Is called with what is being done, the bytes that are done, and all that there are."""

_PIECE = 1 << 22
"""How many elements of a tensor are read at a time."""


def unwatched(_what: str, _done: int, _total: int) -> None:
    """Is a `Progress` that shows nothing."""


def check_repo_id(repo_id: str) -> None:
    """Checks that `repo_id` is ``OWNER/NAME``, as the Hub allows it.

    Raises:
        PublishError: it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        well_formed = bool(re.fullmatch(r"[^/]+/[^/]+", repo_id))
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise PublishError(
            f"{repo_id!r} is not a repository id; expected OWNER/NAME, where OWNER is a user or an organization and"
            " NAME has up to 96 letters, digits, dots, dashes and underscores, such as me/my-merge"
        )


def check_revision(revision: str) -> None:
    """Checks that `revision` can be the name of a branch.

    Raises:
        PublishError: it cannot.
    """
    if not re.fullmatch(r"\w([\w./-]*[\w-])?", revision) or ".." in revision or "//" in revision:
        raise PublishError(
            f"--revision {revision!r} cannot be the name of a branch; expected letters, digits, dots, dashes,"
            " underscores and slashes, such as v2"
        )


def check_model(folder: Path, progress: Progress) -> list[str]:
    """Returns the names of a model's files in its folder, all of them complete, its config and tokenizer loaded.

    The names are of the weights and of what a runtime loads beside them, of the card, the recipe, its picture,
    scores on benchmarks and licences; nothing else in the folder belongs to a model. Every element of the weights is
    read.

    Args:
        folder: a model's folder, as `apply` writes it.
        progress: called while weights are read.

    Raises:
        PublishError: a weight is not finite, or the config or the tokenizer cannot be loaded.
        CheckpointError: a file is missing, truncated, unsafe or inconsistent.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder; expected a model's folder, or the folder of a run")
    with reading(folder), Checkpoint(str(folder), folder) as checkpoint:
        _loads(folder, CONFIG, AutoConfig.from_pretrained)
        beside = [path.relative_to(folder).as_posix() for path in files_beside(folder)]
        if any(re.match(r"tokenizer|vocab|tekken|.*\.(model|tiktoken)$", name) for name in beside):
            _loads(folder, "its tokenizer", AutoTokenizer.from_pretrained)
        bad = _not_finite(checkpoint, progress)
        if bad:
            more = f" and {len(bad) - 3} more tensors" if len(bad) > 3 else ""
            raise PublishError(
                f"{folder}: has NaN or infinite weights, in {', '.join(bad[:3])}{more}; nothing was sent. Such a model"
                " answers nothing: look for what made them, such as a weight of the recipe, and apply it again"
            )
        weights = [path.name for path in checkpoint.weight_files]
    index = [] if weights == [WEIGHTS] else [INDEX]
    own = ("LICENSE*", RECIPE, PICTURE, CARD, f"{FOLDER}/*.yaml")
    others = [path for pattern in own for path in folder.glob(pattern)]
    for path in others:
        if leads_out(path, folder):
            raise PublishError(f"{path}: is a link to {path.resolve()}, out of the model's folder; nothing was sent")
    return sorted({CONFIG, *index, *weights, *beside, *(path.relative_to(folder).as_posix() for path in others)})


def _loads(folder: Path, what: str, load: Callable[..., Any]) -> None:
    try:
        load(str(folder), local_files_only=True, trust_remote_code=False)
    # transformers and tokenizers raise errors of any kind for a damaged file.
    except Exception as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise PublishError(f"{folder}: {what} cannot be loaded by transformers: {reason}; nothing was sent") from None


def _not_finite(checkpoint: Checkpoint, progress: Progress) -> list[str]:
    """Returns the names of the tensors that have a NaN or an infinity."""
    done = 0

    def finite(name: str) -> bool:
        nonlocal done
        info = checkpoint.tensors[name]
        done += info.nbytes
        if not info.dtype.is_floating_point:
            return True
        for start in range(0, info.numel, _PIECE):
            piece = checkpoint.piece(name, start, min(start + _PIECE, info.numel))
            left = info.nbytes - start * info.dtype.itemsize
            progress("checking", done - left, checkpoint.nbytes)
            if not all_finite(piece.float() if piece.element_size() == 1 else piece):
                return False
        return True

    bad = [name for name in checkpoint.tensors if not finite(name)]
    progress("checking", checkpoint.nbytes, checkpoint.nbytes)
    return bad


def read_card(text: str, name: str) -> Any:
    """Returns a model card, a `huggingface_hub.ModelCard`, whose metadata is valid as far as that needs no network.

    Args:
        text: the content of README.md.
        name: what messages call it.

    Raises:
        PublishError: the metadata is not YAML, or not what the Hub reads.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
    # A YAML error, or any error for a model-index of another form.
    except Exception as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise PublishError(f"{name}: its metadata is not valid: {reason}") from None
    faults = [
        f"{key} is {card.data.get(key)!r}; expected {expected}"
        for key, fits, expected in (
            ("license", _is_text, "one licence, such as apache-2.0"),
            ("base_model", _is_texts, "a model or a list of models"),
            ("tags", _is_texts, "a list of words"),
            ("language", _is_texts, "a language or a list of languages"),
        )
        if card.data.get(key) is not None and not fits(card.data.get(key))
    ]
    if faults:
        raise PublishError(f"{name}: its metadata is not valid: {'; '.join(faults)}")
    return card


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
