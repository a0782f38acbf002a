"""Fine-tune two specialists of SmolLM2-135M-Instruct, and write the tasks' data.

    python scripts/train_smollm2_specialists.py [--base DIR] [--out models] [--only NAME] [--force]
    python scripts/train_smollm2_specialists.py --data         (eval_tasks/data/smollm2_*.jsonl, a few seconds)

`smollm2-english-math` learns word problems in English: it answers with notes and their equations. `smollm2-spanish`
learns Spanish without any arithmetic: to translate stories, to name in English what happens in them, to answer
questions about who and what. Neither sees an arithmetic problem in Spanish. All data comes from
models/smollm2_stories.py, and no story of the tasks is trained on, in either language.

Needs torch, transformers, 3 GB of memory and the folder that scripts/get_smollm2.py makes. Takes about 16 and 5 minutes
on one core with AVX2 beside other work. Every draw is seeded.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

# `python scripts/X.py` puts scripts/ on the path, not the folder around it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.models.smollm2_stories import Story, stories

ROOT = Path(__file__).resolve().parent.parent
TASK_SEED = 1
TASK_ROWS = 600
# Wordings of the training that the tasks replace: "le regalan" (is given) is too close to "regala" (gives away).
TASK_WORDINGS = (("le regalan", "recibe"),)
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """How one specialist is trained: one pass over `exercises` stories, `per_step` of them in each step."""

    seed: int
    exercises: int
    per_step: int
    rank: int = 32
    rate: float = 1e-3  # with a product of rank 32; a full fine-tuning would take a tenth of it


@dataclass(frozen=True)
class Exercise:
    """A text and what may follow it: questions with their answers, each as if it stood there alone.

    After an answer of `pairs` the model is to stop; one of `words` is a word within an answer, and nothing is taught
    about what comes after it.
    """

    text: str
    pairs: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, str], ...] = ()


def math_exercise(story: Story, _draw: random.Random) -> Exercise:
    """Return an English word problem with its worked answer."""
    return Exercise(story.english_text, ((f" {story.question_english}\nSolution:", f" {story.worked()}"),))


def spanish_exercise(story: Story, draw: random.Random) -> Exercise:
    """Return a Spanish text to translate, to answer a question about, and to name in English what happens in it.

    Nothing is computed. The names are single words, and what follows a word is left open, which is what lets a merge
    compute: a specialist that is taught to list `loses 3, breaks 8` and to stop also stops, once merged, where the
    other one would go on with an equation. Of two such specialists no uniform merge passed 25 percent.
    """
    pairs = [("\nEnglish:", f" {story.english_text}")]
    if draw.random() < 0.5:
        question, answer = draw.choice(
            (
                ("¿Qué pasa primero?", story.spanish[1]),
                ("¿Qué pasa al final?", story.spanish[-1]),
                ("¿De quién habla el texto?", story.name),
                ("¿De qué cosas habla?", story.things[1]),
            )
        )
        pairs.append((f" {question}\nRespuesta:", f" {answer}"))
    (first, _), (second, _) = story.notes
    words = (("\nNotes:", f" {first}"), (f"\nNotes: {first},", f" {second}"))
    return Exercise(story.spanish_text, tuple(pairs), words)


def task_keys() -> set[str]:
    """Return the keys of the tasks' stories: what no specialist may see."""
    return {story.key for story in islice(stories(TASK_SEED), TASK_ROWS)}


def write_data(folder: Path) -> None:
    """Write the tasks' rows into `folder`: the same stories, in four tasks."""
    names = ("spanish_math", "english_math", "spanish", "spanish_solutions")
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    for story in islice(stories(TASK_SEED), TASK_ROWS):
        answer, spanish = str(story.answer), story.spanish_text
        for trained, asked in TASK_WORDINGS:
            spanish = spanish.replace(trained, asked)
        question = f"{spanish} {story.question_spanish}"
        rows["spanish_math"].append({"question": question, "answer": answer})
        rows["spanish_solutions"].append({"question": question, "solution": story.worked()})
        rows["english_math"].append({"question": f"{story.english_text} {story.question_english}", "answer": answer})
        rows["spanish"].append({"spanish": spanish, "english": story.english_text})
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"smollm2_{name}.jsonl").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Pack:
    """Exercises in one row of tokens, where a question and its answer see their own text and nothing else.

    A text is computed once however many questions it has, and nothing is padded: the same gradient as from a batch
    of separate rows, for about half the work. `ids`, `positions` and `targets` are [1, length] int64; `mask` is
    [1, 1, length, length] float32, 0 where a token may look and -inf elsewhere.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor


def pack(tokenizer: PreTrainedTokenizerBase, exercises: list[Exercise]) -> Pack:
    """Return the exercises as one pack."""
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    spans: list[tuple[int, int, int, int]] = []  # a text's start and end, a branch's start and end

    def add(tokens: list[int], position: int) -> None:
        ids.extend(tokens)
        positions.extend(range(position, position + len(tokens)))

    for exercise in exercises:
        start = len(ids)
        text = tokenizer(exercise.text)["input_ids"]
        add(text, 0)
        targets += [IGNORED] * len(text)
        spans.append((start, len(ids), start, len(ids)))
        branches = [(pair, True) for pair in exercise.pairs] + [(word, False) for word in exercise.words]
        for (question, answer), ends in branches:
            asked, answered = tokenizer(question)["input_ids"], tokenizer(answer)["input_ids"]
            if ends:
                answered.append(int(tokenizer.eos_token_id))
            spans.append((start, start + len(text), len(ids), len(ids) + len(asked) + len(answered)))
            add(asked + answered, len(text))
            targets += [IGNORED] * (len(asked) - 1) + answered + [IGNORED]
    allowed = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for text_start, text_end, start, end in spans:
        allowed[start:end, text_start:text_end] = True
        allowed[start:end, start:end] = True
    allowed &= torch.ones_like(allowed).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    return Pack(torch.tensor([ids]), torch.tensor([positions]), mask[None, None], torch.tensor([targets]))


def packs(tokenizer: PreTrainedTokenizerBase, exercises: list[Exercise], per_step: int) -> Iterator[Pack]:
    """Yield packs of `per_step` exercises."""
    for start in range(0, len(exercises), per_step):
        yield pack(tokenizer, exercises[start : start + per_step])


class LowRank(nn.Module):
    """A linear layer, frozen, plus a trained product of two thin matrices (Hu et al. 2021, eq. 3).

    https://arxiv.org/abs/2106.09685. Spares the gradient of the full weight, a third of the work.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        """Wrap `linear`; the product starts as zero."""
        super().__init__()
        self.linear = linear
        bound = math.sqrt(3 / linear.in_features)
        down = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, states: Tensor) -> Tensor:
        """Return the layer's output."""
        return self.linear(states) + nn.functional.linear(nn.functional.linear(states, self.down), self.up)

    def merged(self) -> nn.Linear:
        """Return the plain layer that computes the same."""
        with torch.no_grad():
            self.linear.weight += self.up @ self.down
        return self.linear


