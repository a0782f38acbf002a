"""What is said of a result beside its making."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.merge import into_directory, open_models, plan, plan_warnings
from evomerge.recipe import Recipe
from tests.tiny import tiny_checkpoint


def warned(folder: Path, **config: Any) -> list[str]:
    """The warnings about a copy of a model with code beside it; the copy is written to "out"."""
    model = tiny_checkpoint(folder / "model", layers=1)
    (model / "modeling_own.py").write_text("raise RuntimeError('this is never run')\n")
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    recipe = Recipe.parse(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n", "r.yaml")
    made = plan(recipe, open_models(recipe))
    into_directory(made, folder / "out")
    return plan_warnings(made)


@pytest.fixture(autouse=True)
def _no_compiler_wanted(use_compiler: Callable[[str], None]) -> None:
    use_compiler("")


def test_nothing_is_said_of_a_plain_model(tmp_path: Path) -> None:
    assert warned(tmp_path) == []


@pytest.mark.parametrize(
    ("model_type", "reference", "words"),
    [
        ("llama", "modeling_own.Own", "transformers supports this architecture without it"),
        ("of_my_own", "modeling_own.Own", "copy it from"),
        ("of_my_own", "org/name--modeling_own.Own", "the result needs trust_remote_code to load"),
    ],
)
def test_code_is_left_out_and_this_is_said(model_type: str, reference: str, words: str, tmp_path: Path) -> None:
    (said,) = warned(tmp_path, model_type=model_type, auto_map={"AutoModelForCausalLM": reference})
    assert words in said
    assert "modeling_own" in said
    assert "neither run nor copied" in said
    assert not list((tmp_path / "out").glob("*.py"))


def test_a_missing_compiler_is_told_unless_it_is_not_wanted(tmp_path: Path, use_compiler: Callable[[str], None]):
    use_compiler("no-such-compiler")
    (said,) = warned(tmp_path)
    assert "No C compiler was found" in said
    assert "install gcc or clang" in said
