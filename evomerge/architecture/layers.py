"""`Architecture`: which tensors are layer i, by their names and the depth that the config states."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.architecture.configs import depth_of, ties_head
from evomerge.errors import ArchitectureError

# Names of the modules beside the stack. Whatever is not known to come after it comes before: embeddings,
# and the vision or audio towers and projectors that feed them.
_NORM = re.compile(r"(final_?)?(layer_?norm|rms_?norm|norm|ln)(_?(f|final|out|post))?", re.IGNORECASE)
_AFTER = re.compile(r".*head.*|output.*|.*unembed.*|embed_out|score|classifier|cls|pooler|qa_.*|project_out|mtp.*")
EMBEDDING = re.compile(r"emb|wte|\btok")
# The last module of a head that may repeat the embedding; "decoder" is that of BERT and similar models.
TIED_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output|output_layer|head|decoder)\.weight")
OTHER_MODALITY = re.compile(r"vis|image|audio|speech|video|encoder|project|connector|multi_modal")

# A layer's number; no real model has a longer one.
_NUMBER = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True)
class Architecture:
    """Which tensors are layer i; what comes before and after; the tied head.

    Attributes:
        num_layers: the depth of the language model's stack; 0 for a model without one.
        stack: what the names of its tensors have before the layer's number, with the dot; "" where
            `num_layers` is 0.
        ties: whether the config says that the head is the embedding.
        heads: names of tensors that are a head as the embedding could be.
        embeddings: names of embeddings, of positions too.
        tied: names of tensors that repeat another (a head that is the embedding) and are not written out.
    """

    num_layers: int
    stack: str
    ties: bool
    heads: frozenset[str]
    embeddings: frozenset[str]
    tied: frozenset[str]
    _late: frozenset[str]

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Iterable[str]) -> Architecture:
        """The architecture that a config and the names of the tensors describe.

        Args:
            config: a transformers config.json.
            names: all tensors' names.

        Raises:
            ArchitectureError: the model is an encoder with a decoder, or the config states a depth that no
                stack in the names has.
        """
        names = tuple(names)
        depth = depth_of(config)
        stacks = _stacks(names)
        if config.get("is_encoder_decoder"):
            raise ArchitectureError(
                f"encoder-decoder models ({config.get('model_type')}) are not supported: expected one stack "
                f"of layers, found {_listed(stacks)}; use a decoder-only or encoder-only model"
            )
        if depth < 1:
            return cls(0, "", False, *[frozenset()] * 4)
        stack = _choose(stacks, depth)
        beside = {name: module_beside(name, stack) for name in names if _index(name, stack) is None}
        norms = {name for name, module in beside.items() if _NORM.fullmatch(module)}
        if not norms:
            # LFM2 names its final norm embedding_norm. A norm of the embeddings alone is never the only one.
            norms = {name for name, module in beside.items() if "embed" in module and "norm" in module}
        late = norms | {name for name, module in beside.items() if _AFTER.fullmatch(module)}
        late |= {name for name in names if (_index(name, stack) or 0) >= depth}
        heads = frozenset(name for name in late if TIED_HEAD.fullmatch(name))
        embeddings = frozenset(name for name in beside.keys() - late if EMBEDDING.search(name))
        ties = ties_head(config)
        # Where the file has no embedding, the head is the only copy.
        tied = heads if ties and embeddings else frozenset()
        return cls(depth, stack, ties, heads, embeddings, tied, frozenset(late))

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

    def at_depth(self, name: str, depth: int) -> str:
        """The name that a tensor outside the layers has in a stack of another depth.

        Layers past the config's depth, which predict further tokens, stay past it.

        Args:
            name: a tensor outside the layers.
            depth: how many layers the stack has.
        """
        past = _index(name, self.stack)
        if past is None or not self.num_layers:
            return name
        _, dot, rest = name[len(self.stack) :].partition(".")
        return f"{self.stack}{past - self.num_layers + depth}{dot}{rest}"

    def position(self, name: str) -> Literal["before", "layers", "after"]:
        """Where a tensor takes part: embeddings before the layers, the final norm and the head after them.

        Args:
            name: a tensor's name. One that was not there at `of` is "before" or in the layers.
        """
        if self.layer_of(name) is not None:
            return "layers"
        return "after" if name in self._late else "before"


def _stacks(names: Iterable[str]) -> dict[str, set[int]]:
    """The numbers that follow each prefix; of a name with several numbers, the first counts."""
    stacks: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts[:-1]):
            if _NUMBER.fullmatch(part):
                stacks["".join(f"{before}." for before in parts[:i])].add(int(part))
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
            f"found {_listed(stacks)}; is the checkpoint complete, and is this its config?"
        )
    return min(
        fitting,
        key=lambda stack: (bool(OTHER_MODALITY.search(stack)), len(stacks[stack]) != depth, len(stack), stack),
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


def module_beside(name: str, stack: str) -> str:
    """The module at which a name leaves the stack's path: "norm" for "model.norm.weight", model.layers."""
    mine, path = name.split("."), stack.split(".")[:-2]
    for depth, part in enumerate(mine):
        if depth >= len(path) or part != path[depth]:
            return part
    return mine[-1]
