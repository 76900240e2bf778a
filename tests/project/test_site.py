"""`make docs`: a site without a warning, a page for every module, nothing that is fetched from elsewhere."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. The builder has no torch to import: it reads the code, as on a machine with nothing installed."""
    out = tmp_path_factory.mktemp("site")
    code = (
        "import runpy, sys; sys.modules.update(torch=None, gradio=None, numpy=None);"
        f"sys.argv = ['build_site.py', '--out', {str(out)!r}];"
        f"runpy.run_path({str(ROOT / 'scripts' / 'docs' / 'build_site.py')!r}, run_name='__main__')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=550, check=False, cwd=ROOT
    )
    assert answer.returncode == 0, answer.stderr
    assert "WARNING" not in answer.stderr
    return out


def modules() -> list[str]:
    paths = [path for package in ("cogvideo", "kernels") for path in (ROOT / package).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))


def test_every_module_has_a_page_with_what_its_docstring_says(site: Path) -> None:
    for name in modules():
        page = (site / "reference" / f"{name}.html").read_text(encoding="utf-8")
        assert f"<title>{name} - " in page, name
    layout = (site / "reference" / "cogvideo.token_layout.html").read_text(encoding="utf-8")
    for word in ("wavefront_lag", "Slots by which a generated frame of stage 2 must follow", "start_of_image"):
        assert word in layout


def test_the_documents_are_pages_in_both_languages(site: Path) -> None:
    for name in ("index", "README_zh", "docs/how-it-works", "docs/how-it-works_zh", "docs/training", "CONTRIBUTING"):
        assert (site / f"{name}.html").is_file(), name
    english = (site / "docs" / "how-it-works.html").read_text(encoding="utf-8")
    for drawing in re.findall(r'src="([^"]+\.svg)"', english):
        assert (site / "docs" / drawing).resolve().is_file(), drawing
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any("双通道注意力" in entry["title"] for entry in index["docs"])


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source|video)[^>]*\ssrc="([^"]+)"', text)
        loaded += re.findall(r'<link(?=[^>]*rel="(?:stylesheet|preconnect|icon)")[^>]*href="([^"]+)"', text)
        elsewhere = [address for address in loaded if re.match(r"(https?:)?//", address)]
        assert not elsewhere, (page, elsewhere)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_names_of_control_tokens_in_docstrings_are_no_markup() -> None:
    # A browser would take <n> for a tag and show nothing.
    for name in modules():
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            strings = [node.value.value] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else []
            for text in filter(lambda value: isinstance(value, str), strings):
                plain = re.sub(r"`[^`]*`", "", str(text))
                assert not re.search(r"<[a-z_]+>", plain), (name, plain)
