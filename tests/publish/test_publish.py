"""Publishing to a Hub on this machine by the real client: what arrives, what is refused before, and every fault."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file

from evomerge.api import evaluate
from evomerge.errors import CheckpointError, EvomergeError, PublishError
from evomerge.publish import publish
from tests.hub import TOKEN, Hub
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


def test_the_command_takes_the_hub_and_the_token_from_the_environment_and_shows_bytes_as_they_go(
    sharded: Path, tmp_path: Path
):
    screen, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with Hub() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **own, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "evomerge", "publish", str(sharded), "me/m"]
        with subprocess.Popen(command, env=environment, stdout=end, stderr=end) as running:
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
