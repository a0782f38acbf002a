"""Publishing to a Hub on this machine by the real client: what arrives, what is refused before, and every fault."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file

from evomerge.api import evaluate
from evomerge.errors import CheckpointError, EvomergeError, PublishError
from evomerge.publish import publish
from evomerge.recipe import Recipe
from tests.hub import TOKEN, Blob, Hub
from tests.study.search_case import search, write_case
from tests.test_cli import evomerge
from tests.tiny import tiny_checkpoint

CARD = "---\nlicense: mit\n---\n# A model\n"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search that has ended, in `run`."""
    folder = tmp_path_factory.mktemp("searched")
    search(write_case(folder, evaluations=4), folder / "run")
    for name in ("base", "a", "b"):
        (folder / name / "README.md").write_text(f"---\nlicense: {'mit' if name == 'a' else 'apache-2.0'}\n---\n")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of several shards, with a card."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("sharded") / "model", shard_bytes=20_000)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def model(sharded: Path, tmp_path: Path) -> Path:
    """A copy of that model, to damage."""
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def test_a_winner_that_is_published_and_downloaded_again_scores_the_same_item_for_item(searched: Path, hub: Hub):
    done = evomerge("publish", searched / "run", "me/winner")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/me/winner/commit/" in done.stdout
    there = snapshot_download("me/winner")
    sent = {path.name for path in (searched / "run" / "model").iterdir()}
    assert sent | {".gitattributes"} == set(hub.repositories["me/winner"].files())
    tasks = [searched / "tasks" / name for name in ("likely.yaml", "written.yaml")]
    here, again = (evaluate(str(path), tasks, device="cpu").as_data() for path in (searched / "run" / "model", there))
    assert [row["items"] for row in here["scores"]] == [row["items"] for row in again["scores"]]
    result = json.loads((searched / "run" / "result.json").read_text())
    assert {row["task"]: row["score"] for row in again["scores"]} == pytest.approx(result["winner"]["holdout_tasks"])
    assert HfApi().model_info("me/winner").private is False


def test_what_is_there_already_is_not_sent_again(sharded: Path, hub: Hub):
    first = publish(sharded, "me/m")
    uploads, commits = hub.uploads(), len(hub.repositories["me/m"].commits)
    assert uploads == len(list(sharded.glob("*.safetensors")))
    publish(sharded, "me/m")
    assert (hub.uploads(), len(hub.repositories["me/m"].commits)) == (uploads, commits)
    assert first.nbytes == sum(path.stat().st_size for path in sharded.iterdir())


