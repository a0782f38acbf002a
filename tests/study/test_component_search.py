"""A search of the language part of a model of text and images: what is written scores what was recorded."""

import json
from pathlib import Path

from PIL import Image

from evomerge.study import prepare
from tests.study.search_case import write_case
from tests.study.test_study import assert_written_winner_scores_what_was_recorded
from tests.tiny import seeing_checkpoint, tiny_checkpoint


def test_the_winner_of_a_search_over_a_component_scores_the_same_when_it_is_written(tmp_path: Path) -> None:
    recipe = write_case(tmp_path, evaluations=3)
    llava = tiny_checkpoint(tmp_path / "llava", kind="llava", layers=2)
    text = recipe.read_text().replace("dtype: bfloat16", f"dtype: bfloat16\ncomponent: {{language_of: {llava}}}")
    recipe.write_text(text.replace(f"model: {tmp_path}/b\n", f"model: {llava}\n"))
    spec = prepare(recipe)
    assert len(spec.checkpoints) == 4  # The base, a, LLaVA's language part, and what it has besides.
    assert_written_winner_scores_what_was_recorded(spec, tmp_path)


def test_a_language_model_is_evolved_into_a_model_of_images_by_what_it_says_of_them(tmp_path: Path) -> None:
    recipe = write_case(tmp_path, evaluations=3)
    llava = seeing_checkpoint(tmp_path / "llava", layers=2)
    text = recipe.read_text().replace("dtype: bfloat16", f"dtype: bfloat16\ncomponent: {{language_of: {llava}}}")
    recipe.write_text(text.replace(f"model: {tmp_path}/b\n", f"model: {llava}\n"))
    rows = [{"q": f"what is {i}?", "a": "red", "image": f"{i}.png"} for i in range(24)]
    for i, row in enumerate(rows):
        Image.new("RGB", (8, 8), (10 * i, 255 - 10 * i, 99)).save(tmp_path / "tasks" / row["image"])
    (tmp_path / "tasks" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = (
        'data: rows.jsonl\nimages: image\nchat: true\nprompt: "{{ q }}"\nsplits: {search: [0, 8], holdout: [8, 24]}\n'
    )
    (tmp_path / "tasks" / "likely.yaml").write_text(
        f"type: multiple_choice\nchoices: [red, blue, green]\nanswer: '{{{{ a }}}}'\n{common}"
    )
    (tmp_path / "tasks" / "written.yaml").write_text(
        f"type: generate\nmax_new_tokens: 4\ntarget: '{{{{ a }}}}'\n{common}"
    )
    assert_written_winner_scores_what_was_recorded(prepare(recipe), tmp_path)
