"""What a user should know about a result that is valid."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator

from evomerge.errors import CheckpointError
from evomerge.kernels import compiler
from evomerge.merge.plan import Plan
from evomerge.tokenizer import ModelTokenizer


def plan_warnings(plan: Plan) -> list[str]:
    """Returns the warnings about a plan, one sentence or two each.

    Args:
        plan: how the model is made.
    """
    return [*_code_left_out(plan), *_other_vocabularies(plan), *_no_compiler()]


def _no_compiler() -> Iterator[str]:
    """There is no compiler, and the user has not turned it off."""
    if compiler() is None and os.environ.get("EVOMERGE_CC") != "":
        yield "No C compiler was found, so merging on the CPU is several times slower: install gcc or clang."


def _other_vocabularies(plan: Plan) -> Iterator[str]:
    """Models that are merged number their tokens differently, and the recipe names no vocabulary for the result."""
    if plan.recipe.vocabulary() is not None:
        return
    donor, checkpoints = plan.layout.donor, plan.layout.checkpoints
    together = [{model for model, _ in (*job.inputs, *filter(None, [job.base]))} for job in plan.layout.jobs]
    merged = set[str]().union(*(models for models in together if len(models) > 1))
    for model in (model for model in plan.recipe.references() if model in merged):
        files = [checkpoints[model].folder / "tokenizer.json", donor.folder / "tokenizer.json"]
        if all(file.is_file() for file in files) and filecmp.cmp(files[0], files[1], shallow=False):
            continue
        try:
            known = [ModelTokenizer.read(file.parent, str(file.parent), None).vocabulary for file in files]
        except CheckpointError:
            continue  # It has none; where one is needed, that is reported there.
        own, its = ({number: token for token, number in one.items()} for one in known)
        others = [number for number in own if own[number] != its.get(number, own[number])]
        if others:
            first = ", ".join(f"token {number} is {own[number]!r}, not {its[number]!r}" for number in others[:3])
            yield (
                f"{checkpoints[model].reference} numbers {len(others):,} tokens differently from {donor.reference}"
                f' ({first}), so that embeddings of different tokens are merged: add "tokenizer_source: base".'
            )


def _code_left_out(plan: Plan) -> Iterator[str]:
    """Code that comes with a checkpoint is neither run nor copied; its config still names it."""
    config, donor = plan.layout.config, plan.layout.donor
    named = config.get("auto_map")
    if not isinstance(named, dict) or not named:
        return
    from transformers import CONFIG_MAPPING

    texts = [str(one) for value in named.values() for one in (value if isinstance(value, list) else [value]) if one]
    # "org/name--module.Class" is code of that repository, "module.Class" of the checkpoint's own folder.
    own = sorted({f"{text.partition('.')[0]}.py" for text in texts if "--" not in text})
    code = ", ".join(own) or ", ".join(sorted(set(texts)))
    what = f"{donor.reference} comes with code ({code}), which is neither run nor copied"
    if config.get("model_type") in CONFIG_MAPPING:
        yield f"{what}; transformers supports this architecture without it."
    elif own:
        yield f"{what}: to load the result with trust_remote_code, copy it from {donor.folder} once you trust it."
    else:
        yield f"{what}: the result needs trust_remote_code to load; review that code first."
