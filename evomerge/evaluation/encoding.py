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
        TaskError: the task needs a chat template and the tokenizer has none, or it fails; or an item is too long or
            empty.
        CheckpointError: the tokenizer is not the model's.
    """
    if task.chat and not tokenizer.chat_template:
        raise TaskError(
            [
                f'{task.path}: chat is true, but the tokenizer "{tokenizer.name_or_path}" has no chat template;'
                ' set chat: false, or a "chat_template" in the recipe'
            ]
        )
    found = []
    for index, item in enumerate(items):
        requests: list[Any] = []
        for continuation in {"generate": ("",), "multiple_choice": item.choices}.get(task.type, (item.target,)):
            prompt, target = _split(task, item, continuation, tokenizer)
            generation = GenerationRequest(prompt, task.max_new_tokens, task.stop)
            request = generation if task.type == "generate" else LikelihoodRequest(prompt, target)
            fault = ""
            if not prompt:
                fault = "has an empty prompt, and the tokenizer adds no first token to it"
            elif task.type != "generate" and not target:
                fault = "has an empty target; it needs some text"
            elif max_length is not None and request.length > max_length:
                fault = f"has {request.length:,} tokens, but the model takes at most {max_length:,}; shorten it"
            if fault:
                raise TaskError([f"{task.path}: item {index} ({item}) {fault}"])
            largest = max(prompt + target)
            if largest >= vocabulary_size:
                raise CheckpointError(
                    f"{tokenizer.name_or_path}: its tokenizer gives token {largest:,} for an item, but the model"
                    f" that config.json describes has {vocabulary_size:,} tokens; is it the model's own tokenizer?"
                )
            requests.append(request)
        found.append(Encoded(item, tuple(requests)))
    return found


def _split(task: Task, item: Item, continuation: str, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the token ids of the prompt and of its continuation.

    Both are tokenized as one text, since a tokenizer may join a space with the word that follows it.
    """
    prompt = item.prompt
    if task.chat:
        try:
            # Not by the tokenizer: the template comes with a checkpoint, and transformers bounds no time or memory.
            prompt = render_chat(tokenizer.get_chat_template(), item.messages, tokenizer.special_tokens_map)
        except ValueError as fault:  # also for a tokenizer with several templates and no default
            raise TaskError(
                [
                    f"{task.path}: chat is true, but the chat template of {tokenizer.name_or_path} fails for the"
                    f' item {item}: {fault}; set chat: false, or another "chat_template" in the recipe'
                ]
            ) from None
    # A chat template writes the special tokens itself.
    texts = prompt, prompt + continuation
    head, whole = (tokenizer(text, add_special_tokens=not task.chat)["input_ids"] for text in texts)
    if not continuation:
        return tuple(head), ()
    # A tokenizer that ends every text with a special token would put it between the two.
    if head and whole and head[-1] == whole[-1] == tokenizer.eos_token_id:
        head, whole = head[:-1], whole[:-1]
    shared = 0
    while shared < len(head) and shared < len(whole) and head[shared] == whole[shared]:
        shared += 1
    shared = min(shared, len(whole) - 1)
    return tuple(whole[:shared]), tuple(whole[shared:])
