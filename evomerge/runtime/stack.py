"""`StackRuntime`: models that refer to the layers of other models in memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from evomerge.architecture import config_of_stack, parsed
from evomerge.architecture.configs import DEPTHS, parts_of
from evomerge.errors import ArchitectureError
from evomerge.merge import Plan, compute_device
from evomerge.runtime.blocks import Block, ForwardPass, Layer, LayerRuns, Parent, adopt, paths_of
from evomerge.runtime.by_reference import Stack, stack_of
from evomerge.runtime.images import load_processor
from evomerge.runtime.language_model import TorchLanguageModel
from evomerge.runtime.live import skeleton
from evomerge.runtime.placement import places
from evomerge.runtime.prefixes import Path, Prefixes
from evomerge.runtime.protocol import LanguageModel
from evomerge.runtime.resident import load_tokenizer, stop_ids


class StackRuntime:
    """A `Runtime` of stacks of layers, see `by_reference`: making one takes milliseconds and no memory for weights.

    Each model whose layers are stacked is loaded once and stays in memory, with its weights rounded to the dtype that
    the recipe stores. A scale multiplies the outputs of a layer's branches instead of weights.

    Args:
        first: any plan; gives the tokenizer and the limits.
        device: see `LiveModel`; of several GPUs, one is used.
        dtype: in which models run, see `compute_dtype`.
        prefix_bytes: the most memory for activations that candidates share, see `expect`.

    Attributes:
        tokenizer: see `Runtime`.
        max_length: see `Runtime`.
        vocabulary_size: see `Runtime`.

    Raises:
        ArchitectureError: transformers cannot run such a model.
        CheckpointError: the tokenizer, the generation settings or weights cannot be read.
    """

    def __init__(self, first: Plan, device: str, dtype: torch.dtype, *, prefix_bytes: int = 2**30) -> None:
        # A single device: references would lose the hooks that move activations from one GPU to the next.
        self._device = str(compute_device(device))
        self._dtype = dtype
        self._parents: dict[tuple[str, str | None], Parent] = {}
        self._shells: dict[Hashable, _Shell] = {}
        self._prefixes = Prefixes(prefix_bytes)
        self._forward_pass = ForwardPass(self._prefixes)
        self.tokenizer: Any = None
        model: Any = self.module(first)
        self.max_length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.vocabulary_size = len(model.get_input_embeddings().weight)
        self.tokenizer = load_tokenizer(first)
        self._first = first

    def processor(self) -> Any:
        """See `Runtime`."""
        return load_processor(self._first, self.tokenizer)

    @property
    def layer_runs(self) -> LayerRuns:
        """The work of all layers so far, and the work that was saved because candidates share their first layers."""
        return self._forward_pass.counts

    def expect(self, plans: Iterable[Plan]) -> None:
        """Sets the plans that will be loaded next, in order, in place of those set before.

        When log-likelihoods are computed, the hidden states after the first layers that a later plan shares are kept;
        that plan starts from them on the same batches. Plans share the most when sorted by `by_reference`.

        Raises:
            ArchitectureError: one of the plans cannot be run by reference.
        """
        self._prefixes.expect([_path(plan, stack_of(plan)) for plan in plans])

    def load(self, plan: Plan) -> LanguageModel:
        """Returns the plan's model, see `Runtime`.

        Raises:
            ArchitectureError: the plan cannot be run by reference, or its layers do not fit together.
        """
        return self._stacked(plan).answering(self.tokenizer, plan)

    def module(self, plan: Plan) -> nn.Module:
        """Returns the plan's model as a module of transformers, like `load`: earlier ones must not be used any more."""
        return self._stacked(plan).model

    def _stacked(self, plan: Plan) -> _Shell:
        stack = stack_of(plan)
        parents = {model: self._parent(model, plan) for model in {job.inputs[0].model for job in plan.layout.jobs}}
        settings = _settings(plan, stack)
        if settings not in self._shells:
            name = parents[stack.layers[0].model].stack
            self._shells[settings] = _Shell(plan, name, self._dtype, self._device, self._forward_pass)
        self._shells[settings].fill(plan, stack, parents)
        self._prefixes.begin(_path(plan, stack))
        return self._shells[settings]

    def _parent(self, name: str, plan: Plan) -> Parent:
        stored = plan.recipe.out_dtype or plan.recipe.dtype
        if (name, stored) not in self._parents:
            checkpoint = plan.layout.checkpoints[name]
            self._parents[name, stored] = Parent(name, checkpoint, stored, self._device, self._dtype)
        return self._parents[name, stored]


