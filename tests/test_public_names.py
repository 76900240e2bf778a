"""The names of `cogvideo`: each loads on first use, and importing the package loads none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cogvideo

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_is_the_object_of_its_module() -> None:
    assert sorted(cogvideo._OWNERS) == sorted(cogvideo.__all__)
    for name, module in cogvideo._OWNERS.items():
        value = getattr(cogvideo, name)
        assert value is getattr(sys.modules[module], name)
        assert name in dir(cogvideo)


def test_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse((ROOT / "cogvideo" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imports == cogvideo._OWNERS


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        cogvideo.Pipeline  # noqa: B018


def test_import_loads_neither_torch_nor_submodules() -> None:
    code = (
        "import sys, cogvideo; "
        "print([m for m in sys.modules if m.startswith('cogvideo.') or m.split('.')[0] in ('torch', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_examples_and_documents_import_public_names_alone() -> None:
    patterns = ("README*.md", "docs/*.md", "examples/*.py", "examples/*.ipynb")
    texts = [path for pattern in patterns for path in ROOT.glob(pattern)]
    inner = [
        f"{path.name}: {line.strip()}"
        for path in texts
        for line in path.read_text(encoding="utf-8").splitlines()
        if "from cogvideo." in line or "import cogvideo." in line
    ]
    assert inner == []
