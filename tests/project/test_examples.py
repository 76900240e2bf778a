"""What lies in examples/ works: the seven uses, a table of films, the notebook.

The others have tests of their own:
ten_lines.py in test_readme.py, api.py in test_page_data.py, the recipes and moving_square.py in test_tutorial.py.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from cogvideo.config import PRESETS
from cogvideo.media.metadata import read_metadata
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest
from cogvideo.tokenizers.prompt import clean_prompt
from examples import batch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
USES = ["新闻", "电影和游戏预览", "教育", "建筑", "虚拟现实", "营销", "个性化"]


@pytest.fixture(scope="module")
def mini() -> CogVideoPipeline:
    return CogVideoPipeline.from_pretrained("mini", device="cpu")


def by_use(name: str) -> dict[str, list[str]]:
    """Use -> its sentences, in the order of the file."""
    uses: dict[str, list[str]] = {}
    for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# ([\u4e00-\u9fff]+) ", line):
            uses[heading[1]] = []
        elif line and not line.startswith("#"):
            uses[list(uses)[-1]].append(line)
    return uses


def test_every_use_has_a_sentence_that_mini_knows(mini: CogVideoPipeline) -> None:
    uses = by_use("seven_uses.txt")
    assert list(uses) == USES
    for sentences in uses.values():
        (sentence,) = sentences
        assert not mini.check_inputs(VideoRequest(sentence)).notes, sentence


def test_every_use_has_sentences_for_the_published_model() -> None:
    uses = by_use("seven_uses_cogvideo.txt")
    assert list(uses) == USES
    room = PRESETS["cogvideo"].model.text_length - 8  # a duration and the suffix take less
    for sentences in uses.values():
        assert len(sentences) == len(set(sentences)) == 3
        for sentence in sentences:
            assert clean_prompt(sentence) == (sentence, [])
            assert len(sentence) <= room


def test_a_table_becomes_films_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.main(EXAMPLES / "batch.csv", tmp_path) == 0
    films = {path.name: read_metadata(path) for path in tmp_path.iterdir()}
    assert sorted(films) == ["boat.gif", "panda.mp4", "rocket.mp4"]
    assert (tmp_path / "boat.gif").read_bytes().startswith(b"GIF89a")
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert batch.main(EXAMPLES / "batch.csv", tmp_path) == 0
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_row_that_cannot_be_drawn_is_told_of_and_stays_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("file,prompt,frames\n../../out.mp4,一只熊猫在草地上跳,5\nbad.mp4,a panda,5\n", encoding="utf-8")
    assert batch.main(table, tmp_path / "films") == 2
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["out.mp4"]
    told = capsys.readouterr().err
    assert "bad.mp4" in told
    assert "Chinese" in told


def notebook() -> NotebookNode:
    return nbformat.read(EXAMPLES / "cogvideo.ipynb", as_version=4)


def test_the_notebook_is_kept_without_its_outputs() -> None:
    nbformat.validate(notebook())
    for cell in notebook().cells:
        assert not cell.get("outputs"), cell.source
        assert cell.get("execution_count") is None


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = notebook()
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [kind for cell in book.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 6  # five keyframes and the sheet
    assert "image/svg+xml" in kinds
    assert (tmp_path / "panda.mp4").stat().st_size > 1000
    assert any("[9, 64, 64, 3]" in cell.source for cell in book.cells)
    shown = [str(output.get("data", {}).get("text/plain")) for cell in book.cells for output in cell.get("outputs", [])]
    assert "(9, 64, 64, 3)" in shown
