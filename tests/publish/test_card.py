"""The model card: its metadata as the Hub reads it, its scores as the run has them, and what it must not say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries

from evomerge.errors import PublishError
from evomerge.merge import into_directory, open_recipe
from evomerge.publish import apply_winner, card_files, publish
from evomerge.recipe import Recipe
from tests.hub import Hub
from tests.study.search_case import search, write_case, write_staged_case
from tests.test_cli import evomerge
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    search(write_case(folder, evaluations=5), folder / "run", seed=7)
    for name, languages in (("base", "en"), ("a", "[en, es]"), ("b", "ja")):
        (folder / name / "README.md").write_text(f"---\nlicense: apache-2.0\nlanguage: {languages}\n---\n")
    return folder


def card_of(recipe: Path, run: Path | None = None) -> ModelCard:
    return ModelCard(card_files(Recipe.load(recipe), "the-name", run)["README.md"])


def linear(folder: Path, *names: str | Path, **keys: str) -> Path:
    """Writes a recipe of folders or Hub ids."""
    keys = {"merge_method": "linear", **keys}
    more = "".join(f"{key}: {value}\n" for key, value in keys.items())
    models = "".join(f"  - {{model: {name}, parameters: {{weight: 0.5}}}}\n" for name in names)
    path = folder / "recipe.yaml"
    path.write_text(f"models:\n{models}{more}")
    return path


def test_the_metadata_is_what_the_hub_reads(case: Path):
    data = card_of(case / "run" / "best.yaml", case / "run").data
    assert isinstance(data, ModelCardData)
    assert (data.library_name, data.license, data.model_name) == ("transformers", "apache-2.0", "the-name")
    assert data.tags == ["merge", "evomerge", "mergekit"]
    assert sorted(data.language) == ["en", "es", "ja"]
    # Folders of one machine are no models of the Hub.
    assert data.get("base_model") is None
    assert data.get("base_model_relation") is None
    result = json.loads((case / "run" / "result.json").read_text())
    found = {one.dataset_type: (one.metric_type, one.metric_value) for one in data.eval_results}
    scores = result["winner"]["holdout_tasks"]
    # The Hub's readers expect the metric itself, which is better when it is lower.
    assert found == {"likely": ("bits_per_byte", -scores["likely"]), "written": ("exact_match", scores["written"])}


def test_the_text_has_the_recipe_the_search_and_every_score(case: Path):
    text = card_of(case / "run" / "best.yaml", case / "run").text
    result = json.loads((case / "run" / "result.json").read_text())
    assert "5 candidates, with the optimizer `cma-es` and seed 7" in text
    assert "- `written`: `exact_match`, 16 held-out items, weight 0.5" in text
    assert result["verdict"].split(":")[0] in text
    assert "Optimism of the winner's search score" in text
    for label, row in [("**this model**", result["winner"]), ("mean of the parents", result["mean"])] + [
        (Path(row["model"]).name, row) for row in (*result["parents"], result["base"])
    ]:
        low, high = row["holdout_ci"]
        assert f"| {label} | {row['search']:.3f} | {row['holdout']:.3f} | {low:.3f} to {high:.3f} | " in text
    shown = Recipe.parse(text.split("```yaml\n")[1].split("```")[0])
    best = Recipe.load(case / "run" / "best.yaml")
    assert shown == best.with_models(lambda name: Path(name).name)
    assert "- `a`: apache-2.0" in text
    assert "evomerge apply evomerge_recipe.yaml merged" in text
    assert str(case) not in text  # No paths of this machine.


def test_a_search_in_stages_has_the_licence_of_its_first_models_and_the_recipes_of_all_stages(tmp_path: Path, hub: Hub):
    search(write_staged_case(tmp_path, evaluations=4), tmp_path / "run")
    for name in ("base", "a", "b"):
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {'mit' if name == 'b' else 'apache-2.0'}\n---\n")
    done = evomerge("publish", tmp_path / "run", "me/staged")
    assert done.returncode == 0, done.stderr
    card = ModelCard(hub.repositories["me/staged"].files()["README.md"].data.decode())
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"| **this model** | {result['winner']['search']:.3f} |" in card.text
    assert "| weights | " in card.text  # The first stage's winner is one of those to beat.
    recipes = [Recipe.parse(text.split("```")[0]) for text in card.text.split("```yaml\n")[1:]]
    assert [one.merge_method for one in recipes] == ["passthrough", "task_arithmetic"]
    assert "- `weights`: apache-2.0\n" in card.text
    assert "`weights` is a merge too, by this recipe:" in card.text
    assert str(tmp_path) not in card.text


def test_scores_of_another_recipe_are_not_shown(case: Path, tmp_path: Path):
    best = (case / "run" / "best.yaml").read_text()
    other = tmp_path / "best.yaml"
    other.write_text(best.replace("task_arithmetic", "ties"))
    shutil.copy(case / "run" / "result.json", tmp_path)
    card = card_of(other, tmp_path)
    assert card.data.get("eval_results") is None
    assert "## Scores" not in card.text
    (tmp_path / "result.json").write_text('{"winner": ')
    assert "## Scores" not in card_of(case / "run" / "best.yaml", tmp_path).text


def test_models_of_the_hub_are_the_base_models_with_their_licences_and_links(case: Path, tmp_path: Path, hub: Hub):
    for name in "ab":
        publish(case / name, f"me/{name}")
    out = made(linear(tmp_path, "me/a", "me/b@main", name="a ]( <name>"), tmp_path / "merged")
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == ["me/a", "me/b"]
    assert card.data.base_model_relation == "merge"
    assert card.data.license == "apache-2.0"
    assert "- [me/a](https://huggingface.co/me/a): apache-2.0\n" in card.text
    assert "not on the Hub" not in card.text
    assert "# a \\]( \\<name\\>\n" in card.text
    publish(out, "me/merged")
    assert "README.md" in hub.repositories["me/merged"].files()


def made(recipe: Path, out: Path) -> Path:
    done = evomerge("apply", recipe, out)
    assert done.returncode == 0, done.stderr
    return out


def test_apply_writes_the_card_and_the_picture_unless_asked_not_to(case: Path, tmp_path: Path):
    out = made(case / "run" / "best.yaml", tmp_path / "merged")
    assert "## Scores" in (out / "README.md").read_text()
    assert (out / "evomerge_recipe.svg").read_text().startswith("<svg ")
    # The picture and the card are files of a model, which may be replaced.
    done = evomerge("apply", case / "run", out, "--overwrite", "--no-card")
    assert done.returncode == 0, done.stderr
    assert not (out / "README.md").exists()
    assert not (out / "evomerge_recipe.svg").exists()


def test_a_run_is_applied_once_and_again_when_it_has_another_winner(case: Path, tmp_path: Path):
    run = Path(shutil.copytree(case / "run", tmp_path / "run"))
    weights = apply_winner(run) / "model.safetensors"
    before = weights.stat().st_ino, weights.read_bytes()
    assert apply_winner(run) == run / "model"
    assert weights.stat().st_ino == before[0]
    best = Recipe.load(run / "best.yaml").as_data()
    best["models"][0]["parameters"]["weight"] = 0.25
    (run / "best.yaml").write_text(Recipe.model_validate(best).to_yaml())
    apply_winner(run)
    assert weights.read_bytes() != before[1]


def test_methods_that_mergekit_lacks_are_not_tagged_with_it(case: Path, tmp_path: Path):
    recipe = linear(tmp_path, case / "a", case / "b", merge_method="tsv", base_model=str(case / "base"))
    assert card_of(recipe).data.tags == ["merge", "evomerge"]


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        (("license: apache-2.0", "license: gpl-2.0"), r"apache-2.0 \(.*x\), gpl-2.0 \(.*y\)"),
        (("license: apache-2.0", "language: en"), "the licence of .*y is not known"),
        (("license: apache-2.0", "license: ["), "the licence of .*y is not known"),
        (("license: apache-2.0", "license: [mit, apache-2.0]"), "the licence of .*y is not known"),
        (("license: apache-2.0", "license: cc-by-nd-4.0"), "y has the licence cc-by-nd-4.0, under which no merge"),
    ],
)
def test_a_merge_without_a_licence_is_published_only_when_one_is_named(
    tmp_path: Path, hub: Hub, cards: tuple[str, str], message: str
):
    for seed, (name, text) in enumerate(zip("xy", cards, strict=True)):
        tiny_checkpoint(tmp_path / name, seed=seed, layers=1)
        (tmp_path / name / "README.md").write_text(f"---\n{text}\n---\n")
    out = made(linear(tmp_path, tmp_path / "x", tmp_path / "y"), tmp_path / "merged")
    assert ModelCard.load(out / "README.md").data.get("license") is None
    with pytest.raises(PublishError, match=f"no licence to publish m under: .*{message}.*--license"):
        publish(out, "me/m")
    assert hub.requests == []
    publish(out, "me/m", licence="cc-by-nc-4.0")
    sent = ModelCard(hub.repositories["me/m"].files()["README.md"].data.decode())
    assert sent.data.license == "cc-by-nc-4.0"
    assert sent.text == ModelCard.load(out / "README.md").text


def test_a_licence_that_a_model_states_later_is_found_and_stated(tmp_path: Path, hub: Hub):
    tiny_checkpoint(tmp_path / "x", layers=1)
    out = made(linear(tmp_path, tmp_path / "x"), tmp_path / "merged")
    with pytest.raises(PublishError, match=r"the licence of .*x is not known"):
        publish(out, "me/m")
    more = "license_name: mine\nlicense_link: https://example.org/mine"
    (tmp_path / "x" / "README.md").write_text(f"---\nlicense: other\n{more}\n---\n")
    publish(out, "me/m")
    data = ModelCard(hub.repositories["me/m"].files()["README.md"].data.decode()).data
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "https://example.org/mine")
    # That name is not of the licence that is then named instead.
    publish(out, "me/m", licence="mit")
    data = ModelCard(hub.repositories["me/m"].files()["README.md"].data.decode()).data
    assert (data.license, data.license_name, data.license_link) == ("mit", None, None)


def test_a_folder_that_is_no_longer_there_is_no_base_model(case: Path, tmp_path: Path):
    data = card_of(linear(tmp_path, case / "a", tmp_path / "gone")).data
    assert data.get("base_model") is None
    assert data.get("license") is None


def test_a_licence_that_is_not_a_name_is_refused(case: Path, hub: Hub):
    for text in ("", "Apache 2.0", "MIT", "a\nb"):
        with pytest.raises(PublishError, match="expected the Hub's name of a licence"):
            publish(case / "a", "me/m", licence=text)
    assert hub.requests == []


def test_a_card_that_a_user_wrote_is_kept_and_one_that_is_missing_is_written(case: Path, tmp_path: Path, hub: Hub):
    recipe = linear(tmp_path, case / "a", case / "b")
    into_directory(open_recipe(recipe), tmp_path / "bare")
    publish(tmp_path / "bare", "me/bare")
    card = hub.repositories["me/bare"].files()["README.md"].data.decode()
    assert ModelCard(card).data.license == "apache-2.0"
    own = "---\nlicense: mit\nmine: [1, 2]\n---\n# My own words\n"
    (tmp_path / "bare" / "README.md").write_text(own)
    publish(tmp_path / "bare", "me/own")
    assert hub.repositories["me/own"].files()["README.md"].data.decode() == own


HOSTILE = "x\n\n# Theirs <script>alert(1)</script> [click](http://evil.test)"


def test_a_models_card_puts_nothing_but_names_into_ours(tmp_path: Path):
    for name, metadata in (
        ("x", {"license": HOSTILE, "language": [HOSTILE, "en", 3]}),
        ("y", {"license": "other", "license_name": HOSTILE, "license_link": "javascript:alert(1)"}),
        ("z", {"license": "other", "license_name": "mine", "license_link": "LICENSE"}),
    ):
        tiny_checkpoint(tmp_path / name, layers=1)
        (tmp_path / name / "README.md").write_text(f"---\n{json.dumps(metadata)}\n---\n")
        card = card_files(Recipe.load(linear(tmp_path, tmp_path / name)), HOSTILE)["README.md"]
        assert "\n# Theirs" not in card
        assert "<script" not in card.replace("\\<", "")
        assert "javascript" not in card
        data = ModelCard(card).data
        assert data.get("language") == (["en"] if name == "x" else None)
        # A file beside that card is not beside ours.
        assert (data.get("license_name"), data.get("license_link")) == (("mine", None) if name == "z" else (None, None))


def test_an_adapters_folder_is_not_named_by_its_path(case: Path, tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    text = card_files(Recipe.load(linear(tmp_path, f"{case / 'a'}+{tmp_path / 'adapter'}")), "m")["README.md"]
    assert str(case) not in text
    assert str(tmp_path) not in text
    assert "model: a+adapter\n" in text


@pytest.mark.usefixtures("hub")
def test_a_licence_with_conditions_is_published_with_a_note_of_them(case: Path, tmp_path: Path):
    model = shutil.copytree(case / "a", tmp_path / "a")
    assert publish(model, "me/m").notes == ()
    (note,) = publish(model, "me/m", licence="llama3.1").notes
    assert note.startswith('llama3.1 has conditions that you must meet: start its name with "Llama"')


def test_backticks_in_a_recipe_do_not_end_its_block(case: Path, tmp_path: Path):
    recipe = linear(tmp_path, case / "a", chat_template="'```{{ x }}'")
    text = card_of(recipe).text
    assert text.count("````yaml\n") == 1
    assert Recipe.parse(text.split("````yaml\n")[1].split("````")[0]).chat_template == "```{{ x }}"


GSM8K = {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": None, "rows": None}


def on_a_benchmark(case: Path, folder: Path, metric: str = "last_number", **changes: object) -> Path:
    """A copy of the run, as if its second task had been searched with these held-out rows of GSM8K."""
    shutil.copytree(case / "run", folder)
    result = json.loads((folder / "result.json").read_text())
    result["search"]["tasks"][1] |= {"metric": metric, "holdout_data": {**GSM8K, **changes}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_score_on_a_whole_benchmark_is_a_file_for_its_leaderboard(case: Path, tmp_path: Path, hub: Hub):
    run = on_a_benchmark(case, tmp_path / "run", revision="abc")
    score = json.loads((run / "result.json").read_text())["winner"]["holdout_tasks"]["written"]
    assert made(run, tmp_path / "merged").joinpath(".eval_results/gsm8k.yaml").is_file()
    for source, repo_id in ((run, "me/winner"), (tmp_path / "merged", "me/merged")):
        published = publish(source, repo_id)
        assert ".eval_results" not in published.left_out
        sent = hub.repositories[repo_id].files()[".eval_results/gsm8k.yaml"].data.decode()
        (entry,) = parse_eval_result_entries(yaml.safe_load(sent))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", score)
        assert (entry.dataset_revision, entry.notes) == ("abc", "evomerge, metric last_number")
        publish(source, f"{repo_id}-without", card=False)
        assert ".eval_results/gsm8k.yaml" not in hub.repositories[f"{repo_id}-without"].files()


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [0, 100]},
        {"split": "train"},
        {"name": "socratic"},
        {"path": "me/gsm8k"},
        {"metric": "f1"},
    ],
    ids=str,
)
def test_other_scores_are_for_no_leaderboard(case: Path, tmp_path: Path, changes: dict[str, object]):
    run = on_a_benchmark(case, tmp_path / "run", **changes)
    assert set(card_files(Recipe.load(run / "best.yaml"), "name", run)) == {"README.md", "evomerge_recipe.svg"}