def test_a_dry_run_lists_files_with_sizes_and_sends_nothing(sharded: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    before = {path: path.read_bytes() for path in sharded.iterdir()}
    done = evomerge("publish", sharded, "me/m", "--dry-run", "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    for path in sharded.iterdir():
        assert path.name in done.stdout
    assert f"{(sharded / 'config.json').stat().st_size} bytes  config.json\n" in done.stdout
    assert "Not uploaded, as --dry-run says" in done.stdout
    assert hub.requests == []
    assert {path: path.read_bytes() for path in sharded.iterdir()} == before


def test_a_private_repository_is_private_and_a_public_one_is_not_taken_for_one(sharded: Path, hub: Hub):
    publish(sharded, "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    publish(sharded, "me/open")
    uploads = hub.uploads()
    with pytest.raises(PublishError, match="me/open: is public, and --private does not change that"):
        publish(sharded, "me/open", private=True, licence="apache-2.0")
    assert hub.uploads() == uploads
    assert hub.repositories["me/open"].files()["README.md"].data == CARD.encode()


def test_a_branch_is_made_and_main_stays(sharded: Path, hub: Hub):
    for _ in range(2):
        publish(sharded, "me/m", revision="v2")
    assert set(hub.repositories["me/m"].files()) == {".gitattributes"}
    assert "model.safetensors.index.json" in hub.repositories["me/m"].files("v2")


def test_only_what_belongs_to_a_model_is_sent_and_the_rest_is_named(model: Path, hub: Hub):
    for name in (".env", "notes.txt", "model-00099-of-00099.safetensors", "pytorch_model.bin"):
        (model / name).write_text("not for the Hub")
    (model / "LICENSE").write_text("do as you like")
    done = evomerge("publish", model, "me/m")
    assert done.returncode == 0, done.stderr
    files = set(hub.repositories["me/m"].files())
    assert not files & {".env", "notes.txt", "model-00099-of-00099.safetensors", "pytorch_model.bin"}
    assert "LICENSE" in files
    assert "not uploaded, as it is no part of a model: .env\n" in done.stdout


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "generation_config.json"])
def test_a_link_out_of_the_folder_is_not_followed(model: Path, hub: Hub, tmp_path: Path, name: str):
    (tmp_path / "secret").write_text(CARD)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    with pytest.raises(EvomergeError, match=f"{name}: is a link to .*secret, out of the model's folder"):
        publish(model, "me/m")
    assert hub.requests == []


def test_without_a_card_none_is_sent_and_none_is_needed(model: Path, hub: Hub):
    (model / "README.md").write_text("no metadata at all")
    publish(model, "me/m", card=False)
    assert "README.md" not in hub.repositories["me/m"].files()


def test_a_recipe_is_sent_without_paths_of_this_machine_and_keeps_them_here(searched: Path, hub: Hub, tmp_path: Path):
    cached = tmp_path / "models--them--base" / "snapshots" / ("5" * 40)
    shutil.copytree(searched / "base", cached)
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {cached}\n"
        f"models: [{{model: {searched}/a, parameters: {{weight: 0.5}}}}]\n"
    )
    evomerge("apply", recipe, out)
    done = evomerge("publish", out, "me/m")
    assert done.returncode == 0, done.stderr
    assert "note: models that are not on the Hub have the names of their folders in the recipe: a\n" in done.stdout
    files = hub.repositories["me/m"].files()
    for name in ("README.md", "evomerge_recipe.yaml", "evomerge_recipe.svg"):
        assert str(searched) not in files[name].data.decode(), name
        assert str(tmp_path) not in files[name].data.decode(), name
    sent = Recipe.parse(files["evomerge_recipe.yaml"].data.decode())
    assert sent == Recipe.load(out / "evomerge_recipe.yaml").with_models(
        lambda name: "a" if name == f"{searched}/a" else f"them/base@{'5' * 40}"
    )
    assert "put the folder of your copy in its place: a\n" in files["evomerge_recipe.yaml"].data.decode()
    data = ModelCard(files["README.md"].data.decode()).data
    assert data.base_model == ["them/base"]
    # Here it still names the folders, so that it can be applied again.
    assert f"{searched}/a" in (out / "evomerge_recipe.yaml").read_text()


def test_parts_of_another_model_are_removed_by_the_same_commit(sharded: Path, hub: Hub):
    publish(sharded, "me/m")
    old = {name: Blob(b"old", lfs=False) for name in ("model.safetensors", "chat_template.jinja", "m.gguf", "LICENSE")}
    repository = hub.repositories["me/m"]
    repository.commit("main", {**repository.files(), **old})
    commits = len(repository.commits)
    done = publish(sharded, "me/m")
    assert done.notes == ("removed from me/m, as parts of another model: chat_template.jinja, model.safetensors",)
    assert len(repository.commits) == commits + 1
    assert {"m.gguf", "LICENSE"} == set(repository.files()) - {".gitattributes", *(p.name for p in sharded.iterdir())}


def test_a_card_that_was_edited_on_the_hub_stays_unless_it_is_replaced_by_one_that_was_edited_here(
    searched: Path, hub: Hub, tmp_path: Path
):
    run = Path(shutil.copytree(searched / "run", tmp_path / "run"))
    publish(run, "me/m")
    repository = hub.repositories["me/m"]
    own = repository.files()["README.md"]
    for text, kept in ((own.data + b"More.\n", True), (b"---\nlicense: mit\n---\n", False)):
        repository.commit("main", {**repository.files(), "README.md": Blob(text, lfs=False)})
        done = publish(run, "me/m")
        assert repository.files()["README.md"].data == (text if kept else own.data)
        assert any("was edited in me/m and stays as it is" in note for note in done.notes) == kept
        assert ("README.md" in done.files) != kept
    repository.commit("main", {**repository.files(), "README.md": Blob(b"Theirs", lfs=False)})
    (run / "model" / "README.md").write_text(CARD)
    publish(run, "me/m")
    assert repository.files()["README.md"].data == CARD.encode()


