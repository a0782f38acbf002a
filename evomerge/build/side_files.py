"""The small files of a result: its tokenizer's, generation settings, chat template, and the recipe itself."""

from __future__ import annotations

from pathlib import Path

from evomerge.build.plan import Plan


def side_files(plan: Plan) -> tuple[list[Path], dict[str, str]]:
    """Returns what lies beside the weights and the config: files to copy, and further texts by file name.

    Args:
        plan: how the model is made.
    """
    template = plan.recipe.chat_template
    texts = {"evomerge_recipe.yaml": plan.recipe.merge_only().to_yaml("Made by evomerge from this recipe.")}
    if template and template != "auto":
        texts["chat_template.jinja"] = template
    side = {path.name: path for path in plan.donor.side_files()}
    if plan.tokenizer_donor is not plan.donor:
        keep = {name: path for name, path in side.items() if name == "generation_config.json"}
        theirs = {path.name: path for path in plan.tokenizer_donor.side_files()}
        side = {**{n: p for n, p in theirs.items() if n != "generation_config.json"}, **keep}
    return [path for name, path in side.items() if name not in texts], texts
