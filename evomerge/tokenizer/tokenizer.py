"""`ModelTokenizer`: the tokenizer beside a model's weights, read as data, extended, and written as files.

A tokenizer.json is all that is needed (https://huggingface.co/docs/tokenizers): its `model` has the vocabulary, its
`added_tokens` the tokens that are found in a text before it is cut into pieces. No code of a checkpoint is run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.checkpoint import read_object
from evomerge.errors import CheckpointError

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken")
# The same vocabulary in older formats; wrong once tokens of the vocabulary itself were removed.
_TWINS = ("vocab.json", "merges.txt", "vocab.txt")


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a model's folder has any of the files that a vocabulary is stored in."""
    return any(path.is_file() for pattern in _VOCABULARIES for path in folder.glob(pattern))


def plain_token(content: str) -> dict[str, Any]:
    """Returns the entry of an added token without special treatment, its number left out."""
    return {"content": content, **dict.fromkeys(_FLAGS, False), "normalized": True}


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer.

    Attributes:
        reference: the model's name in messages.
        folder: the folder of its files.
        document: the content of its tokenizer.json.
        settings: the content of its tokenizer_config.json.
        vocabulary: the number of every token that has a row in the model's embeddings, in ascending order.
        rows: the number of rows of the model's embeddings; None if they are not known.
        cut: whether tokens without a row were removed.
        grown: whether tokens were added.
    """

    reference: str
    folder: Path
    document: Mapping[str, Any]
    settings: Mapping[str, Any]
    vocabulary: Mapping[str, int]
    rows: int | None
    cut: bool = False
    grown: bool = False

    @classmethod
    def read(cls, folder: Path, reference: str, rows: int | None) -> ModelTokenizer:
        """Returns the tokenizer in `folder`, without the tokens that have no row in the embeddings.

        Args:
            folder: the model's folder.
            reference: the model's name in messages.
            rows: the number of rows of the embeddings; None keeps every token.

        Raises:
            CheckpointError: there is no tokenizer, or reading it would run code of the checkpoint.
        """
        settings_path = folder / "tokenizer_config.json"
        settings = read_object(settings_path) if settings_path.is_file() else {}
        if (folder / "tokenizer.json").is_file():
            document = read_object(folder / "tokenizer.json")
        else:
            document = _converted(folder, reference)
        grown = _completed(document, settings, folder, reference)
        vocabulary = _vocabulary(document, reference)
        lost = {token for token, number in vocabulary.items() if rows is not None and number >= rows}
        if lost:
            document = _without(document, lost)
            vocabulary = _vocabulary(document, reference)
        return cls(reference, folder, document, settings, vocabulary, rows, cut=bool(lost), grown=grown)

    @property
    def added(self) -> list[dict[str, Any]]:
        """The entries of the added tokens, in the order of their numbers."""
        return sorted(self.document.get("added_tokens") or [], key=lambda entry: int(entry["id"]))

    def with_tokens(self, entries: Iterable[Mapping[str, Any]]) -> ModelTokenizer:
        """Returns this tokenizer with more added tokens; one that already is an added token stays as it is.

        Args:
            entries: as in tokenizer.json's `added_tokens`; their numbers are ignored.
        """
        added = self.added
        known = {entry["content"] for entry in added}
        # As the tokenizers library numbers them when it reads the file.
        own = self.document.get("model", {}).get("vocab", {})
        following = max([len(own), *(int(entry["id"]) + 1 for entry in added)])
        for entry in entries:
            if entry["content"] in known or not entry["content"]:
                continue
            number = self.vocabulary.get(entry["content"])
            if number is None:
                number, following = following, following + 1
            added.append({**entry, "id": number})
            known.add(entry["content"])
        if len(added) == len(self.added):
            return self
        document = {**self.document, "added_tokens": sorted(added, key=lambda entry: int(entry["id"]))}
        return replace(self, document=document, vocabulary=_vocabulary(document, self.reference), grown=True)

    def special(self, role: str) -> int | None:
        """Returns the number of the token with a role such as ``eos_token``; None if it has none."""
        named = self.settings.get(role)
        content = named.get("content") if isinstance(named, dict) else named
        return self.vocabulary.get(content) if isinstance(content, str) else None

    def texts(self) -> dict[str, str]:
        """Returns the content of the files that differ from those in `folder`, by name."""
        if not self.cut and not self.grown and (self.folder / "tokenizer.json").is_file():
            return {}
        decoder = {str(entry["id"]): {k: entry[k] for k in ("content", *_FLAGS) if k in entry} for entry in self.added}
        objects = {
            "tokenizer.json": self.document,
            "tokenizer_config.json": {**self.settings, "added_tokens_decoder": decoder},
        }
        if (self.folder / "added_tokens.json").is_file():
            objects["added_tokens.json"] = {entry["content"]: entry["id"] for entry in self.added}
        return {name: json.dumps(data, ensure_ascii=False, indent=2) + "\n" for name, data in objects.items()}

    def dropped(self) -> tuple[str, ...]:
        """Returns the names of the files in `folder` that would contradict it."""
        return _TWINS if self.cut else ()


def _vocabulary(document: Mapping[str, Any], reference: str) -> dict[str, int]:
    """Returns every token's number, in ascending order, as the tokenizers library gives them."""
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(json.dumps(document)).get_vocab(with_added_tokens=True)
    # The library's errors are plain Exceptions.
    except Exception as fault:
        raise CheckpointError(f"{reference}: its tokenizer.json cannot be read ({fault}); download it again") from None
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _converted(folder: Path, reference: str) -> dict[str, Any]:
    """Returns the content of a tokenizer.json for a tokenizer that is stored in another format."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        document: dict[str, Any] = json.loads(loaded.backend_tokenizer.to_str())
    except Exception as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise CheckpointError(
            f"{reference}: its tokenizer cannot be read ({reason}); merging vocabularies needs a tokenizer.json:"
            " load it with transformers' AutoTokenizer and save it beside the weights"
        ) from None
    return document


def _completed(document: dict[str, Any], settings: Mapping[str, Any], folder: Path, reference: str) -> bool:
    """Adds the added tokens of other files to `document`; returns whether there were any."""
    known = _vocabulary(document, reference)
    taken = set(known.values())
    found: dict[int, dict[str, Any]] = {}
    decoder = settings.get("added_tokens_decoder")
    for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if number.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[int(number)] = {**plain_token(""), **{k: entry[k] for k in ("content", *_FLAGS) if k in entry}}
    path = folder / "added_tokens.json"
    for token, number in (read_object(path) if path.is_file() else {}).items():
        if isinstance(number, int):
            found.setdefault(number, plain_token(token))
    added = document.setdefault("added_tokens", [])
    missing = [
        {**entry, "id": number}
        for number, entry in sorted(found.items())
        if number not in taken and entry["content"] not in known
    ]
    added += missing
    return bool(missing)


def _without(document: Mapping[str, Any], lost: set[str]) -> dict[str, Any]:
    """Returns the document without some tokens, and without the merges that use or produce them."""
    result = copy.deepcopy(dict(document))
    result["added_tokens"] = [entry for entry in result["added_tokens"] if entry["content"] not in lost]
    model = result["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in lost}
    else:
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] not in lost]
    if model.get("merges"):
        pairs = [(merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        model["merges"] = [merge for merge, pair in pairs if not lost.intersection((*pair, "".join(pair)))]
    return result
