"""The import rules of pyproject.toml hold, and would be seen to break."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"

FORBIDDEN = {
    "Imports point down": ("cogvideo/media/video.py", "cogvideo.jobs.queue"),
    "Only web imports gradio, starlette and segno": ("cogvideo/config.py", "gradio"),
    "The page computes nothing": ("cogvideo/web/form.py", "cogvideo.models.video_lm"),
    "kernels never imports cogvideo": ("kernels/reference.py", "cogvideo.errors"),
    "Only sat_adapter imports sat": ("cogvideo/models/base.py", "sat"),
    "Only tokenizers imports icetk": ("cogvideo/models/vqvae.py", "icetk"),
    "Core, media and memory estimates import no torch": ("cogvideo/request.py", "torch"),
    "Of the models only loader and convert read weights": ("cogvideo/models/base.py", "cogvideo.weights.checkpoint"),
    "Stages and decoding never place or load a model": ("cogvideo/inference/decoding.py", "cogvideo.runtime.device"),
    "One stage never imports another": ("cogvideo/inference/keyframes.py", "cogvideo.inference.interpolation"),
    "Training needs nothing of inference": ("cogvideo/training/trainer.py", "cogvideo.inference.decoding"),
    "Inference needs nothing of training": ("cogvideo/pipeline.py", "cogvideo.training.trainer"),
    "No circles between the modules of kernels": ("kernels/reference.py", "kernels.sandwich_norm"),
}
"""Contract -> a file and the module that it must not import."""


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


def test_every_contract_is_broken_by_an_import_that_it_forbids(tmp_path: Path) -> None:
    for name in ("cogvideo", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, module in FORBIDDEN.values():
        with (tmp_path / path).open("a", encoding="utf-8") as file:
            file.write(f"\nimport {module}\n")
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert {contract["name"] for contract in tools["importlinter"]["contracts"]} == set(FORBIDDEN)
    answer = lint(tmp_path)
    assert answer.returncode == 1
    assert [name for name in FORBIDDEN if f"{name} BROKEN" not in answer.stdout] == []


def test_app_imports_neither_models_nor_their_packages() -> None:
    # The worker of cogvideo.jobs.service owns the model; app.py is one file, which the linter cannot take.
    working = {"inference", "pipeline", "models", "tokenizers", "training", "weights", "runtime"}
    forbidden = {"torch", "gradio", "sat", "icetk", "kernels"} | {f"cogvideo.{name}" for name in working}
    found = {name for name in imported(ROOT / "app.py") for bad in forbidden if (name + ".").startswith(bad + ".")}
    assert not found


def without_torch() -> list[str]:
    """Modules that the page and the start of every command import."""
    core = "errors token_frames config compat events token_layout request"
    single = "weights.catalog weights.http_download runtime.memory_estimate runtime.memory_presets cli.main"
    paths = [path for folder in ("jobs", "web", "media") for path in (ROOT / "cogvideo" / folder).glob("*.py")]
    paths += (ROOT / "cogvideo" / "cli").glob("*_args.py")
    return [f"cogvideo.{name}" for name in f"{core} {single}".split()] + sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem != "__init__"
    )


def test_modules_of_the_page_and_of_the_command_line_import_no_torch() -> None:
    code = f"""
import importlib, sys
for name in {without_torch()}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
