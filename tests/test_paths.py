"""Where files and folders that a document names are looked for."""

import os
from pathlib import Path

from evomerge.checkpoint import Reference
from evomerge.paths import find, not_found


def test_the_first_folder_that_has_it_wins_and_other_kinds_are_passed_over(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "b").mkdir(parents=True)
    (second / "a").mkdir(parents=True)
    (first / "a").write_text("")
    folders = (first, second)
    assert find("a", folders) == first / "a"
    assert find("a", folders, os.path.isdir) == second / "a"
    assert find(str(second / "a"), folders) == second / "a"
    for nothing in ("c", "a/b", "x" * 5000, "a\0b", "~nobody_of_this_name/x"):
        assert find(nothing, folders) is None
        assert not_found(nothing, folders).count("did you mean") == 0


def test_the_nearest_name_is_of_the_kind_that_was_looked_for(tmp_path: Path):
    (tmp_path / "models" / "additions").mkdir(parents=True)
    (tmp_path / "models" / "addition.yaml").write_text("")
    near = not_found("model/addition", (tmp_path,), os.path.isdir)
    assert near == f' in {tmp_path}; did you mean "models/additions"?'
    assert 'did you mean "models/addition.yaml"?' in not_found("models/addition.yml", (tmp_path,), os.path.isfile)
    assert not_found(f"{tmp_path}/model/additions", (Path(),)) == f'; did you mean "{tmp_path}/models/additions"?'


def test_a_reference_with_absolute_paths_means_the_same_from_anywhere(tmp_path: Path):
    for name in ("model@v1", "adapter"):
        (tmp_path / name).mkdir()
    folders = (tmp_path,)
    assert Reference.parse("model@v1+adapter", folders).absolute(folders) == f"{tmp_path}/model@v1+{tmp_path}/adapter"
    assert Reference.parse("org/name@v1+adapter", folders).absolute(folders) == f"org/name@v1+{tmp_path}/adapter"
    assert Reference.parse("org/name@v1+o/l@v2", folders).absolute(folders) == "org/name@v1+o/l@v2"
