"""Which tensors are layer i; what comes before and after; the tied head; do the parents agree.

There is no list of architectures. A decoder's layers are told by their names, which hold the layer's number
(``model.layers.3.self_attn.q_proj.weight``), and by the depth that the config states.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from evomerge.errors import ArchitectureError

_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Where the config of a model of several modalities keeps the language model's.
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config", "thinker_config")

# Names of the modules beside the stack. Whatever is not known to come after it comes before: embeddings,
# and the vision or audio towers and projectors that feed them.
_NORM = re.compile(r"(final_?)?(layer_?norm|rms_?norm|norm|ln)(_?(f|final|out|post))?", re.IGNORECASE)
_AFTER = re.compile(r".*head.*|output.*|.*unembed.*|embed_out|score|classifier|cls|pooler|qa_.*|project_out|mtp.*")
_EMBEDDING = re.compile(r"emb|wte|\btok")
# The last module of a head that may repeat the embedding; "decoder" is BERT's and its kin's.
_TIED_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output|output_layer|head|decoder)\.weight")
_OTHER_MODALITY = re.compile(r"vis|image|audio|speech|video|encoder|project|connector|multi_modal")

# A layer's number; no name has a longer one in earnest.
_NUMBER = re.compile(r"[0-9]{1,6}")

# Lists that may by chance be as long as the stack and say nothing of its layers.
_NOT_PER_LAYER = re.compile(r"architectures|.*token.*|.*_limit|.*section.*|.*labels|.*languages")


class _Shaped(Protocol):
    """A tensor's shape, as `TensorInfo` has it."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Tensors(Protocol):
    """What `differences` needs of a `Checkpoint`, which lies on the same floor and is not imported.

    Attributes:
        reference: how messages call it.
        config: its config.json.
        tensors: shapes by name.
    """

    @property
    def reference(self) -> str: ...  # noqa: D102

    @property
    def config(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def tensors(self) -> Mapping[str, _Shaped]: ...  # noqa: D102


@dataclass(frozen=True)
class Architecture:
    """Which tensors are layer i; what comes before and after; the tied head.

    Attributes:
        num_layers: the depth of the language model's stack; 0 for a model without one.
        stack: what the names of its tensors have before the layer's number, with the dot; "" where
            `num_layers` is 0.
        tied: names of tensors that repeat another (a head that is the embedding) and are not written out.
    """

    num_layers: int
    stack: str
    tied: frozenset[str]
    _late: frozenset[str]

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Iterable[str]) -> Architecture:
        """The architecture that a config and the names of the tensors tell.

        Args:
            config: a transformers config.json.
            names: all tensors' names.

        Raises:
            ArchitectureError: the model is an encoder with a decoder, or the config states a depth that no
                stack in the names has.
        """
        names = tuple(names)
        depth = _depth(config)
        stacks = _stacks(names)
        if config.get("is_encoder_decoder"):
            raise ArchitectureError(
                f"encoder-decoder models ({config.get('model_type')}) are not supported: expected one stack "
                f"of layers, found {_listed(stacks)}; use a decoder-only or encoder-only model"
            )
        if depth < 1:
            return cls(0, "", frozenset(), frozenset())
        stack = _choose(stacks, depth)
        beside = {name: _beside(name, stack) for name in names if _index(name, stack) is None}
        norms = {name for name, module in beside.items() if _NORM.fullmatch(module)}
        if not norms:
            # LFM2 names its final norm embedding_norm. A norm of the embeddings alone is never the only one.
            norms = {name for name, module in beside.items() if "embed" in module and "norm" in module}
        late = norms | {name for name, module in beside.items() if _AFTER.fullmatch(module)}
        late |= {name for name in names if (_index(name, stack) or 0) >= depth}
        early = beside.keys() - late
        heads = {name for name in late if _TIED_HEAD.fullmatch(name)}
        # Without the embedding in the file the head is no repetition but the only copy.
        tied = bool(heads) and any(_EMBEDDING.search(name) for name in early) and _ties(config)
        return cls(depth, stack, frozenset(heads if tied else ()), frozenset(late))

    def layer_of(self, name: str) -> int | None:
        """The layer that a tensor belongs to, from 0; None outside the layers.

        A number further inside, as an expert's, changes nothing. A layer past the config's depth, as the
        predictors of further tokens that some models append, is outside.

        Args:
            name: a tensor's name.
        """
        if not self.num_layers:
            return None
        layer = _index(name, self.stack)
        return layer if layer is not None and layer < self.num_layers else None

    def position(self, name: str) -> Literal["before", "layers", "after"]:
        """Where a tensor takes part: embeddings before the layers, the final norm and the head after them.

        Args:
            name: a tensor's name. One that was not there at `of` is "before" or in the layers.
        """
        if self.layer_of(name) is not None:
            return "layers"
        return "after" if name in self._late else "before"

    def renamed(self, name: str, layer: int) -> str:
        """The name of the same tensor at another layer.

        Args:
            name: a tensor of a layer.
            layer: the other layer's index, 0 or more; it may lie past `num_layers`.

        Raises:
            ArchitectureError: the tensor belongs to no layer.
        """
        here = self.layer_of(name)
        if here is None:
            raise ArchitectureError(f"{name} belongs to no layer; only tensors of {self.stack}N can be moved")
        _, dot, rest = name[len(self.stack) :].partition(".")
        return f"{self.stack}{layer}{dot}{rest}"

    def config_of_stack(self, config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
        """The config of a model whose layer i is this model's layer ``layers[i]``.

        The depth follows, and so do lists with one entry for each layer (``layer_types``) and lists of
        layers' indices (``mlp_only_layers``), in the config and in its text config.

        Args:
            config: the config that this architecture was read from; it is not changed.
            layers: for each layer of the stack the index of the layer that it comes from.

        Raises:
            ArchitectureError: the model has no layers, or an index is not one of them.
        """
        wrong = [layer for layer in layers if not 0 <= layer < self.num_layers]
        if wrong or not self.num_layers:
            raise ArchitectureError(
                f"layers {wrong or list(layers)} asked for, but the model has {self.num_layers} layers; "
                f"use indices from 0 to {self.num_layers - 1}"
            )
        result = copy.deepcopy(dict(config))
        for part in _parts(result):
            for key, value in part.items():
                if key in _DEPTHS and value == self.num_layers:
                    part[key] = len(layers)
                elif isinstance(value, list) and not _NOT_PER_LAYER.fullmatch(key):
                    part[key] = _followed(key, value, layers, self.num_layers)
        text = _parts(result)[-1]
        if not any(key in text for key in _DEPTHS):
            text["num_hidden_layers"] = len(layers)
        return result


@dataclass(frozen=True)
class LanguagePart:
    """The language model inside a model of several modalities; or a language model, which is all of itself.

    Attributes:
        config: its own config.
        names: its tensors' names.
    """

    config: Mapping[str, Any]
    names: frozenset[str]
    _path: str

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Iterable[str]) -> LanguagePart:
        """The language part that a config and the names of the tensors tell.

        Args:
            config: a transformers config.json.
            names: all tensors' names.

        Raises:
            ArchitectureError: as `Architecture.of`.
        """
        names = tuple(names)
        architecture = Architecture.of(config, names)
        text = {key: value for key, value in _parts(config)[-1].items() if not _is_modality(key, value)}
        # The parts tie as the whole does, which alone may say so.
        text["tie_word_embeddings"] = _ties(config)
        path = architecture.stack.rpartition(".")[0].rpartition(".")[0]
        path = f"{path}." if path else ""
        if len(_parts(config)) == 1 and not any(_is_modality(*item) for item in config.items()):
            return cls(text, frozenset(names), path)

        def inside(name: str) -> bool:
            if architecture.layer_of(name) is not None or not name.startswith(path):
                return architecture.position(name) != "before"
            return not _OTHER_MODALITY.search(_beside(name, architecture.stack))

        return cls(text, frozenset(filter(inside, names)), path)

    def renamed(self, name: str, other: LanguagePart) -> str:
        """The name that one of the tensors has in `other`.

        Args:
            name: one of `names`.
            other: the language part of another model.
        """
        if name.startswith(self._path):
            return other._path + name.removeprefix(self._path)
        # The head has a path of its own, and may lie beside the whole language model.
        beside = (own for own in other.names if not own.startswith(other._path))
        return next((own for own in beside if f".{own}".endswith(f".{name}") or name.endswith(f".{own}")), name)

    def within(self, config: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the whole model with its language part's changed.

        Args:
            config: the whole model's; it is not changed.
            changed: what the language part's config is to be.
        """
        result = copy.deepcopy(dict(config))
        text = _parts(result)[-1]
        for key in self.config.keys() - changed.keys():
            text.pop(key, None)
        text |= {key: value for key, value in changed.items() if key not in self.config or self.config[key] != value}
        return result


def differences(first: Tensors, other: Tensors, *, most: int = 5) -> list[str]:
    """Sentences that say how two checkpoints do not fit together; none where they do.

    Names and shapes are compared; dtypes may differ. A head that only one of them stores is no difference
    where it is tied. A different size of the vocabulary is told as such, once.

    Args:
        first: a checkpoint, as the base.
        other: the one compared to it.
        most: the most differences told; where there are more, a last sentence counts the others.

    Raises:
        ArchitectureError: the layers of one of them cannot be found.
    """
    ours = Architecture.of(first.config, first.tensors)
    theirs = Architecture.of(other.config, other.tensors)
    found = []
    depth = min(ours.num_layers, theirs.num_layers)

    def past(architecture: Architecture, name: str) -> bool:
        """Whether only the deeper of the two has this tensor's layer."""
        layer = architecture.layer_of(name)
        return layer is not None and layer >= depth

    if ours.num_layers != theirs.num_layers:
        found.append(f"{first.reference} has {ours.num_layers} layers, {other.reference} has {theirs.num_layers}")
    for mine, here, your in ((first, ours, other), (other, theirs, first)):
        only = [
            name
            for name in mine.tensors
            if name not in your.tensors
            and name not in here.tied
            # What follows from a difference in depth is told already.
            and not past(here, name)
        ]
        if only:
            found.append(f"{mine.reference} has {_some(only)} that {your.reference} lacks")

    shared = [name for name in first.tensors if name in other.tensors]
    unequal = [name for name in shared if first.tensors[name].shape != other.tensors[name].shape]
    vocabulary = [name for name in unequal if _vocabulary_differs(ours, name, first, other)]
    if vocabulary:
        name = vocabulary[0]
        found.append(
            f"the vocabularies differ in size: {name} has {first.tensors[name].shape[0]} rows in "
            f"{first.reference} and {other.tensors[name].shape[0]} in {other.reference}; "
            "say in the recipe which tokenizer to use (tokenizer_source)"
        )
    found += [
        f"{name} has shape {list(first.tensors[name].shape)} in {first.reference} "
        f"and {list(other.tensors[name].shape)} in {other.reference}"
        for name in unequal
        if name not in vocabulary
    ]
    if len(found) > most:
        return [*found[:most], f"and {len(found) - most} more differences"]
    return found


def _is_modality(key: str, value: object) -> bool:
    """Whether an entry of a config describes a model of images or sounds."""
    return isinstance(value, Mapping) and key.endswith("_config") and bool(_OTHER_MODALITY.search(key))


def _parts(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The config and those inside it that describe the language model, outermost first."""
    parts: list[Any] = [config if isinstance(config, dict) else dict(config)]
    for part in parts:  # Grows while it is read: thinker_config holds a text_config.
        parts += [part[key] for key in _TEXT_CONFIGS if isinstance(part.get(key), dict)]
    return parts


def _depth(config: Mapping[str, Any]) -> int:
    """The depth that the config states for the language model; 0 where it states none."""
    # The innermost first: what surrounds it may count a vision tower's layers.
    for part in reversed(_parts(config)):
        for key in _DEPTHS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return int(getattr(_parsed(config), "num_hidden_layers", 0) or 0)


def _parsed(config: Mapping[str, Any]) -> Any:
    """The language model's config with the values that it leaves out, as they are its class's default; or None."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    plain = {key: value for key, value in config.items() if key != "auto_map"}
    try:
        return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(plain)).get_text_config()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArchitectureError(f'config.json is no config of a "{kind}" for transformers: {error}') from None


def _stacks(names: Iterable[str]) -> dict[str, set[int]]:
    """The numbers that follow each prefix; of a name with several numbers, the first counts."""
    stacks: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if _NUMBER.fullmatch(part):
                stacks["".join(f"{before}." for before in parts[:place])].add(int(part))
                break
    return dict(stacks)


def _choose(stacks: Mapping[str, set[int]], depth: int) -> str:
    """The prefix of the language model's stack: the one with all layers of the stated depth.

    Layers past the depth are allowed, as some models append predictors of further tokens; but a stack of
    no other modality's name wins, then one of exactly that depth, then the shortest name.
    """
    fitting = [stack for stack, numbers in stacks.items() if len(numbers) >= depth and numbers.issuperset(range(depth))]
    if not fitting:
        raise ArchitectureError(
            f"the config states {depth} layers, but no stack of tensors has the numbers 0 to {depth - 1}; "
            f"found {_listed(stacks)}; is the checkpoint complete, and the config its own?"
        )
    return min(
        fitting,
        key=lambda stack: (
            bool(_OTHER_MODALITY.search(stack)),
            len(stacks[stack]) != depth,
            len(stack),
            stack,
        ),
    )


def _listed(stacks: Mapping[str, set[int]]) -> str:
    """The stacks, for a message."""
    texts = [
        f"{stack}{min(numbers)} to {stack}{max(numbers)} ({len(numbers)} of them)"
        for stack, numbers in sorted(stacks.items())
    ]
    return ", ".join(texts[:4]) or "no numbered tensors"


def _index(name: str, stack: str) -> int | None:
    """The number that follows the stack's prefix in a name."""
    if not name.startswith(stack):
        return None
    number = name[len(stack) :].partition(".")[0]
    return int(number) if _NUMBER.fullmatch(number) else None


def _beside(name: str, stack: str) -> str:
    """The module at which a name leaves the stack's path: "norm" for "model.norm.weight", model.layers."""
    mine, path = name.split("."), stack.split(".")[:-2]
    for depth, part in enumerate(mine):
        if depth >= len(path) or part != path[depth]:
            return part
    return mine[-1]


def _ties(config: Mapping[str, Any]) -> bool:
    """Whether the head repeats the embedding: where the config says so, else as transformers has it."""
    for part in _parts(config):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    # Configs leave out what is their class's default; an unknown class keeps its head.
    from transformers import CONFIG_MAPPING

    for part in reversed(_parts(config)):
        kind = part.get("model_type")
        if isinstance(kind, str) and kind in CONFIG_MAPPING:
            return bool(getattr(CONFIG_MAPPING[kind], "tie_word_embeddings", False))
    return False


def _followed(key: str, value: list[Any], layers: Sequence[int], depth: int) -> list[Any]:
    """A list of the config for the stack: one entry a layer, or layers' indices; else as it is."""
    if len(value) == depth:
        return [copy.deepcopy(value[layer]) for layer in layers]
    indices = all(type(item) is int and 0 <= item < depth for item in value)
    if "layer" in key and indices and len(set(value)) == len(value):
        return [place for place, layer in enumerate(layers) if layer in value]
    return value


def _some(names: Sequence[str]) -> str:
    """A few names and how many there are."""
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} tensors ({', '.join(names[:3])}{more})"


def _vocabulary_differs(architecture: Architecture, name: str, first: Tensors, other: Tensors) -> bool:
    """Whether a tensor is an embedding or a head, and differs in nothing but its rows."""
    mine, your = first.tensors[name].shape, other.tensors[name].shape
    outside = architecture.position(name) != "layers"
    named = _EMBEDDING.search(name) or _TIED_HEAD.fullmatch(name) or "head" in name
    return bool(outside and named and len(mine) == len(your) and mine[1:] == your[1:])
