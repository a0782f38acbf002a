"""Pictures of recipes: what is in them, in a terminal and as SVG."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, StagedRecipe, load
from evomerge.report import Drawing, drawing_of, to_svg, to_text
from evomerge.report.drawing import Choice
from evomerge.report.heat import HeatMap
from evomerge.report.names import short_names
from evomerge.report.path import StackPath

ROOT = Path(__file__).parent.parent.parent
SVG = "{http://www.w3.org/2000/svg}"

TIES = """
merge_method: ties
base_model: org/base
models:
  - model: org/math
    parameters: {weight: [0, 0.5, 1], density: 0.5}
  - model: other/japanese
    parameters:
      weight: [{filter: mlp, value: {search: [0.2, 0.8]}}, {value: [1, {search: [0, 2]}]}]
parameters: {normalize: true, density: 0.9}
tasks: [{task: eval_tasks/gsm8k_ja.yaml}]
"""

STACK = """
merge_method: passthrough
slices:
  - sources: [{model: org/math, layer_range: [0, 4]}]
  - sources: [{model: org/japanese, layer_range: [2, 5]}]
  - sources:
      - model: org/math
        layer_range: [3, 4]
        parameters: {scale: [{filter: o_proj, value: 0.5}, {filter: down_proj, value: 0.5}, {value: 1}]}
  - sources: [{model: org/math, layer_range: [10, 12], parameters: {scale: 2}}]
"""

HOLE = """
merge_method: passthrough
slices: {search: {models: [a, b], repeats: 2, max_layers: 9, scale: [0.5, 1.5]}}
search: {evaluations: 2000}
"""


def draw(text: str) -> Drawing:
    return drawing_of(Recipe.parse(text))


def heat(drawing: Drawing, heading: str) -> HeatMap:
    panel = dict(drawing.panels)[heading]
    assert isinstance(panel, HeatMap)
    return panel


def path_of(drawing: Drawing) -> StackPath:
    panel = dict(drawing.panels)["layers"]
    assert isinstance(panel, StackPath)
    return panel


def lines(drawing: Drawing, width: int = 80) -> list[str]:
    return to_text(drawing, width).plain.splitlines()


def model_folder(folder: Path, layers: int) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))


def test_a_heat_map_has_the_numbers_of_each_model_and_group_of_tensors():
    found = heat(draw(TIES), "weight")
    assert [(row.model, row.group) for row in found.rows] == [("math", ""), ("japanese", "mlp"), ("japanese", "other")]
    # The depth is unknown without a config.json: the columns are the points of the longest gradient.
    assert found.columns == "point"
    assert [row.cells for row in found.rows] == [
        ((0, 0), (0.5, 0.5), (1, 1)),
        ((0.2, 0.8),) * 3,
        ((1, 1), (0.5, 1.5), (0, 2)),
    ]
    assert (found.low, found.high) == (0, 2)
    assert [row.text for row in found.rows] == ["0 0.5 1", "0.2 to 0.8", "0 to 2"]


def test_a_value_for_all_models_is_each_models_that_has_none_of_its_own():
    found = heat(draw(TIES), "density")
    assert [(row.model, row.cells[0]) for row in found.rows] == [("math", (0.5, 0.5)), ("japanese", (0.9, 0.9))]
    assert "for all: normalize true" in draw(TIES).facts


def test_gradients_spread_over_the_depth_of_the_config(tmp_path: Path):
    model_folder(tmp_path / "math", 5)
    text = TIES.replace("org/math", str(tmp_path / "math"))
    found = heat(draw(text), "weight")
    assert found.columns == "layer"
    assert [cell.low for cell in found.rows[0].cells] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "[]",
        "{}",
        '{"num_hidden_layers": "many"}',
        '{"num_hidden_layers": -1}',
        '{"num_hidden_layers": 1000000000}',
    ],
)
def test_a_config_that_says_no_depth_is_as_none(tmp_path: Path, content: str):
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "config.json").write_text(content)
    assert heat(draw(TIES.replace("org/math", str(tmp_path / "math"))), "weight").columns == "point"


def test_what_is_shared_is_drawn_where_it_changes_with_depth():
    text = """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]