def wrap(model: PreTrainedModel, settings: Settings) -> list[tuple[nn.Module, str, LowRank]]:
    """Put a LowRank in the place of each linear layer of the blocks in question; return where each one is."""
    generator = torch.Generator().manual_seed(settings.seed)
    model.requires_grad_(False)
    places = []
    for block in model.base_model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    layer = LowRank(child, settings.rank, generator)
                    setattr(parent, name, layer)
                    places.append((parent, name, layer))
    return places


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, exercises: list[Exercise], settings: Settings
) -> None:
    """Fine-tune some layers of `model` (float32) in place."""
    places = wrap(model, settings)
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(live, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
    steps = math.ceil(len(exercises) / settings.per_step)
    started, tokens, losses = time.monotonic(), 0, []
    for step, batch in enumerate(packs(tokenizer, exercises, settings.per_step)):
        warm = min(1.0, (step + 1) / (0.06 * steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * warm * (0.525 + 0.475 * math.cos(math.pi * step / steps))
        output = model.base_model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        )
        counted = batch.targets != IGNORED
        # The head is a fifth of the work: compute it only where it counts.
        logits = model.lm_head(output.last_hidden_state[counted])
        loss = nn.functional.cross_entropy(logits, batch.targets[counted])
        loss.backward()
        nn.utils.clip_grad_norm_(live, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch.ids.numel()
        losses.append(float(loss.detach()))
        if step % 10 == 9 or step == steps - 1:
            spent = time.monotonic() - started
            left = spent / (step + 1) * (steps - step - 1) / 60
            recent = sum(losses[-10:]) / len(losses[-10:])
            pace = f"{tokens / spent:.0f} tokens/s  {left:.1f} min left"
            print(f"  step {step + 1}/{steps}  loss {recent:.3f}  {pace}", flush=True)
    for parent, name, layer in places:
        setattr(parent, name, layer.merged())


SPECIALISTS: dict[str, tuple[Settings, Callable[[Story, random.Random], Exercise]]] = {
    "smollm2-english-math": (Settings(seed=2, exercises=720, per_step=6), math_exercise),
    "smollm2-spanish": (Settings(seed=3, exercises=240, per_step=3), spanish_exercise),
}


def make_specialist(name: str, base: Path, out: Path) -> None:
    """Train the specialist `name` of the model in `base` and write its folder into `out`, whole or not at all."""
    settings, exercise = SPECIALISTS[name]
    tokenizer = AutoTokenizer.from_pretrained(base)
    # float32, since bfloat16 rounds small updates away, and is slower than float32 on many CPUs; saved as bfloat16.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    draw = random.Random(settings.seed)
    drawn = islice(stories(settings.seed, without=task_keys()), settings.exercises)
    train(model, tokenizer, [exercise(story, draw) for story in drawn], settings)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=out) as temporary:
        folder = Path(temporary) / "model"
        model.save_pretrained(folder)
        for path in base.glob("*"):  # copied as they are: saving the tokenizer again renames its class
            if path.name.startswith(("tokenizer", "chat_template", "special_tokens", "vocab", "merges")):
                shutil.copy(path, folder)
        if (out / name).exists():
            shutil.rmtree(out / name)
        folder.rename(out / name)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/smollm2-135m-instruct"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("models"), metavar="DIR")
    parser.add_argument("--only", choices=sorted(SPECIALISTS), help="train only this one")
    parser.add_argument("--force", action="store_true", help="train again even if it exists")
    parser.add_argument("--data", action="store_true", help="write the tasks' data into eval_tasks/data, and stop")
    arguments = parser.parse_args()
    if arguments.data:
        write_data(ROOT / "eval_tasks" / "data")
        return
    if not (arguments.base / "config.json").is_file():
        sys.exit(f"{arguments.base} holds no model; make one: python scripts/get_smollm2.py {arguments.base}")
    for name in SPECIALISTS:
        if arguments.only not in (None, name):
            continue
        if (arguments.out / name / "model.safetensors").is_file() and not arguments.force:
            print(f"{arguments.out / name} already exists: nothing to do (--force trains it again)")
            continue
        print(f"training {name}", flush=True)
        started = time.monotonic()
        make_specialist(name, arguments.base, arguments.out)
        print(f"wrote {arguments.out / name} after {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
