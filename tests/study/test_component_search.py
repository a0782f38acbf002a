"""A search of the language part of a model of text and images: what is written scores what was recorded."""

from pathlib import Path

from evomerge.build import into_directory, open_recipe
from evomerge.cli.evaluation import evaluated
from evomerge.study import Study, conclude, prepare
from tests.study.search_case import write_case
from tests.study.test_study import Watcher
from tests.tiny import tiny_checkpoint


def test_the_winner_of_a_search_over_a_component_scores_the_same_when_it_is_written(tmp_path: Path) -> None:
    recipe = write_case(tmp_path, evaluations=3)
    llava = tiny_checkpoint(tmp_path / "llava", kind="llava", layers=2)
    text = recipe.read_text().replace("dtype: bfloat16", f"dtype: bfloat16\ncomponent: {{language_of: {llava}}}")
    recipe.write_text(text.replace(f"model: {tmp_path}/b\n", f"model: {llava}\n"))
    preparation = prepare(recipe)
    assert len(preparation.checkpoints) == 4  # The base, a, LLaVA's language part, and what it has besides.
    with Study(preparation, tmp_path / "run", "cpu", Watcher()) as study:
        study.run()
        conclusion = conclude(study)
        best = max(study.record.trials, key=lambda trial: (trial.objective, -trial.number))
    assert conclusion.failures == 0
    assert best.outcome is not None
    into_directory(open_recipe(tmp_path / "run" / "best.yaml"), tmp_path / "out")
    tasks = [tmp_path / "tasks" / "likely.yaml", tmp_path / "tasks" / "written.yaml"]
    scored = evaluated(str(tmp_path / "out"), tasks, ["search"], "cpu")["scores"]
    assert {row["task"]: row["items"] for row in scored} == best.outcome.items
