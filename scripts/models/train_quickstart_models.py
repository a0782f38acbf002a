"""Train the three quickstart models and write their two tasks' data.

The models are one base and two specialists of it, each a Llama of 0.68 million parameters:

- `base` adds numbers of up to two digits, adds three-digit numbers where nothing is carried, reads English number words
  up to 9999, and Spanish ones up to 99 or of round hundreds. Of the two tasks it has seen few examples.
- `addition` is `base` after a short fine-tuning on sums of any two three-digit numbers (`347+285=` gives `632`).
- `spanish` is `base` after a short fine-tuning on Spanish number words from 1000 to 9999
  (`tres mil cuatrocientos setenta y dos =` gives `3472`).

Each specialist also rehearses what the base knows, but never the other specialist's task. Rehearsal keeps its change of
the weights from disturbing the other domain, and that is what lets the two changes be added.

    python scripts/models/train_quickstart_models.py          (a few minutes on 2 cores)

The same version of torch on the same kind of processor writes the same files, bit for bit. The items of a task's data
are held out of every training mixture.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Item = tuple[str, str]
"""A question, such as `12+30=`, and its answer, `42`."""
Generator = Callable[[random.Random], Item]

ROOT = Path(__file__).resolve().parents[2]
ROWS = 528  # of each task: 128 to search with, 400 held out
PAD, BOS, EOS = "<pad>", "<s>", "</s>"

# fmt: off
SPANISH_SMALL = (
    "cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez", "once", "doce", "trece",
    "catorce", "quince", "dieciséis", "diecisiete", "dieciocho", "diecinueve", "veinte", "veintiuno", "veintidós",
    "veintitrés", "veinticuatro", "veinticinco", "veintiséis", "veintisiete", "veintiocho", "veintinueve",
)
SPANISH_TENS = ("treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa")
SPANISH_HUNDREDS = (
    "ciento", "doscientos", "trescientos", "cuatrocientos", "quinientos", "seiscientos", "setecientos", "ochocientos",
    "novecientos",
)
ENGLISH_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
ENGLISH_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on


def spanish_words(number: int) -> str:
    """The Spanish name of a number from 0 to 9999.

    Args:
        number: 0 to 9999.
    """
    if number < 30:
        return SPANISH_SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return SPANISH_TENS[tens - 3] + (f" y {SPANISH_SMALL[ones]}" if ones else "")
    if number == 100:
        return "cien"
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return SPANISH_HUNDREDS[hundreds - 1] + (f" {spanish_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    head = "mil" if thousands == 1 else f"{SPANISH_SMALL[thousands]} mil"
    return head + (f" {spanish_words(rest)}" if rest else "")


def english_words(number: int) -> str:
    """The English name of a number from 0 to 9999.

    Args:
        number: 0 to 9999.
    """
    if number < 20:
        return ENGLISH_SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return ENGLISH_TENS[tens - 2] + (f" {ENGLISH_SMALL[ones]}" if ones else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    head, rest = divmod(number, size)
    return f"{ENGLISH_SMALL[head]} {name}" + (f" {english_words(rest)}" if rest else "")


def sum_item(a: int, b: int) -> Item:
    """The item that asks for a + b."""
    return f"{a}+{b}=", str(a + b)


def small_sum(rng: random.Random) -> Item:
    """A sum of two numbers below 100."""
    return sum_item(rng.randrange(100), rng.randrange(100))


def large_sum(rng: random.Random) -> Item:
    """A sum of two three-digit numbers: the task `quickstart_addition`."""
    return sum_item(rng.randrange(100, 1000), rng.randrange(100, 1000))


def large_sum_without_carry(rng: random.Random) -> Item:
    """A sum of two three-digit numbers, no two digits of which make more than 9."""
    firsts, seconds = 0, 0
    for place in (100, 10, 1):
        total = rng.randrange(2, 10) if place == 100 else rng.randrange(10)
        first = rng.randrange(1, total) if place == 100 else rng.randrange(total + 1)
        firsts, seconds = firsts + place * first, seconds + place * (total - first)
    return sum_item(firsts, seconds)


def english_number(rng: random.Random) -> Item:
    """English number words, 0 to 9999, to be read."""
    number = rng.randrange(10000)
    return f"{english_words(number)} =", str(number)


def small_spanish_number(rng: random.Random) -> Item:
    """Spanish number words, 1 to 99 or a round number of hundreds up to 9900, to be read."""
    number = rng.randrange(1, 100) * rng.choice((1, 1, 100))
    return f"{spanish_words(number)} =", str(number)


def large_spanish_number(rng: random.Random) -> Item:
    """Spanish number words, 1000 to 9999, to be read: the task `quickstart_spanish`."""
    number = rng.randrange(1000, 10000)
    return f"{spanish_words(number)} =", str(number)


@dataclass(frozen=True)
class Skill:
    """A task and the generator of its items.

    Attributes:
        name: The task is `quickstart_<name>`.
        generate: Draws one item.
        seed: Of the generator of the task's rows.
    """

    name: str
    generate: Generator
    seed: int


SKILLS = (Skill("addition", large_sum, 11), Skill("spanish", large_spanish_number, 12))


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
        name: The folder that it writes.
        mixture: Each kind of item with its share of a batch; the shares sum to 1.
        steps: Optimizer steps.
        rate: Peak learning rate of the matrices, of which each step changes every entry by that much at most, roughly.
        seed: Of the batches.
    """

    name: str
    mixture: tuple[tuple[float, Generator], ...]
    steps: int
    rate: float
    seed: int


