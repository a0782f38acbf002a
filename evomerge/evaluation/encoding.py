"""Items to requests: prompts and continuations as token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import CheckpointError, TaskError
from evomerge.runtime import GenerationRequest, Images, LikelihoodRequest
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
    task: Task,
    items: Sequence[Item],
    tokenizer: Any,
    max_length: int | None,
    vocabulary_size: int,
    processor: Callable[[], Any] = lambda: None,
) -> list[Encoded]:
    """Returns the items of a split with their requests.

    Args:
        task: how items are asked and scored.
        items: the split's items.
        tokenizer: a tokenizer of transformers.
        max_length: the most tokens that the model takes; None where it has no limit.
        vocabulary_size: the token ids that the model knows.
        processor: loads the model's processor of images; called where an item has some.

    Raises:
        TaskError: the task needs a chat template and the tokenizer has none, or it fails; or an item is too long or
            empty.
        CheckpointError: the tokenizer is not the model's, or the model takes no images.
    """
    loaded = processor() if any(item.pictures for item in items) else None
    if task.chat and not (tokenizer.chat_template or getattr(loaded, "chat_template", None)):
        raise TaskError(
            [
                f'{task.path}: chat is true, but the tokenizer "{tokenizer.name_or_path}" has no chat template;'
                ' set chat: false, or a "chat_template" in the recipe'
            ]
        )
    found = []
    for index, item in enumerate(items):
        requests: list[Any] = []
        text = _text(task, item, tokenizer, loaded)
        seen = _seen(task, item, text, loaded) if item.pictures else None
        ends = {"generate": ("",), "multiple_choice": item.choices}.get(task.type, (item.target,))
        for start, continuation in item.texts or [(text, end) for end in ends]:
            prompt, target, dropped = _split(start, continuation, tokenizer, special=not task.chat)
            if item.texts and not start:
                # As lm-eval does: of a text on its own it also scores the first token, if the tokenizer adds one.
                special = task.type == "perplexity"
                target = tuple(tokenizer(continuation, add_special_tokens=special)["input_ids"])
                prompt = _first(tokenizer)
            elif task.type == "perplexity" and not prompt:
                prompt = _first(tokenizer)
            images = None
            if seen:
                prompt, images = _without_last(*seen, dropped)
            generation = GenerationRequest(prompt, task.max_new_tokens, task.stop, images)
            request = generation if task.type == "generate" else LikelihoodRequest(prompt, target, images)
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


def _first(tokenizer: Any) -> tuple[int, ...]:
    """Returns what comes before a text whose tokenizer adds no first token: the one that begins or else ends texts."""
    known = [one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None]
    return tuple(known[:1])


def _text(task: Task, item: Item, tokenizer: Any, processor: Any) -> str:
    """Returns the text of an item's prompt."""
    if not task.chat:
        return item.prompt
    try:
        template = getattr(processor, "chat_template", None) or tokenizer.get_chat_template()
        # Not by the tokenizer: the template comes with a checkpoint, and transformers bounds no time or memory.
        return render_chat(template, item.messages, tokenizer.special_tokens_map)
    except ValueError as fault:  # also for a tokenizer with several templates and no default
        raise TaskError(
            [
                f"{task.path}: chat is true, but the chat template of {tokenizer.name_or_path} fails for the"
                f' item {item}: {fault}; set chat: false, or another "chat_template" in the recipe'
            ]
        ) from None


def _seen(task: Task, item: Item, text: str, processor: Any) -> tuple[tuple[int, ...], Images]:
    """Returns the token ids of a prompt with images, and the images."""
    try:
        made = processor(
            text=[text],
            images=[picture.opened() for picture in item.pictures],
            add_special_tokens=False,
            return_tensors="pt",
        )
    # Processors raise errors of many kinds.
    except Exception as fault:
        raise TaskError(
            [
                f"{task.path}: the model's image processor fails for the item {item}: {fault}; has its chat template a"
                f" place for each of the {len(item.pictures)} images?"
            ]
        ) from None
    inputs = {name: value for name, value in made.items() if name not in ("input_ids", "attention_mask")}
    return tuple(made["input_ids"][0].tolist()), Images(tuple(picture.key for picture in item.pictures), inputs)


def _without_last(prompt: tuple[int, ...], images: Images, count: int) -> tuple[tuple[int, ...], Images]:
    """Returns a prompt and its images without the last tokens, which are text."""
    kept = prompt[: len(prompt) - count]
    inputs = {
        name: value[:, : len(kept)] if value.shape == (1, len(prompt)) else value
        for name, value in images.inputs.items()
    }
    return kept, Images(images.key, inputs)


def _split(
    prompt: str, continuation: str, tokenizer: Any, special: bool
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Returns the token ids of a prompt and its continuation, and how many the prompt alone had more.

    Both are tokenized as one text, since a tokenizer may join a space with the word that follows it.
    """
    # A chat template writes the special tokens itself.
    texts = prompt, prompt + continuation
    head, whole = (tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts)
    if not continuation:
        return tuple(head), (), 0
    # A tokenizer that ends every text with a special token would put it between the two.
    if head and whole and head[-1] == whole[-1] == tokenizer.eos_token_id:
        head, whole = head[:-1], whole[:-1]
    shared = 0
    while shared < len(head) and shared < len(whole) and head[shared] == whole[shared]:
        shared += 1
    shared = min(shared, len(whole) - 1)
    return tuple(whole[:shared]), tuple(whole[shared:]), len(head) - shared
