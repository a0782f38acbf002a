"""`aligned`: the models of a recipe, each seen with the output's vocabulary."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, MutableMapping
from functools import cache, reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.architecture import Architecture, LanguagePart
from evomerge.checkpoint import (
    TEMPLATES,
    Checkpoint,
    CheckpointView,
    TensorInfo,
    files_beside,
    read_object,
    tokenizer_folder,
)
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe, TokenizerSection
from evomerge.tokenizer.rows import Rows, rows_of
from evomerge.tokenizer.tokenizer import ModelTokenizer, has_tokenizer, plain_token

_TOKENS = re.compile(r"emb|wte|tok|head|output|decoder|predictions|logits", re.IGNORECASE)
_NO_TOKENS = re.compile(r"pos|wpe|type|norm|vis|image|audio", re.IGNORECASE)
_SPECIAL = re.compile(r"(.+_token)_(?:id|ids|index)")


class _Aligned(CheckpointView):
    """A model with the rows of its embeddings and head in the order of the output's vocabulary.

    Rows from other models are copied, their means computed in float32. A tensor has the widest dtype of the models
    that give it rows. The side files lie in a temporary folder that is deleted with the object.

    Args:
        model: the model's name in the recipe.
        opened: every model that is merged.
        tokenizers: each model's own.
        output: the output's tokenizer.
        rows: where the output's rows come from.
    """

    def __init__(
        self,
        model: str,
        opened: Mapping[str, Checkpoint],
        tokenizers: Mapping[str, ModelTokenizer],
        output: ModelTokenizer,
        rows: Rows,
    ) -> None:
        inner, own = opened[model], rows.own[model]
        self._rows, self._own, self._output = rows, torch.from_numpy(own), output
        # Rows without a source are zeros.
        self._needed = {number: found for number, found in rows.others.items() if found and own[number] < 0}
        givers = {giver for found in self._needed.values() for giver, _ in found}
        self._givers = {giver: opened[giver] for giver in opened if giver in givers}
        self._names = _token_tensors(inner)
        tensors = dict(inner.tensors)
        for name in self._names:
            _, *width = tensors[name].shape
            dtypes = [giver.tensors[_like(giver, name)].dtype for giver in self._givers.values()]
            dtype = reduce(torch.promote_types, dtypes, tensors[name].dtype)
            tensors[name] = TensorInfo(name, dtype, (rows.count, *width))
        config = _followed(inner.config, tokenizers[model], output, rows.count)
        self._folder = TemporaryDirectory(prefix="evomerge-tokenizer-")
        folder = Path(self._folder.name)
        _write_side_files(folder, inner, output)
        objects = {"config.json": config}
        generation = inner.folder / "generation_config.json"
        if generation.is_file():
            objects[generation.name] = _followed(read_object(generation), tokenizers[model], output, rows.count)
        for name, data in objects.items():
            (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        # By their order in the recipe: a model's name may be its path, which says nothing about its content.
        order = {giver: number for number, giver in enumerate(opened)}
        needed = {number: [(order[giver], row) for giver, row in found] for number, found in self._needed.items()}
        difference = hashlib.sha256(own.tobytes() + repr((rows.count, needed)).encode()).hexdigest()
        super().__init__(inner, difference=difference, folder=folder, config=config, tensors=tensors)

    def fingerprint(self, kept: MutableMapping[str, str] | None = None) -> str:
        """A hex digest that changes with every model that gives it rows, and with the vocabulary."""
        digests = [super().fingerprint(kept), *(giver.fingerprint(kept) for giver in self._givers.values())]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def paths(self) -> frozenset[Path]:
        """See `Checkpoint.paths`."""
        return super().paths() | {self._output.folder.resolve()}

    def made(self, name: str) -> Tensor:
        """See `CheckpointView.made`."""
        own = self.inner.read(name)
        if name not in self._names:
            return own
        info = self.tensors[name]
        if own.dtype == info.dtype and torch.equal(self._own, torch.arange(self._rows.count)):
            return own[: self._rows.count]

        @cache
        def tensor_of(model: str) -> Tensor:
            giver = self._givers[model]
            return giver.read(_like(giver, name))

        made = torch.zeros(info.shape, dtype=info.dtype)
        kept = self._own >= 0
        made[kept] = own[self._own[kept]].to(info.dtype)
        for number, sources in self._needed.items():
            parts = torch.stack([tensor_of(model)[row].float() for model, row in sources])
            made[number] = parts.mean(dim=0).to(info.dtype)
        if len(self._rows.filling):
            made[torch.from_numpy(self._rows.filling)] = _mean_row(made, self._rows).to(info.dtype)
        return made


def aligned(recipe: Recipe, opened: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Returns the models that a recipe merges, each with the vocabulary that the recipe asks for.

    Embeddings and heads are re-indexed, configs follow, and each has the output's tokenizer beside it. Weights are
    read only when a tensor is.

    Args:
        recipe: a recipe with a tokenizer section, or `tokenizer_source`.
        opened: every model that it merges.

    Raises:
        RecipeError: with a line for every fault: a tokenizer that is not available, a token without its source.
    """
    section = recipe.vocabulary() or TokenizerSection()
    base = recipe.base_model or recipe.references()[0]
    faults: list[str] = []
    tokenizers: dict[str, ModelTokenizer] = {}
    for model, checkpoint in opened.items():
        # A model that is stored without a tokenizer has the base's, as in mergekit.
        folder = checkpoint.folder if has_tokenizer(checkpoint.folder) else opened[base].folder
        try:
            count = checkpoint.tensors[_token_tensors(checkpoint)[0]].shape[0]
            tokenizers[model] = ModelTokenizer.read(folder, model, count)
        except CheckpointError as fault:
            faults += recipe.model_faults(model, fault)
    if faults:
        raise RecipeError(faults)
    try:
        output = _output(recipe, section, base, tokenizers)
    except CheckpointError as fault:
        location = ("tokenizer_source",) if recipe.tokenizer_source is not None else ("tokenizer", "source")
        raise RecipeError([recipe.fault(location, line) for line in str(fault).splitlines()]) from None
    rows = rows_of(recipe, section, output, tokenizers)
    return {model: _Aligned(model, opened, tokenizers, output, rows) for model in opened}


