"""From a reference to a folder: a local one as it is, a Hub id downloaded into the Hub's cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.checkpoint.folder import files_beside
from evomerge.checkpoint.header import INDEX, WEIGHTS, reading, weight_map
from evomerge.errors import CheckpointError
from evomerge.paths import HERE, find, not_found

# Everything small that a checkpoint is made of. Weights are then downloaded by their exact names: a Hub
# repository may hold the same weights in other formats too.
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
"""What can be the id of a model on the Hub."""


@dataclass(frozen=True)
class Reference:
    """A model as recipes write it: ``path[@revision][+adapter[@revision]]``.

    Attributes:
        model: a folder or a Hub id.
        revision: a branch, tag or commit of the Hub repository, or None.
        adapter: a folder or a Hub id of an adapter, or None.
        adapter_revision: as `revision`, of the adapter's repository.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @property
    def model_text(self) -> str:
        """The model alone, as it is written."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    @property
    def adapter_text(self) -> str | None:
        """The adapter alone, as it is written; None where there is none."""
        return f"{self.adapter}@{self.adapter_revision}" if self.adapter_revision else self.adapter

    @classmethod
    def parse(cls, text: str, folders: Sequence[Path] = HERE) -> Reference:
        """The parts of a reference; the longest existing folder that it starts with is the path.

        So a folder whose name contains ``@`` or ``+`` works as long as it exists.

        Args:
            text: the reference.
            folders: where local paths are looked for.

        Raises:
            CheckpointError: a part is empty.
        """
        model, rest = _path(text, folders)
        revision, plus, last = rest.partition("+")
        adapter, rest = _path(last, folders)
        faults = (not model, revision == "@", plus and not adapter, rest == "@")
        if any(faults):
            raise CheckpointError(
                f"{text!r} is not a model: expected path[@revision][+adapter[@revision]], each part with text"
            )
        return cls(model, revision[1:] or None, adapter or None, rest[1:] or None)

    def absolute(self, folders: Sequence[Path]) -> str:
        """The reference's text with absolute paths in place of relative ones, so that it is valid in any folder."""

        def local(path: str) -> str:
            found = find(path, folders, os.path.isdir)
            return str(found.absolute()) if found else path

        whole = replace(self, model=local(self.model), adapter=None if self.adapter is None else local(self.adapter))
        return f"{whole.model_text}+{whole.adapter_text}" if self.adapter else whole.model_text


def _path(text: str, folders: Sequence[Path]) -> tuple[str, str]:
    """The path at the start of a reference, and what follows it, from its ``@`` or ``+`` on."""
    ends = [match.start() for match in re.finditer(r"[@+]", text)]
    for end in [len(text), *reversed(ends)]:
        if end and find(text[:end], folders, os.path.isdir):
            return text[:end], text[end:]
    end = ends[0] if ends else len(text)
    return text[:end], text[end:]


def model_weights(folder: Path) -> list[str]:
    """The names of a model's weight files, from the index in `folder` where there is one."""
    index = folder / INDEX
    return [WEIGHTS, *(set(weight_map(index).values()) if index.is_file() else ())]


def folder_of(
    path: str,
    folders: Sequence[Path] = HERE,
    *,
    text: str | None = None,
    weights: Callable[[Path], list[str]] = model_weights,
) -> Path:
    """The folder of a model or an adapter, downloaded where it is not on this machine.

    Args:
        path: ``path``, ``org/name`` or ``org/name@revision``; an existing folder wins over a Hub id.
        folders: where local paths are looked for.
        text: the whole reference, for messages, where `path` is a part of it.
        weights: the names of the large files to download, from a folder that has all the small ones.

    Raises:
        CheckpointError: no such folder and no such model on the Hub, or the Hub cannot be reached.
    """
    text = text or path
    reference = Reference.parse(path, folders)
    if reference.adapter is not None:
        raise CheckpointError(f"{text}: names a model with an adapter; expected only one of them here")
    folder = find(reference.model, folders, os.path.isdir)
    if folder is not None:
        if reference.revision is not None:
            raise CheckpointError(
                f"{text}: {reference.model} is a folder, which has no revisions; leave out @{reference.revision}"
            )
        files_beside(folder)  # Raises where one of them leads out of it, whoever reads it later.
        return folder
    if find(reference.model, folders):
        raise CheckpointError(f"{text}: {path} is a file; expected the folder that holds it")
    if not HUB_ID.fullmatch(reference.model):
        raise CheckpointError(f"{text}: no such folder{not_found(path, folders, os.path.isdir)}")
    return _download(reference, folders, weights)


def tokenizer_folder(text: str, folders: Sequence[Path] = HERE) -> Path:
    """As `folder_of`, without the weights: the config, the tokenizer and other small files."""
    with reading(text):
        return folder_of(text, folders, weights=lambda _: [])


def _download(reference: Reference, folders: Sequence[Path], weights: Callable[[Path], list[str]]) -> Path:
    """The snapshot's folder in the Hub's cache: first the small files, then the weights that they name."""
    # The import takes a quarter of a second, which a recipe of local folders does not need.
    from huggingface_hub import snapshot_download

    name, revision = reference.model, reference.revision
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_SMALL_FILES))
        if large := weights(folder):
            # By the commit found: the branch may move between the two calls.
            snapshot_download(name, revision=folder.name, allow_patterns=large)
    except CheckpointError:
        raise
    # Any failure in there (the Hub's, the HTTP client's, the disk's) means the same to the user.
    except Exception as error:
        tried = not_found(name, folders, os.path.isdir)
        text = f"{reference.model_text}: no such folder{tried}"
        if "did you mean" not in tried:
            text += (
                f"; and not available from the Hub ({type(error).__name__}: {_first_sentence(error)}): check the name"
                " and the revision, unset HF_HUB_OFFLINE, log in with `hf auth login` where the model is private or"
                f" gated, or download it elsewhere with `hf download {name}` and name the folder"
            )
        raise CheckpointError(text) from error
    return folder


def _first_sentence(error: Exception) -> str:
    """The first sentence of an error's text; the rest is advice for programmers."""
    return next(iter(str(error).strip().splitlines()), "no reason given").split(". ")[0]