def test_a_card_from_before_the_end_of_a_search_is_written_again_after_it(searched: Path, hub: Hub, tmp_path: Path):
    run = Path(shutil.copytree(searched / "run", tmp_path / "run"))
    result = (run / "result.json").read_bytes()
    (run / "result.json").unlink()
    before = publish(run, "me/m", licence="gpl-3.0")
    assert before.notes[0].startswith(f"the search in {run} has not ended: this is its best recipe so far")
    assert "## Scores" not in (run / "model" / "README.md").read_text()
    (run / "result.json").write_bytes(result)
    assert "has not ended" not in " ".join(publish(run, "me/m").notes)
    card = ModelCard(hub.repositories["me/m"].files()["README.md"].data.decode())
    assert "## Scores" in card.text
    assert card.data.license == "gpl-3.0"  # As it was named.
    own = "---\nlicense: mit\n---\nMy own words.\n"
    (run / "model" / "README.md").write_text(own)
    publish(run, "me/m")
    assert hub.repositories["me/m"].files()["README.md"].data.decode() == own


def test_a_file_that_changes_while_it_is_sent_is_reported(model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    answer = hub.fault_for

    def changing(request: str):
        if request.startswith("POST /api/models/me/m/commit"):
            (model / "generation_config.json").write_text("{}")
        return answer(request)

    monkeypatch.setattr(hub, "fault_for", changing)
    with pytest.raises(PublishError, match=r"generation_config.json: changed while it was sent, so what me/m has was"):
        publish(model, "me/m")
    monkeypatch.setattr(hub, "fault_for", answer)
    publish(model, "me/m")
    check_complete(model, hub)


def test_progress_reaches_all_bytes(searched: Path, hub: Hub, tmp_path: Path):
    run = Path(shutil.copytree(searched / "run", tmp_path / "run", ignore=shutil.ignore_patterns("model")))
    seen: dict[str, list[tuple[int, int]]] = {}
    publish(run, "me/m", dry_run=True, progress=lambda what, *bytes_: seen.setdefault(what, []).append(bytes_))
    assert hub.requests == []
    assert list(seen) == ["writing", "checking"]
    for steps in seen.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert len(steps) > 2
        assert steps[-1] == (steps[0][1], steps[0][1])


def test_ctrl_c_in_mid_upload_says_what_it_waits_for_and_the_same_command_completes_the_upload(
    model: Path, hub: Hub, tmp_path: Path
):
    hub.delay = 1.0
    with subprocess.Popen(
        [sys.executable, "-m", "evomerge", "publish", str(model), "me/m"],
        env={**os.environ, **environment(hub, tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not hub.uploads():
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()
    assert running.returncode == 130
    assert "press Ctrl-C again to stop at once.\n" in said
    assert said.endswith("Stopped: the same command completes the upload.\n")
    assert set(hub.repositories["me/m"].files()) == {".gitattributes"}
    hub.delay = 0.0
    publish(model, "me/m")
    check_complete(model, hub)


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
    }


def test_the_command_takes_the_hub_and_the_token_from_the_environment_and_shows_bytes_as_they_go(
    sharded: Path, tmp_path: Path
):
    screen, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with Hub() as hub:
        command = [sys.executable, "-m", "evomerge", "publish", str(sharded), "me/m"]
        with subprocess.Popen(
            command, env={**os.environ, **environment(hub, tmp_path)}, stdout=end, stderr=end
        ) as running:
            os.close(end)
            shown = b""
            with contextlib.suppress(OSError):  # Linux's end of file.
                while part := os.read(screen, 4096):
                    shown += part
        os.close(screen)
        assert running.returncode == 0, shown.decode()
        check_complete(sharded, hub)
    text = shown.decode()
    assert re.search(r"model-0000\d-of-0000\d\.safetensors: +\d+%\|.*B/s", text), text
    assert f"{hub.url}/me/m/commit/" in text
    check_no_token(tmp_path, text)


# What is refused before a byte is sent.


def test_a_weight_that_is_nan_is_refused_by_its_name(model: Path, hub: Hub):
    shard = sorted(model.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, shard)
    with pytest.raises(PublishError, match=f"has NaN or infinite weights, in {name}; nothing was sent"):
        publish(model, "me/m")
    assert hub.requests == []


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_apply_refuses_a_nan_weight_as_well_and_leaves_nothing(model: Path, tmp_path: Path, method: str):
    shard = sorted(model.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})
    weight = ", parameters: {weight: 1}" if method == "linear" else ""
    (tmp_path / "recipe.yaml").write_text(f"merge_method: {method}\nmodels: [{{model: model{weight}}}]\n")
    before = set(tmp_path.iterdir())
    failed = evomerge("apply", tmp_path / "recipe.yaml", tmp_path / "out")
    assert failed.returncode == 1
    assert f"{name}: " in failed.stderr
    assert "not finite" in failed.stderr
    assert set(tmp_path.iterdir()) == before


def test_a_missing_and_a_truncated_shard_are_refused(model: Path, hub: Hub):
    first, second, *_ = sorted(model.glob("*.safetensors"))
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=second.name):
        publish(model, "me/m")
    first.unlink()
    with pytest.raises(CheckpointError, match=f"shards are missing, the first {first.name}"):
        publish(model, "me/m")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "none_such"}', "config.json cannot be loaded by transformers"),
        ("tokenizer.json", "{}", "its tokenizer cannot be loaded by transformers"),
        ("README.md", "---\nlicense: [\n---\n", "README.md: its metadata is not valid"),
        ("README.md", "---\nlicense: {a: b}\n---\n", "license is {'a': 'b'}; expected one licence"),
        ("README.md", "---\ntags: [3]\n---\n", r"tags is \[3\]; expected a list of words"),
        ("README.md", "---\nmodel-index: [{name: a}]\n---\n", "README.md: its metadata is not valid"),
        ("README.md", "# no metadata\n", "no licence to publish m under: .*README.md states none"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(model: Path, hub: Hub, name: str, content: str, message: str):
    (model / name).write_text(content)
    with pytest.raises(PublishError, match=message):
        publish(model, "me/m")
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo_id", ["m", "a/b/c", "me/", "me/-m", "me/a--b", "me/m.git", "me/ m", "", "me/" + "m" * 97]
)
def test_a_malformed_repository_id_is_refused(sharded: Path, hub: Hub, repo_id: str):
    with pytest.raises(PublishError, match="is not a repository id; expected OWNER/NAME"):
        publish(sharded, repo_id)
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "a b", "../x", "-x", "v1/", "a..b", "ünï code"])
def test_a_malformed_branch_is_refused_before_a_repository_is_made(sharded: Path, hub: Hub, revision: str):
    with pytest.raises(PublishError, match=r"--revision .* cannot be the name of a branch"):
        publish(sharded, "me/m", revision=revision)
    assert hub.requests == []