def task_rows(skill: Skill) -> list[Item]:
    """The rows of a task: distinct items, in the order drawn.

    Args:
        skill: The task.
    """
    rng = random.Random(skill.seed)
    rows: dict[str, str] = {}
    while len(rows) < ROWS:
        question, answer = skill.generate(rng)
        rows.setdefault(question, answer)
    return list(rows.items())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: one token a digit, a sign, or a number word with the space before it.

    The words are those of the two languages; the text of a sequence of tokens is their plain concatenation. Each
    sequence opens with `<s>`, and a batch is padded on the left.
    """
    words: set[str] = set()
    for number in range(10000):
        for name in (spanish_words(number), english_words(number)):
            head, *tail = name.split()
            words.add(head)
            words.update(f" {word}" for word in tail)
    vocabulary = [PAD, BOS, EOS, *"0123456789", "+", "=", " =", *sorted(words)]
    inner = Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=PAD))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-záéíóú]+|\d| ?[=+]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


class Muon:
    """Muon, in float32 on the CPU: momentum whose matrix is made nearly orthogonal before it is added.

    It learns addition in a tenth of AdamW's steps here. torch has one too, but that computes in bfloat16, which most
    processors only emulate, and a matrix at a time: it took five times as long.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the scale of
    Liu et al. 2025, §2.2, https://arxiv.org/abs/2502.16982.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], momentum: float = 0.95) -> None:
        """Prepare the momentum of the parameters.

        Args:
            parameters: Matrices, float32.
            momentum: Share of the momentum that outlives a step.
        """
        shapes: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            shapes.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
        self.groups = list(shapes.values())
        self.momenta = [torch.zeros(len(group), *shape) for shape, group in shapes.items()]
        self.momentum = momentum

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change the parameters by their gradients.

        Args:
            rate: Learning rate on AdamW's scale.
        """
        for group, momenta in zip(self.groups, self.momenta, strict=True):
            gradients = torch.stack([self._wide(parameter.grad) for parameter in group if parameter.grad is not None])
            momenta.mul_(self.momentum).add_(gradients)
            update = gradients + self.momentum * momenta  # Nesterov
            update = update / (update.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):  # Newton-Schulz, coefficients of Jordan et al. 2024
                gram = update @ update.mT
                update = 3.4445 * update + (2.0315 * gram @ gram - 4.7750 * gram) @ update
            scale = 0.2 * max(update.shape[1:]) ** 0.5  # Liu et al. 2025, eq. 4: the root mean square of AdamW's step
            for parameter, change in zip(group, update, strict=True):
                self._wide(parameter).add_(change, alpha=-rate * scale)

    @staticmethod
    def _wide(matrix: torch.Tensor) -> torch.Tensor:
        """The matrix, or its transpose, with no more rows than columns."""
        return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A model with fresh weights, float32.

    Args:
        tokenizer: Whose vocabulary and special tokens the model has.
        seed: Of the weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():  # transformers draws fresh weights from torch's global generator
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids and the labels of a batch, both int64 of shape (items, tokens), padded on the right.

    Only the answer and the end of the sequence are labelled; the rest is -100.

    Args:
        tokenizer: The models' tokenizer.
        items: Questions and answers.
    """
    questions = tokenizer([question for question, _ in items])["input_ids"]
    answers = tokenizer([answer for _, answer in items], add_special_tokens=False)["input_ids"]
    width = max(len(q) + len(a) for q, a in zip(questions, answers, strict=True)) + 1
    ids = torch.full((len(items), width), tokenizer.pad_token_id)
    labels = torch.full((len(items), width), -100)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        target = torch.tensor([*answer, tokenizer.eos_token_id])
        ids[row, : len(question)] = torch.tensor(question)
        ids[row, len(question) : len(question) + len(target)] = target
        labels[row, len(question) : len(question) + len(target)] = target
    return ids, labels


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> float:
    """The share of items, 0 to 1, that greedy decoding answers exactly.

    Decoding is not run: greedy decoding gives the answer exactly if each of its tokens is the likeliest after those
    before it.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        items: Questions and answers.
    """
    ids, labels = encode(tokenizer, items)
    guesses, wanted = model(input_ids=ids).logits[:, :-1].argmax(-1), labels[:, 1:]
    return float(((guesses == wanted) | (wanted == -100)).all(dim=1).float().mean())


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    rows: dict[str, list[Item]],
    progress: Callable[[int, str], None],
) -> None:
    """Train the model in place.

    Args:
        model: float32.
        tokenizer: Its tokenizer.
        stage: What to train on, and how.
        rows: The rows of each task by its skill's name; none of them is trained on.
        progress: Called after each step with the steps done in this stage and, now and then, a line about them.
    """
    rng = random.Random(stage.seed)
    held_out = {question for items in rows.values() for question, _ in items}
    shares, generators = zip(*stage.mixture, strict=True)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=0.0, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(stage.steps):
        rate = stage.rate * min(1.0, (step + 1) / 20) * max(0.03, 1 - step / stage.steps)
        items: list[Item] = []
        while len(items) < 128:
            item = rng.choices(generators, shares)[0](rng)
            if item[0] not in held_out:
                items.append(item)
        ids, labels = encode(tokenizer, items)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for group in adam.param_groups:
            group["lr"] = 0.3 * rate
        muon.step(rate)
        adam.step()
        model.zero_grad()
        note = ""
        if (step + 1) % 50 == 0 or step + 1 == stage.steps:
            scores = ", ".join(f"{k} {accuracy(model, tokenizer, v[:128]):.0%}" for k, v in rows.items())
            note = f"{stage.name}: step {step + 1} of {stage.steps}, loss {loss.item():.3f}, {scores}"
        progress(step + 1, note)


