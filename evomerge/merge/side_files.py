"""The small files of a result: its tokenizer's, generation settings, chat template, and the recipe itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from evomerge.checkpoint import Checkpoint, CheckpointView, read_object
from evomerge.document import suggestion
from evomerge.errors import CheckpointError
from evomerge.merge.plan import Plan
from evomerge.recipe import Recipe

_TEMPLATES = Path(__file__).with_name("chat_templates")

CHAT_TEMPLATES: Mapping[str, str] = MappingProxyType(
    # Line breaks are there for the reader, and no part of a template.
    {path.stem: path.read_text(encoding="utf-8").replace("\n", "") for path in sorted(_TEMPLATES.glob("*.jinja"))}
)
"""The chat templates that recipes call by name, as Jinja text, by name."""

_TEMPLATE_FILE = "chat_template.jinja"
_SETTINGS = "tokenizer_config.json"


def side_files(plan: Plan) -> tuple[list[Path], dict[str, str]]:
    """Returns the files beside the weights and the config: files to copy, and the texts of others by file name.

    Args:
        plan: how the model is made.
    """
    texts = {"evomerge_recipe.yaml": plan.recipe.merge_only().to_yaml("Made by evomerge from this recipe.")}
    files = list(plan.layout.donor.side_files())
    template = chat_template(plan)
    if template is not None:
        texts[_TEMPLATE_FILE] = template
        # Older runtimes read the template from there.
        if (plan.layout.donor.folder / _SETTINGS).is_file():
            settings = {**read_object(plan.layout.donor.folder / _SETTINGS), "chat_template": template}
            texts[_SETTINGS] = json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
    return [path for path in files if path.name not in texts], texts


def chat_template(plan: Plan) -> str | None:
    """Returns the chat template that the recipe asks for, as Jinja text; None: the tokenizer keeps its own.

    ``auto`` is the one that most of the recipe's models have, the first of them where several are as common.
    """
    wanted = plan.recipe.chat_template
    if wanted != "auto":
        return CHAT_TEMPLATES.get(wanted, wanted) if wanted else None
    references = plan.recipe.references()
    found = [own for model in references if (own := _template_of(plan.layout.checkpoints[model])) is not None]
    return Counter(found).most_common(1)[0][0] if found else None


def chat_template_faults(recipe: Recipe) -> list[str]:
    """Returns a line where the recipe's chat template is neither a known name nor Jinja text."""
    named = recipe.chat_template
    if not named or named == "auto" or named in CHAT_TEMPLATES or "{" in named:
        return []
    near = suggestion(named, ["auto", *CHAT_TEMPLATES])
    return [recipe.fault(("chat_template",), f'"{named}" is neither Jinja text nor the name of a known template{near}')]


def _template_of(checkpoint: Checkpoint) -> str | None:
    """Returns a model's own default template."""
    while isinstance(checkpoint, CheckpointView):  # Whose folder may hold the result's tokenizer.
        checkpoint = checkpoint.inner
    path, settings = checkpoint.folder / _TEMPLATE_FILE, checkpoint.folder / _SETTINGS
    template = read_object(settings).get("chat_template") if settings.is_file() else None
    if isinstance(template, list):
        named = [one.get("template") for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = next(iter(named), None)
    try:
        if path.is_file():
            template = path.read_text(encoding="utf-8")
        text = template.strip() if isinstance(template, str) else ""
        text.encode()
    except UnicodeError as fault:
        raise CheckpointError(f"{checkpoint.folder}: its chat template is not UTF-8 text: {fault}") from None
    return text or None