def test_a_pull_request_of_a_repository_that_is_not_there_makes_none(sharded: Path, hub: Hub):
    with pytest.raises(PublishError, match="the Hub finds no such repository or branch"):
        publish(sharded, "me/m", revision="refs/pr/1")
    assert hub.repositories == {}


@pytest.mark.parametrize("token", ["hf_with\x01control", "hf_é", "hf with a space", "hf_\U0001f600"])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(
    sharded: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match="has a space, a control character or a letter that no token has") as refused:
        publish(sharded, "me/m")
    assert token not in str(refused.value)
    assert repr(token)[1:-1] not in str(refused.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    "more", [[TOKEN], ["me/m", "--license", TOKEN], [f"me/{TOKEN}", "--dry-run", "--revision", ""]]
)
def test_a_token_in_place_of_another_argument_is_not_shown(sharded: Path, hub: Hub, more: list[str]):
    failed = evomerge("publish", sharded, *more)
    assert failed.returncode == 1
    assert TOKEN not in failed.stdout + failed.stderr
    assert hub.requests == []


def test_without_a_token_nothing_is_made_or_sent(searched: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="no token for the Hub: log in with `hf auth login`, or set HF_TOKEN"):
        publish(searched / "run", "me/m")
    assert hub.requests == []


def test_a_folder_that_is_no_model_and_a_run_without_a_winner_are_refused(tmp_path: Path, hub: Hub):
    with pytest.raises(PublishError, match="no such folder"):
        publish(tmp_path / "nowhere", "me/m")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        publish(tmp_path, "me/m")
    tiny_checkpoint(tmp_path / "bare")
    with pytest.raises(PublishError, match=r"has no README\.md, and no evomerge_recipe\.yaml to write one from"):
        publish(tmp_path / "bare", "me/m")
    assert hub.requests == []


def test_a_recipe_with_holes_leaves_nothing_half_made(searched: Path, tmp_path: Path, hub: Hub):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(searched / "recipe.yaml", run / "best.yaml")
    with pytest.raises(EvomergeError, match="the recipe has a hole"):
        publish(run, "me/m")
    assert [path.name for path in run.iterdir()] == ["best.yaml"]
    assert hub.requests == []


# Faults of the Hub and of the connection.

TRANSIENT = [(429, {"Retry-After": "31"}), (500, {}), (0, {})]