parameters: {t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}
"""
    drawing = draw(text)
    assert [heading for heading, _ in drawing.panels] == ["t"]  # every layer is where it was: there is no path
    assert [(row.model, row.group) for row in heat(drawing, "t").rows] == [("all", "mlp"), ("all", "other")]
    assert [cell.low for cell in heat(drawing, "t").rows[0].cells] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_slices_have_their_own_values_along_the_depth():
    text = """
merge_method: task_arithmetic
base_model: z
slices:
  - sources: [{model: a, layer_range: [0, 2], parameters: {weight: 0.25}}]
  - sources: [{model: b, layer_range: [2, 4], parameters: {weight: 1}}]
"""
    rows = heat(draw(text), "weight").rows
    assert [[cell and cell.low for cell in row.cells] for row in rows] == [[0.25, 0.25, None, None], [None, None, 1, 1]]


def test_every_module_is_drawn():
    text = """
merge_method: linear
modules:
  text_decoder: {models: [{model: a, parameters: {weight: 0.5}}]}
  vision: {models: [{model: a, parameters: {weight: 1}}]}
"""
    assert [heading for heading, _ in draw(text).panels] == ["text_decoder: weight", "vision: weight"]


def test_a_path_has_the_layers_their_uses_and_their_scales():
    path = path_of(draw(STACK))
    assert [step.sources for step in path.steps] == [
        ((model, layer),)
        for model, layer in [*((0, i) for i in range(4)), (1, 2), (1, 3), (1, 4), (0, 3), (0, 10), (0, 11)]
    ]
    assert [step.use for step in path.steps] == [1] * 7 + [2, 1, 1]
    assert [step.factor for step in path.steps] == [1] * 7 + [0.5, 2, 2]
    assert [run.scales for run in path.runs] == [(), (), (("×0.5", "o_proj, down_proj"),), (("×2", "all"),)]
    assert [heading for heading, _ in draw(STACK).panels] == ["layers"]


def test_a_stack_in_a_terminal():
    assert lines(draw(STACK)) == [
        "passthrough of math, japanese",
        "",
        "layers",
        "      depth 0",
        "A math      AAAA···AAA",
        "B japanese  ····BBB···",
        "layer, tens 0000000011",
        "      layer 0123234301",
        "        use        2  ",
        "      scale ▃▃▃▃▃▃▃▁██",
        "",
        "0-3: A 0-3                        4-6: B 2-4",
        "7: A 3 ×0.5 (o_proj, down_proj)   8-9: A 10-11 ×2 (all)",
    ]


def test_more_layers_than_any_model_has_are_refused():
    text = "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1000000000]}]}]\n"
    recipe = Recipe.parse(text, "r.yaml")
    with pytest.raises(RecipeError, match=r"r\.yaml:2: slices: the slices have 1,000,000,000 layers"):
        drawing_of(recipe)


def test_a_deep_stack_is_broken_into_lines():
    text = "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 100]}]}]\n"
    found = lines(draw(text), 60)
    assert [line.count("A") for line in found if line.startswith("A a ")] == [41, 41, 21]
    assert "      depth 40        50        60        70" in found


def test_numbers_stand_in_wide_cells_and_shades_in_narrow_ones(tmp_path: Path):
    model_folder(tmp_path / "math", 50)
    text = TIES.replace("org/math", str(tmp_path / "math"))
    wide = next(line for line in lines(draw(TIES)) if line.startswith("math"))
    assert re.fullmatch(r"math +░0 +▒0\.5 +▓1 +0 0\.5 1", wide)  # of 0 to 2, which japanese may have
    narrow = next(line for line in lines(draw(text)) if line.startswith("math"))
    assert re.search(r"░+▒+▓+", narrow)
    assert "?" * 30 in "\n".join(lines(draw(text)))


def test_a_search_for_slices_shows_what_it_may_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "a", 4)
    ((_, panel),) = draw(HOLE).panels
    assert isinstance(panel, Choice)
    assert panel.models == ((0, 4), (1, None))
    assert panel.facts[0] == "half of the shallowest model's to 9 layers"
    model_folder(tmp_path / "b", 6)
    ((_, panel),) = draw(HOLE).panels
    assert panel.facts == (
        "2 to 9 layers",
        "each layer up to 2 times, in any order",
        "each with a scale from 0.5 to 1.5",
    )
    assert "search: genetic, 2,000 evaluations, seed 0" in draw(HOLE).facts
    assert "  B b                      layers 0-5  ??????" in lines(draw(HOLE))
    assert len(ET.fromstring(to_svg(draw(HOLE))).findall(f".//{SVG}rect[@class='m1']")) == 1 + 6


def test_models_that_end_alike_keep_as_much_of_their_paths_as_tells_them_apart():
    text = "merge_method: linear\nmodels: [{model: /home/me/one/m}, {model: /home/me/two/m}, {model: two/n}]\n"
    assert draw(text).models == ("one/m", "two/m", "n")
    assert draw(text).facts == ("no number differs by model or layer",)
    assert short_names(["m", "x/m"]) == ("m", "x/m")


@pytest.mark.parametrize(
    "more",
    [
        "base_model: /home/me/base\nmodels: [{model: /home/me/m, parameters: {weight: 1}}]",
        "component: {language_of: /home/me/base}\nmodels: [{model: /home/me/m, parameters: {weight: 1}}]",
        "models: [{model: /home/me/a/m, parameters: {weight: 1}}, {model: /home/me/b/m, parameters: {weight: 1}}]",
    ],
)
def test_a_picture_which_is_published_shows_no_paths_of_this_machine(more: str):
    assert "/home/me" not in to_svg(draw(f"merge_method: task_arithmetic\n{more}\n"))


@pytest.mark.parametrize("text", [TIES, STACK, HOLE])
def test_an_svg_needs_nothing_else_and_has_two_palettes(text: str):
    svg = to_svg(draw(text))
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert not re.search(r"href|@import|url\((?!#)|<script|<image|<foreignObject", svg)
    assert "prefers-color-scheme: dark" in svg
    shown = {element.text for element in root.iter(f"{SVG}text")}
    assert draw(text).title in shown
    assert {heading for heading, _ in draw(text).panels} <= shown
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    for element in root.iter(f"{SVG}rect"):
        assert float(element.get("x", 0)) + float(element.get("width", 0)) <= width
        assert float(element.get("y", 0)) + float(element.get("height", 0)) <= height


def test_a_stack_as_svg_has_a_mark_for_each_layer_and_a_ring_for_each_repeat():
    root = ET.fromstring(to_svg(draw(STACK)))
    marks = [root.findall(f".//{SVG}rect[@class='{name}'][@rx='2']") for name in ("m0", "m1", "again")]
    assert [len(found) for found in marks] == [7, 3, 1 + 1]  # one ring explains the others
    assert len(root.findall(f".//{SVG}rect[@class='bar']")) == 10


HOSTILE = "<script>&\"'\x1b[31m\x00]]>"


@pytest.mark.parametrize(
    "data",
    [
        {"merge_method": "linear", "models": [{"model": HOSTILE, "parameters": {HOSTILE: [1, 2]}}]},
        {"merge_method": HOSTILE, "base_model": HOSTILE, "models": [{"model": HOSTILE, "parameters": {"weight": 1}}]},
        {
            "merge_method": "passthrough",
            "slices": [
                {
                    "sources": [
                        {
                            "model": HOSTILE,
                            "layer_range": [0, 2],
                            "parameters": {"scale": [{"filter": HOSTILE, "value": 2}]},
                        }
                    ]
                }
            ],
        },
        {"merge_method": "linear", "modules": {HOSTILE: {"models": [{"model": "a", "parameters": {"weight": 1}}]}}},
        {"merge_method": "passthrough", "slices": {"search": {"models": [HOSTILE]}}},
    ],
)
def test_names_neither_steer_a_terminal_nor_break_the_svg(data: dict):
    drawing = drawing_of(Recipe.model_validate(data))
    assert all(line.isprintable() for line in lines(drawing))
    root = ET.fromstring(to_svg(drawing))
    assert not root.findall(f".//{SVG}script")
    assert any("script" in (element.text or "") for element in root.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "recipes").glob("*.yaml")), ROOT / "recipes/mergekit"], ids=lambda path: path.stem
)
def test_every_recipe_here_is_drawn_within_80_columns(path: Path):
    for one in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
        if one.stem == "unknown-key":
            continue
        document = load(one)
        for recipe in document.stages.values() if isinstance(document, StagedRecipe) else [document]:
            drawing = drawing_of(recipe)
            assert all(len(line) <= 80 for line in lines(drawing)), one
            ET.fromstring(to_svg(drawing))