class _Shell:
    """A model of transformers whose layers are replaced for each stack; shared by all stacks with the same settings.

    Args:
        plan: one of the stacks.
        stack: the name of the list of layers in it.
        dtype: in which it runs.
        device: where it runs.
        forward_pass: runs its layers.

    Attributes:
        model: the model, with the layers of the last `fill`.
    """

    def __init__(self, plan: Plan, stack: str, dtype: torch.dtype, device: str, forward_pass: ForwardPass) -> None:
        reference = plan.layout.donor.reference
        if any(part.get("num_kv_shared_layers") for part in parts_of(plan.layout.config)):
            raise ArchitectureError(
                f"{reference}: its last layers take keys and values from other layers (num_kv_shared_layers), so they"
                " cannot be run elsewhere in a stack"
            )
        self._dtype = dtype
        self._device = compute_device(device)
        self._stack = stack
        self._forward_pass = forward_pass
        self._blocks: dict[str, list[Block]] = {}
        self.model = self._empty(plan.layout.config)
        self._paths = paths_of(self.model, places(self.model, plan.layout.tensors, reference))
        self.model.register_forward_pre_hook(forward_pass.begin, with_kwargs=True)
        self._answering: TorchLanguageModel | None = None

    def _empty(self, config: Mapping[str, Any]) -> nn.Module:
        """Returns a model without memory for its parameters."""
        model = skeleton(config, self._dtype).eval()
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = buffer.to(self._device)
        return model

    def fill(self, plan: Plan, stack: Stack, parents: Mapping[str, Parent]) -> None:
        """Puts a plan's layers, embeddings, final norm and head into the model.

        Raises:
            ArchitectureError: they do not fit together.
        """
        outside = {
            path: tensor
            for job in (*stack.before, *stack.after)
            for path in self._paths.get(job.info.name, ())
            if (tensor := parents[job.inputs[0].model].places[job.inputs[0].name]) is not None
        }
        adopt(self.model, outside)
        for name in {layer.model for layer in stack.layers} - self._blocks.keys():
            self._blocks[name] = parents[name].blocks(self._like(plan, parents[name]))
        layers = [
            Layer(self._blocks[model][layer], index, scale, self._forward_pass)
            for index, (model, layer, scale) in enumerate(stack.layers)
        ]
        above, _, name = self._stack.rpartition(".")
        setattr(self.model.get_submodule(above), name, nn.ModuleList(layers))
        config: Any = parsed(plan.layout.config)
        own: Any = self.model.config
        for mine, new in ((own, config), (own.get_text_config(), config.get_text_config())):
            # In place: every part of the model refers to this config.
            vars(mine).update({key: value for key, value in vars(new).items() if _says_of_layers(key, value)})

    def _like(self, plan: Plan, parent: Parent) -> nn.Module:
        """Returns a parent's model with the settings of the stack, without memory for its parameters."""
        config = parent.checkpoint.config
        origins = [(config, index) for index in range(parent.architecture.num_layers)]
        return self._empty(config_of_stack(plan.layout.donor.config, origins))

    def answering(self, tokenizer: Any, plan: Plan) -> LanguageModel:
        """Returns the model as one that answers requests."""
        if self._answering is None:
            self._answering = TorchLanguageModel(self.model, tokenizer, stop_ids(plan, tokenizer))
        return self._answering


def _path(plan: Plan, stack: Stack) -> Path:
    """Returns all that determines the activations of a plan's model: settings and embeddings, then each layer."""
    return ((_settings(plan, stack), tuple(job.inputs for job in stack.before)), *stack.layers)


def _settings(plan: Plan, stack: Stack) -> Hashable:
    """Returns all that determines a plan's model except its weights and the order of its layers."""
    depth = len(stack.layers)

    def told(value: Any) -> Hashable:
        if isinstance(value, Mapping):
            return tuple((key, told(value[key])) for key in sorted(value) if key not in DEPTHS)
        # Masks and rotary embeddings depend on which kinds of layers there are.
        return frozenset(map(repr, value)) if isinstance(value, list) and len(value) == depth else repr(value)

    beside = tuple((job.info.name, job.info.shape) for job in (*stack.before, *stack.after))
    return plan.recipe.out_dtype or plan.recipe.dtype, beside, told(plan.layout.config)


def _says_of_layers(key: str, value: Any) -> bool:
    """Returns whether an entry of transformers' config can differ between stacks with the same settings."""
    return not key.startswith("_") and key != "dtype" and not hasattr(value, "to_dict")
