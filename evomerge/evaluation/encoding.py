"""Items to token ids, once: prompts and continuations, in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import TaskError
from evomerge.tasks import Item, Task, render_chat


@dataclass(frozen=True)
class Row:
    """One sequence to run.

    Attributes:
        item: the index of its item in the split.
        choice: the index of the item's choice that it continues with; 0 where there are no choices.
        prompt: token ids of the prompt, at least one.
        target: token ids of the continuation whose likelihood is wanted; empty for `generate`.
    """

    item: int
    choice: int
    prompt: tuple[int, ...]
    target: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class Encoded:
    """A task's split, ready to be scored by any model with the same tokenizer.

    Attributes:
        task: the task.
        items: its items.
        rows: every sequence that scoring it runs.
    """

    task: Task
    items: tuple[Item, ...]
    rows: tuple[Row, ...]


def encode(task: Task, items: Sequence[Item], tokenizer: Any, max_positions: int | None) -> Encoded:
    """Returns the split's items as token ids.

    Args:
        task: how items are asked and scored.
        items: the split's items.
        tokenizer: a tokenizer of transformers.
        max_positions: the most tokens that the model takes; None where it has no limit.

    Raises:
        TaskError: the task wants a chat template that the tokenizer lacks or that fails, or an item is too long
            or empty.
    """
    if task.chat and not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            [
                f'{task.path}: chat is true, but the tokenizer "{tokenizer.name_or_path}" has no chat template;'
                ' set chat: false, or give the recipe one with "chat_template"'
            ]
        )
    rows = []
    for index, item in enumerate(items):
        for choice, continuation in enumerate(_continuations(task, item)):
            prompt, target = _split(task, item, continuation, tokenizer)
            place = f"{task.path}: item {index} ({item})"
            if not prompt:
                raise TaskError([f"{place} has an empty prompt, and the tokenizer adds no first token to it"])
            if task.type != "generate" and not target:
                raise TaskError([f"{place} has an empty target, whose likelihood says nothing"])
            length = len(prompt) + (task.max_new_tokens if task.type == "generate" else len(target))
            if max_positions is not None and length > max_positions:
                raise TaskError([f"{place} takes {length:,} tokens, but the model takes {max_positions:,}; shorten it"])
            rows.append(Row(index, choice, prompt, target))
    return Encoded(task, tuple(items), tuple(rows))


def batches(
    rows: Sequence[Row], *, new_tokens: int, most_rows: int, most_tokens: int, most_targets: int
) -> list[list[Row]]:
    """Returns the rows in batches of similar length, the longest first, so that too little memory shows at once.

    Args:
        rows: what is to be run.
        new_tokens: how many tokens each row may grow by.
        most_rows: the most rows of a batch.
        most_tokens: the most tokens of a batch, its padding included.
        most_targets: the most tokens of all targets of a batch.
    """
    found: list[list[Row]] = []
    # The order is total, so that batches, and with them the last bits of scores, are always the same.
    for row in sorted(rows, key=lambda row: (-len(row), row.item, row.choice)):
        batch = found[-1] if found else []
        tokens = (len(batch[0]) + new_tokens) * (len(batch) + 1) if batch else 0
        targets = sum(len(one.target) for one in (*batch, row))
        if batch and len(batch) < most_rows and tokens <= most_tokens and targets <= most_targets:
            batch.append(row)
        else:
            found.append([row])
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
