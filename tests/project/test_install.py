"""The project as an installed package: `pip install .` in an environment of its own, then `cogvideo` anywhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("app.py", "cogvideo", "kernels", "assets", "examples", "pyproject.toml", "requirements.txt")
TEXTS = ("README.md", "LICENSE", "NOTICE")


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building leaves folders beside what it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PARTS, *TEXTS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    build = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    answer = run(sys.executable, "-m", "pip", "wheel", *build, str(source), cwd=source)
    assert answer.returncode == 0, answer.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = ["--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    answer = run(sys.executable, "-m", "pip", "install", *words, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return folder


def test_every_package_is_named() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("cogvideo", "kernels")
        for path in (ROOT / top).rglob("*.py")
    }
    assert set(settings["packages"]) == found | set(settings["package-dir"])


def test_the_wheel_has_what_runs_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("assets/mini", "assets/web", "examples/gallery"):
        for path in (ROOT / folder).iterdir():
            assert f"cogvideo/{path.relative_to(ROOT)}" in names
    assert {f"kernels/csrc/{path.name}" for path in (ROOT / "kernels" / "csrc").glob("*.[ch]")} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "docs/"))]


def test_it_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    """`pip install .`, then `cogvideo --help`, as docs/command-line.md has it."""
    command = str(installed / "bin" / "cogvideo")
    answer = run(command, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert answer.returncode == 0, answer.stderr
    assert "Usage: cogvideo COMMAND" in answer.stdout
    answer = run(command, "doctor", cwd=tmp_path, PYTHONPATH=str(installed))
    assert str(installed / "cogvideo" / "assets" / "mini") in answer.stdout
    assert "mini can run" in answer.stdout, answer.stdout


def test_the_page_finds_its_files(installed: Path, tmp_path: Path) -> None:
    code = (
        "import app, json; from cogvideo.config import ASSETS; from cogvideo.web.routes import GALLERY, load_gallery;"
        "print(json.dumps([app.__file__, str(ASSETS), str(GALLERY), len(load_gallery())]))"
    )
    answer = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count(str(installed)) == 3
    assert not answer.stdout.rstrip().endswith(", 0]")


def test_the_tests_themselves_see_the_repository() -> None:
    # An installed copy in the environment would be tested in place of what stands here.
    spec = importlib.util.find_spec("cogvideo")
    assert spec is not None
    assert spec.origin == str(ROOT / "cogvideo" / "__init__.py")
