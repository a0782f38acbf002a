"""Which files of a folder are a model's, and which of them must not be followed out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from evomerge.checkpoint.header import CONFIG, reading
from evomerge.errors import CheckpointError

# The folder in which transformers keeps the chat templates beside the default one.
TEMPLATES = "additional_chat_templates"

UNFINISHED = "evomerge-unfinished-5c1e97d2"
"""Part of the name of everything that is not finished yet; no other file has such a name by chance."""


def unfinished(path: Path) -> Path:
    """Where a file or folder is written before it has its name; what a kill leaves is found by this one."""
    return path.with_name(f".{path.name}.{UNFINISHED}")


_SIDE_FILES = (
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    "chat_template.json",
    "*.jinja",
    f"{TEMPLATES}/*.jinja",
    "*processor_config.json",
)
# What else a checkpoint of ours or of transformers contains; a folder with anything else is not replaced.
_OTHER_FILES = (
    CONFIG,
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "evomerge_recipe.yaml",
    "evomerge_recipe.svg",
    "README.md",
    "LICENSE*",
    ".gitattributes",
)


def files_beside(folder: Path) -> tuple[Path, ...]:
    """The small files of a model in a folder, sorted; see `Checkpoint.side_files`.

    Raises:
        CheckpointError: the folder or one of them cannot be read, or is a link that leads out of it.
    """
    with reading(folder):
        # The config is checked too: the result repeats all of it.
        known = (*_SIDE_FILES, CONFIG)
        found = [folder / name for name in _names(folder) if _like(name, known) and (folder / name).is_file()]
    for path in found:
        with reading(path):
            path.open("rb").close()
        if leads_out(path, folder):
            raise CheckpointError(
                f"{path}: is a link to {path.resolve()}, out of the model's folder, and would be copied into the"
                " result; put the file itself there, if you trust who made the folder"
            )
    return tuple(sorted(path for path in found if path.name != CONFIG))


def leads_out(path: Path, folder: Path) -> bool:
    """Returns whether a file of a model's folder is a link out of it, which must not be followed.

    In the Hub's cache, a model's files are links from snapshots/COMMIT into blobs.

    Raises:
        OSError: it is a link that cannot be followed.
    """
    whole = folder.resolve()
    homes = [whole, whole.parent.parent / "blobs"] if whole.parent.name == "snapshots" else [whole]
    return not any(path.resolve().is_relative_to(home) for home in homes)


def strangers(folder: Path) -> list[str]:
    """The names of everything in a folder that is not part of a checkpoint of ours or of transformers, sorted.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted(name for name in _names(folder) if not (belongs_to_model(name) and (folder / name).is_file()))


def belongs_to_model(name: str) -> bool:
    """Returns whether a file of this name, with its folder, is part of a checkpoint of ours or of transformers."""
    return _like(name, (*_SIDE_FILES, *_OTHER_FILES))


def _names(folder: Path) -> Iterator[str]:
    """Yields the names of everything in a folder, and of everything in its folder for templates."""
    for path in folder.iterdir():
        if path.name == TEMPLATES and path.is_dir():
            yield from (f"{TEMPLATES}/{inner.name}" for inner in path.iterdir())
        else:
            yield path.name


def _like(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
