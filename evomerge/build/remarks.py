"""What a user should know of a result, though nothing is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from evomerge.build.plan import Plan
from evomerge.kernels import compiler


def remarks(plan: Plan) -> list[str]:
    """Returns sentences for the terminal; none where there is nothing to say.

    Args:
        plan: how the model is made.
    """
    return [*_code_left_out(plan), *_no_compiler()]


def _no_compiler() -> Iterator[str]:
    """There is no compiler, and nobody said that there shall be none."""
    if compiler() is None and os.environ.get("EVOMERGE_CC") != "":
        yield "No C compiler was found, so merging on the CPU is several times slower: install gcc or clang."


def _code_left_out(plan: Plan) -> Iterator[str]:
    """Code that comes with a checkpoint is neither run nor copied; its config goes on naming it."""
    config, donor = plan.layout.config, plan.layout.donor
    named = config.get("auto_map")
    if not isinstance(named, dict) or not named:
        return
    from transformers import CONFIG_MAPPING

    texts = [str(one) for value in named.values() for one in (value if isinstance(value, list) else [value]) if one]
    # "org/name--module.Class" is code of that repository, "module.Class" of the checkpoint's own folder.
    own = sorted({f"{text.partition('.')[0]}.py" for text in texts if "--" not in text})
    code = ", ".join(own) or ", ".join(sorted(set(texts)))
    what = f"{donor.reference} comes with code ({code}), which is never run and not copied"
    if config.get("model_type") in CONFIG_MAPPING:
        yield f"{what}; transformers has this architecture itself and does without."
    elif own:
        yield f"{what}: to load the result with trust_remote_code, copy it from {donor.folder} once you trust it."
    else:
        yield f"{what}: the result loads with trust_remote_code, for those who trust it."
