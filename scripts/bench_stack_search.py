"""Measure whether a search for stacks finds a known optimum: the order of a model's layers that were shuffled.

    python scripts/bench_stack_search.py [--seeds 10] [--evaluations 3000] [--json]

A Llama of 8 layers is trained from a seed on synthetic text, and its layers are shuffled. A search may stack 6 to 8
layers in any order, each at most twice; 9,948,960 stacks. A stack's score is minus its perplexity on text
that the model was not trained on. For each search seed, it prints after how many evaluations the genetic search and
random search met the layers' own order, and whether any stack that was evaluated has a lower perplexity than that. It
takes about ten minutes on 2 processor cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.recipe import Recipe, SearchSettings
from evomerge.search import OPTIMIZERS, Outcome, State
from evomerge.search.stack_space import Stack, StackSpace

LAYERS = 8
SYMBOLS = 24
LENGTH = 48
STEPS = 600
BATCH = 32


def text(rng: np.random.Generator, lines: int, follows: np.ndarray) -> torch.Tensor:
    """Returns synthetic text: int64, shape (lines, LENGTH).

    Each symbol depends on the two before it, as `follows` has it; and sometimes a line repeats what it had before, from
    the last time its latest symbol occurred. So there are both short rules to learn and a use for what is far away.
    """
    rows = np.zeros((lines, LENGTH), dtype=np.int64)
    for row in rows:
        row[:2] = rng.integers(SYMBOLS, size=2)
        copied = -1
        for i in range(2, LENGTH):
            if copied < 0 and rng.random() < 0.1:
                earlier = np.flatnonzero(row[: i - 1] == row[i - 1])
                copied = int(earlier[-1]) + 1 if len(earlier) else -1
            if copied >= 0:
                row[i] = row[copied]
                copied = copied + 1 if rng.random() < 0.9 else -1
            else:
                row[i] = follows[row[i - 2], row[i - 1], int(rng.integers(follows.shape[2]))]
    return torch.from_numpy(rows)


def trained(seed: int, follows: np.ndarray) -> LlamaForCausalLM:
    """Returns a Llama trained on synthetic text."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SYMBOLS,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    corpus = text(rng, 4_000, follows)
    for _ in range(STEPS):
        batch = corpus[torch.from_numpy(rng.integers(len(corpus), size=BATCH))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


class Perplexity:
    """Scores stacks of a model's shuffled layers; every stack is run once, and so are the first layers that many share.

    Args:
        model: the model.
        order: for each shuffled layer, which of the model's layers it is.
        lines: the text: int64, shape (lines, tokens).
    """

    def __init__(self, model: LlamaForCausalLM, order: list[int], lines: torch.Tensor) -> None:
        self._model = model.model
        self._head = model.lm_head
        self._layers = [self._model.layers[i] for i in order]
        self._targets = lines[:, 1:].reshape(-1)
        with torch.no_grad():
            embedded = self._model.embed_tokens(lines)
            self._rotary = self._model.rotary_emb(embedded, torch.arange(lines.shape[1])[None])
        self._after: dict[Stack, torch.Tensor] = {(): embedded}
        self.known: dict[Stack, float] = {}

    @torch.no_grad()
    def __call__(self, stack: Stack) -> float:
        """Returns the perplexity of a stack."""
        if stack not in self.known:
            logits = self._head(self._model.norm(self._hidden(stack)))[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.reshape(len(self._targets), -1), self._targets)
            self.known[stack] = math.exp(min(loss.item(), 50.0))
        return self.known[stack]

    def _hidden(self, stack: Stack) -> torch.Tensor:
        """Returns the hidden states after the layers of a stack; those after the first few are kept."""
        if stack not in self._after:
            hidden = self._layers[stack[-1].layer](self._hidden(stack[:-1]), position_embeddings=self._rotary)
            if len(stack) > 3:
                return hidden
            self._after[stack] = hidden
        return self._after[stack]


def evaluations_to(
    optimizer: str, space: StackSpace, seed: int, most: int, perplexity: Perplexity, optimum: Stack
) -> dict[str, Any]:
    """Returns after how many evaluations a search met the optimum (None: it did not), and its best perplexity."""
    search = OPTIMIZERS[optimizer](space, SearchSettings(seed=seed))
    best, done = math.inf, 0
    while done < most:
        asked = search.ask(most - done)
        if not asked:
            break
        for proposal in asked:
            found = perplexity(proposal.genome)
            best, done = min(best, found), done + 1
            if proposal.genome == optimum:
                return {"evaluations": done, "best_perplexity": round(best, 4)}
            search.tell(proposal, Outcome(State.COMPLETE, (-found,)))
    return {"evaluations": None, "best_perplexity": round(best, 4)}


def main() -> None:
    """Prints a line, or a JSON entry, for each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="searches with each optimizer (default: 10)")
    parser.add_argument("--evaluations", type=int, default=3_000, help="the most evaluations of each (default: 3000)")
    parser.add_argument("--model-seed", type=int, default=0, help="of the text, the model and the order (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.model_seed)
    follows = rng.integers(SYMBOLS, size=(SYMBOLS, SYMBOLS, 2))
    start = time.perf_counter()
    model = trained(arguments.model_seed, follows)
    order = [int(i) for i in rng.permutation(LAYERS)]
    perplexity = Perplexity(model, order, text(rng, 16, follows))
    recipe = Recipe.model_validate(
        {
            "merge_method": "passthrough",
            "slices": {"search": {"models": ["shuffled"], "repeats": 2, "min_layers": 6, "max_layers": LAYERS}},
        }
    )
    space = StackSpace(recipe, [LAYERS])
    optimum = tuple(space.layers[order.index(i)] for i in range(LAYERS))
    found: dict[str, Any] = {
        "own_order_perplexity": round(perplexity(optimum), 4),
        "shuffled_perplexity": round(perplexity(space.layers), 4),
        "training_seconds": round(time.perf_counter() - start),
    }
    for optimizer in ("genetic", "random"):
        runs = [
            evaluations_to(optimizer, space, seed, arguments.evaluations, perplexity, optimum)
            for seed in range(arguments.seeds)
        ]
        found[optimizer] = {"found": sum(run["evaluations"] is not None for run in runs), "runs": runs}
    found["stacks"] = len(perplexity.known)
    found["better_than_own_order"] = sum(one < perplexity(optimum) for one in perplexity.known.values())
    found["seconds"] = round(time.perf_counter() - start)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"perplexity: {found['own_order_perplexity']} in the own order, {found['shuffled_perplexity']} shuffled")
    for optimizer in ("genetic", "random"):
        counts = [str(run["evaluations"] or "-") for run in found[optimizer]["runs"]]
        print(f"{optimizer}: own order found {found[optimizer]['found']} of {arguments.seeds}: {' '.join(counts)}")
    print(f"better than the own order: {found['better_than_own_order']} of the {found['stacks']} stacks evaluated")


if __name__ == "__main__":
    main()
