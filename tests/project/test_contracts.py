"""The import rules of pyproject.toml hold, and would be seen to break."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_contracts_are_kept() -> None:
    answer = lint(ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_a_broken_contract_is_seen(tmp_path: Path) -> None:
    for name in ("cogvideo", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    config = tmp_path / "cogvideo" / "config.py"
    config.write_text(config.read_text() + "\nimport gradio\n")
    answer = lint(tmp_path)
    assert answer.returncode == 1
    assert "The library knows no page BROKEN" in answer.stdout


def test_the_page_computes_nothing() -> None:
    # The worker of cogvideo.jobs.service owns the model; the page only shows what the worker writes down.
    working = {"stages", "decode", "pipeline", "models", "frames", "sampling", "training", "weights", "device", "text"}
    forbidden = {"torch", "sat", "icetk", "kernels"} | {f"cogvideo.{name}" for name in working}
    found = {name for name in imported(ROOT / "app.py") for bad in forbidden if (name + ".").startswith(bad + ".")}
    assert not found
