"""Models in memory, and the layers of stacks that refer to theirs."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.architecture import Architecture, fold_of
from evomerge.checkpoint import Checkpoint
from evomerge.errors import ArchitectureError
from evomerge.merge import WeightStore, compute_device, plan
from evomerge.recipe import Recipe
from evomerge.runtime.forward import CACHES
from evomerge.runtime.live import LiveModel
from evomerge.runtime.prefixes import Prefixes
from evomerge.runtime.shared import Beginning


@dataclass(frozen=True)
class LayerRuns:
    """The work of layers, in tokens times layers, padding included.

    Attributes:
        run: computed.
        shared: saved, because an earlier candidate had the same first layers.
    """

    run: int = 0
    shared: int = 0


class Block:
    """A layer of a model in memory, which can be used several times in a stack.

    Args:
        module: the layer.
        ends: the names of the modules in it that end its branches; their outputs are scaled.

    Attributes:
        module: the layer.
        scale: the factor on the outputs of its branches.
    """

    def __init__(self, module: nn.Module, ends: Iterable[str]) -> None:
        self.module = module
        self.scale = 1.0
        self._indexed = [part for part in module.modules() if "layer_idx" in vars(part)]
        for end in ends:
            module.get_submodule(end).register_forward_hook(self._scaled)

    def at(self, index: int, scale: float) -> nn.Module:
        """Returns the layer set up for an index of a stack: it uses that index in caches of keys and values."""
        self.scale = scale
        for part in self._indexed:
            part.layer_idx = index  # type: ignore[assignment]
        return self.module

    def _scaled(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output if self.scale == 1.0 else output * self.scale


class ForwardPass:
    """Runs the layers of a stack, one forward pass at a time.

    Attributes:
        prefixes: keeps hidden states for later candidates.
        counts: the work of all passes so far.
    """

    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self.counts = LayerRuns()
        self._batch: bytes | None = None
        self._start = 0
        self._states: Tensor | None = None

    def begin(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Starts a pass, as a hook before the model runs; hidden states are shared if they follow from its inputs."""
        self._start, self._states = 0, None
        self._batch = None if args else _digest(inputs)
        if self._batch is not None:
            self._start, self._states = self.prefixes.deepest(self._batch)

    def layer(self, layer: Layer, states: Tensor, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        """Returns a layer's output for hidden states of the shape (rows, tokens, hidden size)."""
        work = states.shape[0] * states.shape[1]
        if layer.index < self._start:
            self.counts = LayerRuns(self.counts.run, self.counts.shared + work)
            return self._states if layer.index == self._start - 1 else states
        self.counts = LayerRuns(self.counts.run + work, self.counts.shared)
        found = layer.block.at(layer.index, layer.scale)(states, *args, **inputs)
        if self._batch is not None and isinstance(found, Tensor):
            self.prefixes.offer(layer.index + 1, self._batch, found)
        return found


class Layer(nn.Module):
    """A layer of a stack: a reference to a block, its index and its scale.

    The block is not a submodule, so its weights are not the stack's.
    """

    def __init__(self, block: Block, index: int, scale: float, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.block = block
        self.index = index
        self.scale = scale
        self.forward_pass = forward_pass

    def __getattr__(self, name: str) -> Any:
        # Some models read attributes of their layers, such as the kind of attention.
        return getattr(vars(self)["block"].module, name)

    def forward(self, hidden_states: Tensor, *args: Any, **inputs: Any) -> Any:
        """See `ForwardPass.layer`."""
        return self.forward_pass.layer(self, hidden_states, args, inputs)


class Parent:
    """A model in memory whose tensors stacks refer to.

    Args:
        name: its name in recipes.
        checkpoint: its files.
        stored: the dtype that the recipe stores tensors in; None for their own.
        device: where it is kept.
        dtype: the dtype in which it runs.

    Attributes:
        checkpoint: its files.
        architecture: its architecture.
        places: each of its tensors in memory, by its name in the checkpoint; None where the model has no use for it.
        state: the same parameters and buffers by their names in the module.
        stack: the name of the list of its layers there.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, stored: str | None, device: str, dtype: torch.dtype) -> None:
        data = {"merge_method": "passthrough", "models": [{"model": name}], "dtype": stored}
        made = plan(Recipe.model_validate(data), {name: checkpoint})
        live = LiveModel(made, device, dtype)
        live.fill(made, WeightStore({name: checkpoint}, "disk", compute_device(device), reused=False))
        self.checkpoint = checkpoint
        self.architecture = Architecture.of(checkpoint.config, checkpoint.tensors)
        self.places = live.places
        self.state: dict[str, Tensor] = live.model.state_dict(keep_vars=True)
        self.stack, self._ends = layers_of(live, checkpoint.config)

    def blocks(self, skeleton: nn.Module) -> list[Block]:
        """Returns the layers of a model that has this one's layers under another model's settings.

        Args:
            skeleton: that model, without memory for its parameters; its layers are given this model's weights.

        Raises:
            ArchitectureError: its layers have other parameters than this model's.
        """
        adopt(skeleton, {path: tensor for path, tensor in self.state.items() if path.startswith(f"{self.stack}.")})
        layers: Any = skeleton.get_submodule(self.stack)
        return [Block(layer, ends) for layer, ends in zip(layers, self._ends, strict=True)]


def _digest(inputs: Mapping[str, Any]) -> bytes | None:
    """Returns what hidden states depend on beside the layers; None if they also depend on a cache that goes on."""
    cache = next((inputs[name] for name in CACHES if name in inputs), None)
    before = cache.ids if isinstance(cache, Beginning) else ()
    if inputs.get("use_cache") is not False and not before:
        return None
    found = hashlib.blake2b(repr(before).encode(), digest_size=16)
    for name in ("input_ids", "position_ids", "attention_mask"):
        value = inputs.get(name)
        for part in value.values() if isinstance(value, Mapping) else (value,):
            if part is not None:
                raw = part.contiguous().view(torch.uint8) if part.is_floating_point() else part
                found.update(f"{name} {tuple(part.shape)}".encode() + raw.cpu().numpy().tobytes())
    unknown = inputs.keys() - {"input_ids", "position_ids", "attention_mask", "use_cache", *CACHES}
    return None if any(inputs[name] is not None for name in unknown - {"logits_to_keep"}) else found.digest()


def paths_of(model: nn.Module, places: Mapping[str, Tensor | None]) -> dict[str, list[str]]:
    """Returns for each of a checkpoint's tensors the names of the parameter or buffer that holds it.

    Args:
        model: a model of transformers.
        places: see `placement.places`; tensors that the model has no use for are left out.
    """
    names: defaultdict[int, list[str]] = defaultdict(list)
    for path, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].append(path)
    return {
        name: names[id(view if view._base is None else view._base)] for name, view in places.items() if view is not None
    }


def adopt(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replaces parameters and buffers of a model by other tensors.

    Args:
        model: the model; nothing is changed where an error is raised.
        state: the tensors by the names of what they replace.

    Raises:
        ArchitectureError: the model has no such parameter, or one of another shape.
    """
    own = model.state_dict(keep_vars=True)
    for path, tensor in state.items():
        if path not in own or own[path].shape != tensor.shape:
            found = f"one of {list(own[path].shape)}" if path in own else "none"
            raise ArchitectureError(
                f"the stack has a tensor {path} of shape {list(tensor.shape)}, but the model that gives the config has"
                f" {found}; stack layers of models of one architecture"
            )
    for path, tensor in state.items():
        name, _, key = path.rpartition(".")
        module = model.get_submodule(name)
        (module._parameters if key in module._parameters else module._buffers)[key] = tensor  # type: ignore[assignment]


def layers_of(live: LiveModel, config: Mapping[str, Any]) -> tuple[str, list[set[str]]]:
    """Returns the name of the list of a model's layers, and for each layer those of the modules that end its branches.

    Args:
        live: the model.
        config: its config.json.
    """
    architecture = Architecture.of(config, live.places)
    paths = paths_of(live.model, live.places)
    ends: list[set[str]] = [set() for _ in range(architecture.num_layers)]
    stack = next(
        found
        for name, (path, *_) in paths.items()
        if architecture.layer_of(name) is not None
        if (found := _list_above(live.model, path, len(ends)))
    )
    try:
        fold = fold_of(config, live.places)
    except ArchitectureError:
        return stack, ends
    for name in filter(fold.includes, paths):
        index, _, inner = paths[name][0].removeprefix(f"{stack}.").partition(".")
        ends[int(index)].add(inner.rpartition(".")[0])
    return stack, ends


def _list_above(model: nn.Module, path: str, length: int) -> str | None:
    """Returns the name of the outermost list of `length` modules that holds a parameter; None where there is none."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        module = model.get_submodule(".".join(parts[:end]))
        if isinstance(module, nn.ModuleList) and len(module) == length:
            return ".".join(parts[:end])
    return None
