"""Items to requests: prompts and continuations as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import CheckpointError, TaskError
from evomerge.runtime import GenerationRequest, LikelihoodRequest
from evomerge.tasks import Item, Task, render_chat


@dataclass(frozen=True)
class Encoded:
    """An item, ready for any model with the same tokenizer.

    Attributes:
        item: the item.
        requests: what scoring it asks: a `GenerationRequest`, or a `LikelihoodRequest` for the target or each choice.
    """

    item: Item
    requests: tuple[Any, ...]


def encode(
    task: Task, items: Sequence[Item], tokenizer: Any, max_length: int | None, vocabulary_size: int
) -> list[Encoded]:
    """Returns the items of a split with their requests.

    Args:
        task: how items are asked and scored.
        items: the split's items.
        tokenizer: a tokenizer of transformers.
        max_length: the most tokens that the model takes; None where it has no limit.
        vocabulary_size: the token ids that the model knows.

    Raises:
        TaskError: the task wants a chat template that the tokenizer lacks or that fails, or an item is too long
            or empty.
        CheckpointError: the tokenizer is not the model's.
    """
    if task.chat and not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            [
                f'{task.path}: chat is true, but the tokenizer "{tokenizer.name_or_path}" has no chat template;'
                ' set chat: false, or give the recipe one with "chat_template"'
            ]
        )
    found = []
    for index, item in enumerate(items):
        requests: list[Any] = []
        for continuation in _continuations(task, item):
            prompt, target = _split(task, item, continuation, tokenizer)
            name = f"{task.path}: item {index} ({item})"
            if not prompt:
                raise TaskError([f"{name} has an empty prompt, and the tokenizer adds no first token to it"])
            if task.type == "generate":
                requests.append(GenerationRequest(prompt, task.max_new_tokens, task.stop))
            elif target:
                requests.append(LikelihoodRequest(prompt, target))
            else:
                raise TaskError([f"{name} has an empty target, whose likelihood says nothing"])
            if max_length is not None and requests[-1].length > max_length:
                raise TaskError(
                    [f"{name} takes {requests[-1].length:,} tokens, but the model takes {max_length:,}; shorten it"]
                )
            largest = max(prompt + target)
            if largest >= vocabulary_size:
                raise CheckpointError(
                    f"{tokenizer.name_or_path}: its tokenizer gives token {largest:,} for an item, but the model"
                    f" that config.json describes has {vocabulary_size:,} tokens; is it the model's own tokenizer?"
                )
        found.append(Encoded(item, tuple(requests)))
    return found


def _continuations(task: Task, item: Item) -> tuple[str, ...]:
    if task.type == "generate":
        return ("",)
    return item.choices if task.type == "multiple_choice" else (item.target,)


def _split(task: Task, item: Item, continuation: str, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the token ids of the prompt and of its continuation.

    Both are tokenized as one text, since a tokenizer may join a space to the word behind it.
    """
    prompt = item.prompt
    if task.chat:
        try:
            # Not by the tokenizer: it is a checkpoint's template, and transformers bounds neither time nor memory.
            prompt = render_chat(tokenizer.get_chat_template(), item.messages, tokenizer.special_tokens_map)
        except ValueError as fault:  # also of a tokenizer with several templates and no default
            raise TaskError(
                [
                    f"{task.path}: chat is true, but the chat template of {tokenizer.name_or_path} cannot write the"
                    f' item {item}: {fault}; set chat: false, or give the recipe another with "chat_template"'
                ]
            ) from None
    if not continuation:
        return tuple(tokenizer(prompt, add_special_tokens=not task.chat)["input_ids"]), ()
    whole = tokenizer(prompt + continuation, add_special_tokens=not task.chat)["input_ids"]
    head = tokenizer(prompt, add_special_tokens=not task.chat)["input_ids"]
    # A tokenizer that ends every text with a special token would put it between the two.
    ending = getattr(tokenizer, "eos_token_id", None)
    if head and whole and head[-1] == whole[-1] == ending:
        head, whole = head[:-1], whole[:-1]
    shared = 0
    while shared < len(head) and shared < len(whole) and head[shared] == whole[shared]:
        shared += 1
    shared = min(shared, len(whole) - 1)
    return tuple(whole[:shared]), tuple(whole[shared:])
