"""Makers of tiny checkpoints, complete in every file, for all tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

KINDS = ("llama", "gpt2", "qwen3", "gemma3_text", "mixtral", "mamba")

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
# A token for each byte and the special ones.
VOCABULARY = 256 + len(SPECIAL_TOKENS)


def tiny_config(kind: str = "llama", layers: int = 4, *, hidden: int = 16, **changes: Any) -> PreTrainedConfig:
    """The config of a model of some ten thousand parameters that any text can be given to.

    `changes` are further fields of the config, such as `tie_word_embeddings` or `vocab_size`.
    """
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if kind == "gpt2":
        sizes = {"n_embd": hidden, "n_layer": layers, "n_head": 2, "n_positions": 512}
    elif kind == "mamba":
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "state_size": 4}
    else:
        sizes = {
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": hidden // 2,
            "max_position_embeddings": 512,
        }
    if kind == "mixtral":
        sizes |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    return CONFIG_MAPPING[kind](**{**common, **sizes, **changes})


def tiny_tokenizer(*, extra_tokens: Sequence[str] = (), chat_template: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: any text encodes, a token a byte; special tokens 0 to 2, then the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    fast.add_tokens(list(extra_tokens))
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_checkpoint(
    folder: Path,
    seed: int = 0,
    kind: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
    scale: float = 0.02,
    shard_bytes: int | None = None,
    tokenizer: bool = True,
    chat_template: bool = False,
    extra_tokens: Sequence[str] = (),
    **config: Any,
) -> Path:
    """Writes a complete checkpoint with transformers; returns its folder.

    With `base`, a fine-tune of it: its config, and its weights plus normal noise of deviation `scale`.
    Without, seeded random weights, every one of them: norms and biases too are no constants. `config` goes
    to `tiny_config`. No global generator is touched.
    """
    generator = torch.Generator().manual_seed(seed)
    if base is not None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        if extra_tokens:
            config.setdefault("vocab_size", VOCABULARY + len(extra_tokens))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(tiny_config(kind, **config), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    size = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    model.to(dtype).save_pretrained(folder, **size)
    if tokenizer:
        tiny_tokenizer(extra_tokens=extra_tokens, chat_template=chat_template).save_pretrained(folder)
    return folder