@pytest.mark.parametrize(("status", "headers"), TRANSIENT)
@pytest.mark.parametrize("request_", ["PUT /storage", "POST .*/objects/batch", "POST .*/preupload"])
def test_one_fault_in_the_middle_is_survived(
    sharded: Path, hub: Hub, waits: list[float], request_: str, status: int, headers: dict[str, str]
):
    hub.fail(request_, status, headers=headers)
    publish(sharded, "me/m")
    check_complete(sharded, hub)
    assert len(waits) == 1
    assert status != 429 or waits[0] >= 31


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ("POST /api/repos/create", 401, "the Hub does not accept the token .*401.*hf auth login"),
        ("POST .*/commit/", 401, "the Hub does not accept the token .*401.*hf auth login"),
        ("POST /api/repos/create", 403, "the token may not write there .*403.*write access to me"),
        ("POST .*/objects/batch", 403, "the token may not write there .*403.*write access to me"),
        ("PUT /storage", 403, "the token may not write there .*403"),
        ("POST .*/commit/", 409, "somebody else changed the repository at the same time .*409.*the same command again"),
        ("POST .*/commit/", 429, "too many requests to the Hub .*429.*; wait 31 s, and run the same command again"),
        ("PUT /storage", 429, "too many requests to the Hub .*429.*; wait 31 s, and run the same command again"),
        ("POST .*/commit/", 500, "the Hub fails .*500.*run the same command again: it completes the upload"),
        ("PUT /storage", 500, "the Hub fails .*500.*run the same command again: it completes the upload"),
        ("POST /api/repos/create", 500, "the Hub fails .*500.*run the same command again"),
        ("POST .*/commit/", 0, "the upload broke off .*run the same command again: it completes the upload"),
        ("PUT /storage", 0, "the upload broke off .*run the same command again: it completes the upload"),
    ],
)
def test_a_lasting_fault_is_explained_and_the_same_command_completes_the_upload(
    model: Path, hub: Hub, tmp_path: Path, request_: str, status: int, message: str
):
    hub.fail(request_, status, times=1000, headers={"Retry-After": "31"} if status == 429 else {})
    failed = evomerge("publish", model, "me/m")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error me/m: "), failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert re.search(message, failed.stderr), failed.stderr
    # Nobody sees half of a model.
    made = hub.repositories.get("me/m")
    assert made is None or set(made.files()) == {".gitattributes"}
    hub.heal()
    done = evomerge("publish", model, "me/m")
    assert done.returncode == 0, done.stderr
    check_complete(model, hub)
    check_no_token(tmp_path, failed.stdout, failed.stderr, done.stdout, done.stderr)


def test_shards_that_arrived_before_the_connection_broke_are_not_sent_again(sharded: Path, hub: Hub):
    shards = sorted(sharded.glob("*.safetensors"))
    oids = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}
    last = oids[shards[-1].name]
    hub.fail(f"PUT /storage/{last}", 0, times=1000)
    with pytest.raises(PublishError, match="broke off"):
        publish(sharded, "me/m")
    assert set(hub.blobs) == set(oids.values()) - {last}
    hub.heal()
    before = hub.uploads()
    publish(sharded, "me/m")
    assert hub.uploads() == before + 1
    check_complete(sharded, hub)


@pytest.mark.usefixtures("hub")
def test_a_wrong_token_is_explained_and_not_shown(sharded: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_aWrongOneNeverShown")
    failed = evomerge("publish", sharded, "me/m")
    assert "the Hub does not accept the token (401" in failed.stderr
    assert "aWrongOneNeverShown" not in failed.stdout + failed.stderr


def test_offline_mode_is_named_as_the_reason(sharded: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(PublishError, match=r"OfflineModeIsEnabled.* unset HF_HUB_OFFLINE, and run the same command"):
        publish(sharded, "me/m")
    assert hub.requests == []


def test_a_namespace_of_somebody_else_is_explained(sharded: Path, hub: Hub):
    with pytest.raises(PublishError, match=r"the token may not write there .*write access to them"):
        publish(sharded, "them/m")
    assert hub.uploads() == 0


def test_a_token_that_the_hub_repeats_is_not_shown(sharded: Path, hub: Hub):
    hub.fail("POST /api/repos/create", 403, headers={"X-Error-Message": f"{TOKEN} is a read token"})
    with pytest.raises(PublishError) as refused:
        publish(sharded, "me/m")
    assert TOKEN not in str(refused.value)


def check_complete(folder: Path, hub: Hub) -> None:
    """Checks that the repository has the folder's files, byte for byte."""
    files = hub.repositories["me/m"].files()
    assert {name: blob.data for name, blob in files.items() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def check_no_token(folder: Path, *texts: str) -> None:
    assert all(TOKEN not in text for text in texts)
    for path in folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
