"""Going on with a search: in a mended folder, with other files, on other hardware."""

import json
import math
import sqlite3
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from evomerge.errors import StudyError, TaskError
from evomerge.recipe import Recipe
from evomerge.study import Record, Study, prepare
from tests.study.search_case import Watcher, search, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("case"), optimizer="random", evaluations=3)


def test_a_search_that_failed_before_it_scored_anything_begins_anew_where_the_mistake_is_mended(tmp_path: Path):
    recipe = write_case(tmp_path, chat=True, evaluations=3)
    with pytest.raises(TaskError, match="has no chat template"):
        search(recipe, tmp_path / "run")
    write_case(tmp_path, evaluations=3)
    sound = recipe.read_text()
    kept = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "base")}
    for name in kept:
        file = tmp_path / name / "model.safetensors"
        scaled = {"lm_head.weight": 1e38, "model.norm.weight": 1e38}
        tensors = {key: tensor * scaled.get(key, 1) for key, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StudyError, match=r"none of the models to merge could be scored: .*not finite"):
        search(recipe, tmp_path / "run")
    for name, data in kept.items():
        (tmp_path / name / "model.safetensors").write_bytes(data)
    recipe.write_text(sound.replace("layers: 2", "layers: 1"))
    search(recipe, tmp_path / "run")
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").models[0].parameters["weight"].layers == 1
    with Record(tmp_path / "run") as record:
        assert len(record.trials) == 4


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "generation_config.json", "chat_template.jinja", "model.safetensors", "config.json"]
)
def test_one_changed_byte_of_a_model_is_noticed(case: Path, whole: Path, name: str):
    path = case.parent / "base" / name
    kept = path.read_bytes() if path.exists() else None
    data = kept or b"{{ messages }}"
    middle = data.rindex(b"\n") if name.endswith("json") else len(data) * 2 // 3
    changed = b' "one": 1,' if name == "config.json" else b" "
    start = 1 if name == "config.json" else middle
    path.write_bytes(data[:start] + changed + data[start + (len(changed) if name.endswith("safetensors") else 0) :])
    try:
        with pytest.raises(StudyError, match=rf"model {path.parent}: its files changed;"):
            search(case, whole)
    finally:
        path.unlink() if kept is None else path.write_bytes(kept)
    search(case, whole)


def test_an_unchanged_model_is_not_read_again_to_go_on(case: Path, whole: Path):
    with Record(whole) as record:
        digests = record.attribute("digests")
    assert len(digests) >= 3
    spec = prepare(case)
    # Closed models cannot be read: their digests come from the record alone.
    for checkpoint in spec.checkpoints.values():
        checkpoint.close()
    with Study(spec, whole, "cpu", Watcher()) as study:
        assert study.record.attribute("digests") == digests


@pytest.mark.parametrize("optimizer", ["cma-es", "random", "tpe"])
def test_a_search_goes_on_where_other_hardware_asks_for_other_last_bits(optimizer: str, tmp_path: Path):
    recipe = write_case(tmp_path, optimizer=optimizer, evaluations=13)
    search(recipe, tmp_path / "run")
    database = sqlite3.connect(tmp_path / "run" / "study.db")
    rows = database.execute("SELECT trial_id, value_json FROM trial_user_attributes WHERE key = 'genome'").fetchall()
    nudged = {}
    for trial, text in rows:
        nudged[trial] = [math.nextafter(gene, 0.5) for gene in json.loads(text)]
        change = (json.dumps(nudged[trial]), trial)
        database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = ? AND key = 'genome'", change
        )
    database.commit()
    database.close()
    watcher = Watcher()
    search(recipe, tmp_path / "run", watcher, evaluations=15)
    assert [trial.number for trial in watcher.fresh] == [14, 15]
    assert len([note for note in watcher.notes if "resuming in a different environment" in note]) == 1
    with Record(tmp_path / "run") as record:
        assert [trial.proposal.genome for trial in record.trials[1:14]] == list(nudged.values())
    # The record is now mixed: going on again replays it in the same way.
    with pytest.raises(KeyboardInterrupt):
        search(recipe, tmp_path / "run", Watcher(stop_at=16), evaluations=18)
    search(recipe, tmp_path / "run", evaluations=18)


@pytest.mark.parametrize("name", ["recipe.yaml", "best.yaml"])
def test_a_recipe_that_no_search_wrote_is_not_replaced(name: str, case: Path, tmp_path: Path):
    text = f"# Mine.\n{case.read_text()}"
    (tmp_path / name).write_text(text)
    with pytest.raises(StudyError, match=rf"{name}: not written by a search, which would replace it; use another --ru"):
        search(tmp_path / name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text
