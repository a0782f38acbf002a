"""Pictures as PNG: drawn as browsers draw the SVG files, or an error that says what is missing."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evomerge.report.canvas import plain_style
from evomerge.report.written import write_report
from evomerge.study import load_run
from tests.study.search_case import search, write_case

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("png")
    search(write_case(folder, evaluations=4), folder / "run")
    return folder / "run"


def pixels(picture: Path) -> np.ndarray:
    return np.asarray(Image.open(picture).convert("RGB"))


def test_every_picture_is_a_png_file_on_white_with_its_colours_and_texts(run: Path, tmp_path: Path):
    svg, png = (write_report(load_run(run), kind, tmp_path / kind) for kind in ("svg", "png"))
    assert {path.stem for path in png.iterdir()} == {path.stem for path in svg.iterdir()}
    for path in png.iterdir():
        drawn = pixels(path)
        size = ET.fromstring((svg / f"{path.stem}.svg").read_text()).attrib
        assert drawn.shape == (2 * float(size["height"]), 2 * float(size["width"]), 3)
        assert (drawn[:16] == 255).all()
        assert (drawn < 0x80).all(axis=2).sum() > 100, path  # Texts and thin lines alone are so dark.
    best = (pixels(png / "progress.png") == [0xD5, 0x5E, 0x00]).all(axis=2)
    assert best.sum() > 100


def test_the_style_sheet_needs_no_browser():
    assert ".heat { fill: #0b5cad }" in plain_style()
    assert "var(" not in plain_style()
    assert "@media" not in plain_style()
    assert "--" not in plain_style()


MISSING = {
    "resvg_py": "need resvg_py, which is not installed: run pip install 'evomerge[png]', or use --format svg",
    "fonts": "would have no text, because none of their fonts is installed",
}


@pytest.mark.parametrize("missing", MISSING)
def test_without_what_draws_them_nothing_is_written(missing: str, run: Path, tmp_path: Path):
    (tmp_path / "resvg_py.py").write_text("raise ImportError")
    fonts = tmp_path / "fonts.conf"
    fonts.write_text(f"<?xml version='1.0'?><fontconfig><dir>{tmp_path}/none</dir></fontconfig>")
    path = f"{tmp_path}:{ROOT}" if missing == "resvg_py" else str(ROOT)
    environment = {**os.environ, "PYTHONPATH": path} | ({"FONTCONFIG_FILE": str(fonts)} if missing == "fonts" else {})
    command = [sys.executable, "-m", "evomerge", "report", str(run), "--format", "png", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 1
    assert MISSING[missing] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
