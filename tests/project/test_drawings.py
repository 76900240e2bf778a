"""The drawings of docs/ are what the code says today, well-formed, in both languages, and alike on every machine."""

from __future__ import annotations

import importlib
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(f"scripts.docs.{path.stem}" for path in (ROOT / "scripts" / "docs").glob("draw_*.py"))
SVG = "{http://www.w3.org/2000/svg}"


def drawings() -> dict[str, str]:
    """File name -> what its script makes."""
    modules = [importlib.import_module(name) for name in SCRIPTS]
    return {
        f"{name}_{language}.svg": draw(language)
        for module in modules
        for name, draw in module.DRAWINGS.items()
        for language in ("en", "zh")
    }


def test_the_committed_drawings_are_what_the_scripts_make() -> None:
    made = drawings()
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "drawings").glob("*.svg")}
    assert sorted(made) == sorted(kept)
    old = [name for name in made if made[name] != kept[name]]
    assert not old, f"run `make drawings`: {old} are of another day"


def test_every_drawing_names_itself_and_stays_within_its_paper() -> None:
    for name, text in drawings().items():
        root = ET.fromstring(text)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        assert root.findtext(f"{SVG}title"), name
        words = root.findall(f"{SVG}text")
        assert len(words) > 3, name
        for part in words:
            x, y = float(part.attrib["x"]), float(part.attrib["y"])
            wide = sum(1.0 if ord(c) > 0x2000 else 0.56 for c in part.text or "") * float(part.attrib["font-size"])
            start = x - {"start": 0.0, "middle": wide / 2, "end": wide}[part.attrib["text-anchor"]]
            assert start >= 0, (name, part.text)
            assert start + wide <= width, (name, part.text)
            assert 0 < y < height, (name, part.text)
        assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), name


def test_a_changed_geometry_changes_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = importlib.import_module("scripts.docs.draw_attention")
    before = attention.windows("en")
    monkeypatch.setattr(attention.TokenLayout, "shift", lambda self, layer: 0)
    assert attention.windows("en") != before


def test_a_mask_is_drawn_cell_by_cell() -> None:
    drawing = importlib.import_module("scripts.docs.drawing")
    canvas = drawing.Drawing(10, 10, "a mask")
    canvas.mask(0, 0, 2, np.array([[True, True, False], [False, False, True]]), "red")
    assert canvas.parts == ['<path d="M0 0h4v2h-4zM4 2h2v2h-2z" fill="red"/>']


def test_speculation_is_drawn_from_the_tokens_of_one_by_one() -> None:
    steps = importlib.import_module("scripts.docs.draw_steps")
    ahead, tokens = steps.speculation_steps(8)
    one_by_one, expected = steps.speculation_steps(1)
    assert tokens == expected
    assert len(ahead) < len(one_by_one) == 16
    assert sum(kept for *_, kept in ahead) == 16


def test_the_scripts_write_where_the_documents_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawing = importlib.import_module("scripts.docs.drawing")
    monkeypatch.setattr(drawing, "ROOT", tmp_path)
    monkeypatch.setattr(drawing, "FOLDER", tmp_path / "docs" / "drawings")
    monkeypatch.setattr(sys, "stdout", sys.stderr)
    drawing.write({"dot": lambda language: f"<svg>{language}</svg>"})
    assert (tmp_path / "docs" / "drawings" / "dot_zh.svg").read_text() == "<svg>zh</svg>"


def test_imports_for_the_type_checker_are_no_arrows_and_those_in_functions_are() -> None:
    packages = importlib.import_module("scripts.docs.draw_packages")
    source = (
        "from typing import TYPE_CHECKING\nimport json\nfrom cogvideo import config\nimport kernels.w8a16\n"
        "if TYPE_CHECKING:\n    from cogvideo.models.base import TokenModel\n"
        "def load() -> None:\n    from cogvideo.weights.checkpoint import load_tensor\n"
    )
    assert set(packages.imported(source)) == {"config", "kernels", "weights"}


def test_an_arrow_that_follows_from_others_is_left_out() -> None:
    packages = importlib.import_module("scripts.docs.draw_packages")
    graph = {"a": frozenset("bcd"), "b": frozenset("c"), "c": frozenset("d"), "d": frozenset[str]()}
    assert packages.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


def test_every_drawn_import_points_down() -> None:
    packages = importlib.import_module("scripts.docs.draw_packages")
    row = {name: i for i, names in enumerate(packages.layers()) for name in names}
    graph = packages.import_graph()
    assert sum(map(len, graph.values())) > 60
    assert not [(name, target) for name in graph for target in graph[name] if row[name] >= row[target]]
