"""Code that a checkpoint brings, or names on the Hub, is never run, whatever is answered to whoever asks."""

import ast
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import evomerge as package
from evomerge.runtime.live import skeleton
from tests.study.search_case import write_case
from tests.test_cli import evomerge
from tests.tiny import tiny_config

EVIL = """\
from pathlib import Path
Path({mark!r}).write_text("run")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""
AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModel": "evil.Model"}


def changed(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_every_loader_of_transformers_is_told_to_run_no_code():
    calls = {
        f"{path.name}:{node.lineno}": node
        for path in Path(package.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
    }
    assert len(calls) >= 3
    for place, call in calls.items():
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", place


@pytest.fixture(params=["tokenizer.json", "no tokenizer.json"])
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bool]:
    """A search whose models bring code, and whether their tokenizer can be loaded without it."""
    recipe = write_case(tmp_path, evaluations=1)
    for name in ("base", "a", "b"):
        (tmp_path / name / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
        changed(tmp_path / name / "config.json", auto_map=AUTO_MAP)
        tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"}
        changed(tmp_path / name / "tokenizer_config.json", **tokenizer)
        if request.param != "tokenizer.json":
            (tmp_path / name / "tokenizer.json").unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    return recipe, request.param == "tokenizer.json"


def test_no_command_runs_or_asks_to_run_a_checkpoints_code(case: tuple[Path, bool]):
    recipe, _ = case
    folder = recipe.parent
    task = folder / "tasks" / "written.yaml"
    for command in (
        ("check", recipe),
        ("search", recipe, "--run-dir", folder / "run"),
        ("eval", folder / "base", task),
    ):
        done = evomerge(*command)
        assert done.returncode == 1
        assert "its tokenizer needs custom code, which evomerge never runs" in done.stderr
        assert "Do you wish" not in done.stdout + done.stderr
    assert not (folder / "mark").exists()


def test_code_that_a_config_names_further_inside_or_on_the_hub_is_not_looked_for():
    config: dict[str, Any] = tiny_config("llava").to_dict()
    config["attn_implementation"] = "org/kernel"
    config["text_config"] |= {"_attn_implementation": "org/kernel", "experts_implementation": "org/kernel"}
    config["text_config"]["auto_map"] = config["vision_config"]["auto_map"] = AUTO_MAP
    model: Any = skeleton(config, torch.float32)
    assert model.config.text_config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(model.config.text_config, "auto_map")
