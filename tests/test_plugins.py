"""Other packages' merge methods and optimizers: docs/extending.md's package, and packages that cannot be used."""

import re
import shutil
import tomllib
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from evomerge.api import evaluate, load_run
from evomerge.errors import StudyError
from evomerge.methods import METHODS
from evomerge.recipe import Recipe
from evomerge.tasks import Task

from .study.search_case import search, write_case
from .test_cli import evomerge

EXAMPLE = Path(__file__).parent / "extension"
PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


def install(site: Path, name: str, version: str, points: dict[str, dict[str, str]]) -> None:
    """Installs a package's metadata into the folder `site`, as pip would."""
    for old in site.glob(f"{name.replace('-', '_')}-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [line for group, of in points.items() for line in (f"[{group}]", *(f"{key} = {of[key]}" for key in of))]
    (info / "entry_points.txt").write_text("\n".join(lines))


def install_example(site: Path, version: str | None = None) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    shutil.copytree(EXAMPLE / "evomerge_example", site / "evomerge_example", dirs_exist_ok=True)
    install(site, project["name"], version or project["version"], project["entry-points"])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def code(page: str) -> dict[str, str]:
    """The files that a page shows, by their names, which come before them."""
    return dict(re.findall(r"^`([\w./]+)`:?\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def test_the_page_shows_the_files_of_the_package_that_is_tested():
    files = {path.relative_to(EXAMPLE).as_posix(): path.read_text() for path in EXAMPLE.rglob("*.*") if path.is_file()}
    shown = {name: text for name, text in files.items() if text and "__pycache__" not in name}
    assert code(PAGE.read_text()) == shown


def test_a_search_uses_another_packages_method_metric_and_optimizer(site: Path, tmp_path: Path):
    install_example(site)
    recipe = write_case(tmp_path / "case", method="magmax", optimizer="compass", evaluations=9)
    task = tmp_path / "case" / "tasks" / "written.yaml"
    # Random models write bytes, which are like each other.
    task.write_text(task.read_text().replace("exact_match", "similarity").replace("tokens: 4", "tokens: 30"))
    run, out = tmp_path / "run", tmp_path / "merged"
    checked = evomerge("check", recipe)
    assert checked.returncode == 0, checked.stderr
    schema = evomerge("schema", "recipe").stdout
    assert '"description": "Of each element, the change from the base that is largest in magnitude."' in schema
    assert "magmax of" in checked.stdout
    assert "by compass, 9 evaluations" in checked.stdout
    for command in (["search", recipe, "--run-dir", run], ["apply", run, out]):
        done = evomerge(*command)
        assert done.returncode == 0, done.stderr

    # Three numbers: the start, then a step of a quarter of the range down and up in each.
    genomes = [trial.proposal.genome for trial in load_run(run).trials if trial.proposal]
    start = genomes[0]
    moves = [[b - a for a, b in zip(start, genome, strict=True)] for genome in genomes[1:7]]
    assert moves == [[pytest.approx(sign * 0.25 * (i == j)) for j in range(3)] for i in range(3) for sign in (-1, 1)]

    best = Recipe.load(run / "best.yaml")
    weights = [entry.parameters["weight"] for entry in best.models]
    base, *models = (load_file(tmp_path / "case" / name / "model.safetensors") for name in ("base", "a", "b"))
    name = "model.layers.1.mlp.up_proj.weight"
    # Layer 1 is the second of two.
    deltas = [
        np.float32(weight[1] if isinstance(weight, tuple) else weight) * (model[name].float() - base[name].float())
        for weight, model in zip(weights, models, strict=True)
    ]
    largest = torch.where(deltas[1].abs() > deltas[0].abs(), deltas[1], deltas[0])
    written = load_file(out / "model.safetensors")[name]
    assert torch.equal(written, (base[name].float() + largest).bfloat16())

    evaluated = evaluate(str(out), [task]).scores[0]
    targets = [item.target for item in Task.load(task).items("holdout")]
    pairs = zip(evaluated.completions, targets, strict=True)
    assert list(evaluated.items) == [SequenceMatcher(None, one.strip(), other.strip()).ratio() for one, other in pairs]
    assert 0 < evaluated.score < 1

    card = ModelCard.load(out / "README.md")
    assert card.data.tags == ["merge", "evomerge"]
    assert "`magmax` is that of the package evomerge-example 1.0, which must be installed" in card.text
    shown = evomerge("show", run / "best.yaml")
    assert shown.returncode == 0, shown.stderr


def test_a_search_is_not_resumed_with_another_version_of_the_package(site: Path, tmp_path: Path):
    install_example(site)
    recipe = write_case(tmp_path, method="magmax", optimizer="compass", evaluations=1)
    task = tmp_path / "tasks" / "written.yaml"
    task.write_text(task.read_text().replace("exact_match", "similarity"))
    search(recipe, tmp_path / "run")
    install_example(site, "1.1")
    names = ("magmax", "compass", "similarity")
    changed = ", ".join(f'plugins.{name} was "evomerge-example 1.0", is "evomerge-example 1.1"' for name in names)
    with pytest.raises(StudyError, match=re.escape(changed)):
        search(recipe, tmp_path / "run", evaluations=2)
    install_example(site)
    assert search(recipe, tmp_path / "run", evaluations=2).evaluations == 2


def test_a_recipe_without_plugins_imports_none_and_has_them_among_the_suggestions(site: Path, tmp_path: Path):
    (site / "loud.py").write_text("raise SystemExit('imported')\n")
    names = {"methods": "loudest", "metrics": "volume", "optimizers": "noisy"}
    install(site, "loud", "2", {f"evomerge.{group}": {name: "loud:NAME"} for group, name in names.items()})
    recipe = write_case(tmp_path)
    assert evomerge("check", recipe).returncode == 0
    text = recipe.read_text()
    recipe.write_text(text.replace("task_arithmetic", "loudes").replace("cma-es", "noisi"))
    task = tmp_path / "tasks" / "written.yaml"
    task.write_text(task.read_text().replace("exact_match", "volum"))
    failed = evomerge("check", recipe)
    assert failed.returncode == 1
    assert 'written.yaml:2: metric: there is no metric of completions "volum"; did you mean "volume"?' in failed.stderr
    assert 'recipe.yaml:1: merge_method: there is no merge method "loudes"; did you mean "loudest"?' in failed.stderr
    assert 'search.optimizer: there is no optimizer "noisi"; did you mean "noisy"?' in failed.stderr


BROKEN = {
    "absent": ("nowhere:METHOD", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
    "nameless": ("broken:ABSENT", "cannot be loaded: AttributeError"),
    "failing": ("failing:METHOD", "cannot be loaded: ZeroDivisionError: division by zero"),
    "number": ("broken:NUMBER", "refers to an object of type int, not to a merge method"),
    "renamed": ("broken:METHOD", 'calls itself "other"; give both the same name'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_package_that_cannot_be_used_is_named(name: str, site: Path, tmp_path: Path):
    point, fault = BROKEN[name]
    (site / "failing.py").write_text("1 / 0\n")
    (site / "broken.py").write_text(
        "import dataclasses\nfrom evomerge.methods import METHODS\n"
        "NUMBER, METHOD = 5, dataclasses.replace(METHODS['linear'], name='other')\n"
    )
    install(site, "some-package", "0.3", {"evomerge.methods": {name: point}})
    failed = evomerge("check", write_case(tmp_path, method=name))
    assert failed.returncode == 1
    where = f'some-package 0.3: the merge method "{name}" (entry point {point} of evomerge.methods)'
    assert f"recipe.yaml:1: merge_method: {where} {fault}" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_broken_optimizer_and_metric_are_reported_with_the_other_faults(site: Path, tmp_path: Path):
    groups = ("evomerge.optimizers", "evomerge.metrics")
    install(site, "some-package", "0.3", {group: {"gone": "nowhere:Gone"} for group in groups})
    recipe = write_case(tmp_path, method="lnear", optimizer="gone")
    task = tmp_path / "tasks" / "written.yaml"
    task.write_text(task.read_text().replace("exact_match", "gone"))
    failed = evomerge("check", recipe)
    assert 'metric: some-package 0.3: the metric of completions "gone" (entry point nowhere:Gone' in failed.stderr
    assert 'there is no merge method "lnear"' in failed.stderr
    assert 'search.optimizer: some-package 0.3: the optimizer "gone" (entry point nowhere:Gone' in failed.stderr


def test_no_package_replaces_a_built_in_method_and_two_packages_cannot_share_a_name(site: Path, tmp_path: Path):
    linear = METHODS["linear"]
    install(site, "first", "1", {"evomerge.methods": {"linear": "nowhere:METHOD", "shared": "nowhere:METHOD"}})
    install(site, "second", "2", {"evomerge.methods": {"shared": "nowhere:METHOD"}})
    assert METHODS["linear"] is linear
    assert METHODS.origin("linear") is None
    assert list(METHODS).count("linear") == 1
    failed = evomerge("check", write_case(tmp_path, method="shared"))
    said = r'the merge method "shared" is in more than one package: (first 1, second 2|second 2, first 1); remove all'
    assert re.search(said, failed.stderr)
