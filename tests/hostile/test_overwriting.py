"""No source of a merge is ever overwritten, and what lies in a run's folder stays there."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.errors import CheckpointError
from evomerge.merge import into_directory, open_recipe
from evomerge.study import Record
from tests.test_checkpoint_adapter import adapter, factors
from tests.test_checkpoint_writing import listing
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two models, an adapter, and a tokenizer of yet another model."""
    folder = tmp_path_factory.mktemp("sources")
    tiny_checkpoint(folder / "base", layers=1)
    tiny_checkpoint(folder / "words", layers=1, extra_tokens=["<more>"])
    (folder / "tuned").mkdir()
    tiny_checkpoint(folder / "tuned" / "model", 1, base=folder / "base")
    adapter(folder / "lora", factors("model.layers.0.self_attn.q_proj", 16, 16))
    path = folder / "recipe.yaml"
    path.write_text(
        f"merge_method: linear\nmodels: [{{model: {folder}/base+{folder}/lora}}, {{model: {folder}/tuned/model}}]\n"
        f"parameters: {{weight: 1}}\ntokenizer_source: {folder}/words\n"
    )
    return path


@pytest.mark.parametrize("target", ["base", "lora", "tuned", "tuned/model", "words", "."])
def test_no_source_and_no_folder_that_holds_one_is_overwritten(recipe: Path, target: str) -> None:
    before = listing(recipe.parent)
    with pytest.raises(CheckpointError, match="a model or the recipe of this merge"):
        into_directory(open_recipe(recipe), recipe.parent / target, overwrite=True, needed=[recipe])
    assert listing(recipe.parent) == before


def test_what_lies_in_a_run_s_folder_stays_unless_a_killed_run_left_it(tmp_path: Path) -> None:
    for name in (".x.partial1", ".best.yaml.partial", "best.yaml.partial"):
        (tmp_path / name).write_text("precious")
    (tmp_path / ".y.partial").mkdir()
    before = listing(tmp_path)
    (tmp_path / ".best.yaml.evomerge-unfinished-5c1e97d2").write_text("half a rec")
    with Record(tmp_path):
        pass
    assert listing(tmp_path).keys() == {*before, "study.db"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/", "is the root of a file system"),
        ("loop", "cannot be written: .*(Symlink loop|Too many levels)"),
        ("loop/out", "cannot be written: .*(Symlink loop|Too many levels)"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    recipe: Path, tmp_path: Path, target: str, words: str, overwrite: bool
) -> None:
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    with pytest.raises(CheckpointError, match=words):
        into_directory(open_recipe(recipe), tmp_path / target, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "pool"]
