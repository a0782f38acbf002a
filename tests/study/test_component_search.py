"""A search of the language part of a model of text and images: what is written scores what was recorded."""

from pathlib import Path

from evomerge.study import prepare
from tests.study.search_case import write_case
from tests.study.test_study import assert_written_winner_scores_what_was_recorded
from tests.tiny import tiny_checkpoint


def test_the_winner_of_a_search_over_a_component_scores_the_same_when_it_is_written(tmp_path: Path) -> None:
    recipe = write_case(tmp_path, evaluations=3)
    llava = tiny_checkpoint(tmp_path / "llava", kind="llava", layers=2)
    text = recipe.read_text().replace("dtype: bfloat16", f"dtype: bfloat16\ncomponent: {{language_of: {llava}}}")
    recipe.write_text(text.replace(f"model: {tmp_path}/b\n", f"model: {llava}\n"))
    spec = prepare(recipe)
    assert len(spec.checkpoints) == 4  # The base, a, LLaVA's language part, and what it has besides.
    assert_written_winner_scores_what_was_recorded(spec, tmp_path)
