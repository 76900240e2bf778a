"""What the two READMEs promise exists: commands, options, files; and the examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cogvideo.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = "README.md", "README_zh.md"
EXAMPLE = Path("examples/ten_lines.py")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(name), flags=re.M | re.S)


def commands(name: str) -> list[list[str]]:
    """The words of every command that a README shows, in a block or between backticks."""
    lines = "\n".join(blocks(name, "bash")).splitlines() + re.findall(r"`((?:python|make|pip) [^`\n]+)`", text(name))
    parts = [part for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True) for part in parts if part.strip()]


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_readme_begins_with_its_title(name: str) -> None:
    assert text(name).startswith("# ")  # the metadata of the Space is in scripts/build_space.py


def test_every_command_is_told_of() -> None:
    shown = {words[3] for words in commands("docs/command-line.md") if words[:3] == ["python", "-m", "cogvideo"]}
    assert set(COMMANDS) == shown - {"COMMAND"}


def test_example_prompts_are_within_minis_world() -> None:
    from cogvideo.config import PRESETS
    from cogvideo.pipeline import CogVideoPipeline
    from cogvideo.request import VideoRequest

    pipeline = CogVideoPipeline.from_pretrained("mini", device="cpu")
    lines = [line for line in text("examples/prompts.txt").splitlines() if line and not line.startswith("#")]
    assert len(lines) >= 10
    assert pipeline.preset == PRESETS["mini"]
    for line in lines:
        assert not pipeline.check_inputs(VideoRequest(line)).notes, line


def run_python(code: str, folder: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert (folder / "panda.mp4").stat().st_size > 1000


def test_the_lines_of_the_readme_make_a_film(tmp_path: Path) -> None:
    (code,) = blocks(ENGLISH, "python")
    assert len(code.strip().splitlines()) <= 10
    run_python(code, tmp_path)


def test_the_example_makes_a_film(tmp_path: Path) -> None:
    run_python(f"import runpy; runpy.run_path({str(ROOT / EXAMPLE)!r})", tmp_path)