def _output(
    recipe: Recipe, section: TokenizerSection, base: str, tokenizers: Mapping[str, ModelTokenizer]
) -> ModelTokenizer:
    """Returns the output's tokenizer, with the tokens that the recipe adds."""
    model = base if section.source in ("base", "union") else section.source
    if model in tokenizers:
        output = tokenizers[model]
    else:  # a model that gives its tokenizer and is not merged
        output = ModelTokenizer.read(tokenizer_folder(model, recipe.folders), model, None)
    if section.source == "union":
        output = _union(output, [other for name, other in tokenizers.items() if name != base])
    return output.with_tokens(plain_token(token) for token in section.tokens if token not in output.vocabulary)


def _union(first: ModelTokenizer, others: list[ModelTokenizer]) -> ModelTokenizer:
    """Returns the first tokenizer with the tokens of the others: plain ones in their order, then added ones."""
    entries: dict[str, dict[str, Any]] = {}
    for tokenizer in (first, *others):
        for entry in tokenizer.added:
            entries.setdefault(entry["content"], entry)
    known = {*first.vocabulary, *entries}
    plain = dict.fromkeys(token for other in others for token in other.vocabulary if token not in known)
    return first.with_tokens([*map(plain_token, plain), *entries.values()])


def _token_tensors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Returns the names of the tensors with a row for each token: embeddings, the head, its bias."""
    size = LanguagePart.of(checkpoint.config, checkpoint.tensors).config.get("vocab_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{checkpoint.reference}: its config has no vocab_size; no vocabulary can be merged")
    architecture = Architecture.of(checkpoint.config, checkpoint.tensors)
    names = tuple(
        name
        for name, info in checkpoint.tensors.items()
        if info.shape[:1] == (size,)
        and architecture.layer_of(name) is None
        and _TOKENS.search(name)
        and not _NO_TOKENS.search(name)
    )
    if not names:
        raise CheckpointError(
            f"{checkpoint.reference}: its config has vocab_size {size:,}, but no embedding has {size:,} rows; check"
            " that the config belongs to these weights"
        )
    return names


def _like(checkpoint: Checkpoint, name: str) -> str:
    """Returns the model's own tensor of that name; its embedding, if it has no head of its own."""
    if name in checkpoint.tensors:
        return name
    return next(own for own in _token_tensors(checkpoint) if len(checkpoint.tensors[own].shape) == 2)


def _mean_row(made: Tensor, rows: Rows) -> Tensor:
    """Returns the mean of the tokens' rows; NumPy adds row by row, on one thread, and so always to the same bits."""
    tokens = torch.from_numpy(np.setdiff1d(np.arange(rows.count), rows.filling))
    total = np.zeros(made.shape[1:], dtype=np.float64)
    for part in torch.split(tokens, 1024):
        total += np.add.reduce(made[part].double().numpy(), axis=0)
    return torch.from_numpy(np.asarray(total / max(1, len(tokens))))


def _followed(
    settings: Mapping[str, Any], tokenizer: ModelTokenizer, output: ModelTokenizer, count: int
) -> dict[str, Any]:
    """Returns a config with the output's number of rows and the numbers of its special tokens, at every depth.

    Args:
        settings: a model's config or generation config.
        tokenizer: the model's own.
        output: the output's.
        count: the output's number of rows.
    """
    tokens = {number: token for token, number in tokenizer.vocabulary.items()}

    def followed(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: followed(inner, part) for inner, part in value.items()}
        if key == "vocab_size" and value == tokenizer.rows:
            return count
        special = _SPECIAL.fullmatch(key)
        numbers = value if isinstance(value, list) else [value]
        # A number that names no token stays as it is.
        if special is None or not all(isinstance(n, int) for n in numbers) or not tokens.keys() & set(numbers):
            return value
        kept = [output.vocabulary[tokens[n]] for n in numbers if tokens.get(n) in output.vocabulary]
        if not kept and (number := output.special(special[1])) is not None:
            kept = [number]
        return kept if isinstance(value, list) else next(iter(kept), None)

    return {key: followed(key, value) for key, value in settings.items()}


def _write_side_files(folder: Path, inner: Checkpoint, output: ModelTokenizer) -> None:
    """Writes a model's small files to a folder, with the output's tokenizer in place of its own."""
    own = [path for path in inner.side_files() if not _is_tokenizers(path)]
    theirs = [path for path in files_beside(output.folder) if _is_tokenizers(path)]
    for path in [*own, *(path for path in theirs if path.name not in output.dropped())]:
        target = folder / TEMPLATES / path.name if path.parent.name == TEMPLATES else folder / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    for name, text in output.texts().items():
        (folder / name).write_text(text, encoding="utf-8")


def _is_tokenizers(path: Path) -> bool:
    """Returns whether a small file belongs to the tokenizer, and not to generation or to processors."""
    return path.name != "generation_config.json" and not path.name.endswith("processor_config.json")