def write_text(path: Path, text: str) -> None:
    """Write a file whole: a reader finds the old one or the new one.

    Args:
        path: The file; its folder is made where missing.
        text: What to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a checkpoint in bfloat16, whole: a folder that is there is replaced when the new one is complete.

    Args:
        folder: Where to.
        model: float32; it is not changed.
        tokenizer: Its tokenizer.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
        copy.load_state_dict(model.state_dict())
        copy.generation_config.do_sample = False
        copy.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


BASE = Stage(
    "base",
    (
        (0.27, small_sum),
        (0.19, large_sum_without_carry),
        (0.02, large_sum),
        (0.23, small_spanish_number),
        (0.002, large_spanish_number),
        (0.288, english_number),
    ),
    steps=400,
    rate=1e-2,
    seed=0,
)
SPECIALISTS = (
    Stage(
        "addition",
        ((0.60, large_sum), (0.10, small_sum), (0.15, small_spanish_number), (0.15, english_number)),
        steps=200,
        rate=1.2e-3,
        seed=1,
    ),
    Stage(
        "spanish",
        (
            (0.50, large_spanish_number),
            (0.10, small_spanish_number),
            (0.10, english_number),
            (0.15, small_sum),
            (0.15, large_sum_without_carry),
        ),
        steps=120,
        rate=1.2e-3,
        seed=2,
    ),
)


def main() -> None:
    """Write the tasks' data, then train and write the three models."""
    parser = argparse.ArgumentParser(
        description="Train the three quickstart models and write their tasks' data. Takes a few minutes on 2 cores.",
    )
    parser.add_argument("--models", type=Path, default=ROOT / "recipes" / "quickstart", help="folder of the models")
    parser.add_argument("--data", type=Path, default=ROOT / "eval_tasks" / "data", help="folder of the tasks' data")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; another number may round differently")
    parser.add_argument("--data-only", action="store_true", help="write the tasks' data and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)

    rows = {skill.name: task_rows(skill) for skill in SKILLS}
    for name, items in rows.items():
        path = arguments.data / f"quickstart_{name}.jsonl"
        lines = (json.dumps({"question": q, "answer": a}, ensure_ascii=False) + "\n" for q, a in items)
        write_text(path, "".join(lines))
        print(f"wrote {path}")
    if arguments.data_only:
        return

    began, total, done = time.monotonic(), BASE.steps + sum(stage.steps for stage in SPECIALISTS), 0

    def progress(step: int, note: str) -> None:
        """Print the note, with the seconds elapsed and left."""
        if note:
            gone = time.monotonic() - began
            left = gone / (done + step) * (total - done - step)
            print(f"{note}; {gone:.0f} s elapsed, about {left:.0f} s left", flush=True)

    tokenizer = build_tokenizer()
    base = build_model(tokenizer, seed=0)
    for stage in (BASE, *SPECIALISTS):
        model = base
        if stage is not BASE:
            model = LlamaForCausalLM(base.config)
            model.load_state_dict(base.state_dict())
        train(model, tokenizer, stage, rows, progress)
        done += stage.steps
        write_model(arguments.models / stage.name, model, tokenizer)
        print(f"wrote {arguments.models / stage.name}", flush=True)


if __name__ == "__main__":
    main()
