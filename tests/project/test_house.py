"""What a newcomer meets before any model: the two commands, the pinned set, the command line, quiet imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cogvideo.cli import commands, main
from scripts.checks.protobuf import OLDEST

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("cogvideo", "kernels")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts and not path.stem.endswith("_triton")
)


def run(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, **environment)


# --- the pinned set -------------------------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", "\n".join(lines), flags=re.M))


@pytest.mark.parametrize(
    "name", ["torch", "triton", "gradio", "moviepy", "accelerate", "bitsandbytes", "SwissArmyTransformer", "icetk"]
)
def test_named_packages_are_pinned(name: str) -> None:
    assert name in pins()


def test_protobuf_is_limited_from_below_only() -> None:
    # tensorboard, wandb, onnx and Ray each demand another protobuf; icetk 0.0.5 and newer would exclude all of them.
    (protobuf,) = re.findall(r"^protobuf(.*)$", (ROOT / "requirements.txt").read_text(), flags=re.M)
    assert protobuf == f">={OLDEST}"
    assert pins()["icetk"] == "0.0.4"


def test_python_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = (ROOT / "scripts" / "find-python").read_text()
    assert project["requires-python"] == ">=3.11,<3.15"
    assert "oldest=311 newest=314" in script


# --- make -----------------------------------------------------------------------------------------------------------


def fake_python(folder: Path, name: str, version: str) -> Path:
    """An interpreter that only knows its version."""
    major, minor, _ = version.split(".")
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$2" in *platform*) echo {version};; *) echo {major}{int(minor):02d};; esac\n')
    path.chmod(0o755)
    return path


def find_python(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shell = Path("/bin/sh")
    return run(str(shell), str(ROOT / "scripts" / "find-python"), *arguments, PATH=str(tmp_path))


def test_find_python_prefers_the_tested_version(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.12.4")
    tested = fake_python(tmp_path, "python3.11", "3.11.2")
    assert find_python(tmp_path).stdout.strip() == str(tested)


def test_find_python_takes_what_it_can(tmp_path: Path) -> None:
    other = fake_python(tmp_path, "python3", "3.13.1")
    assert find_python(tmp_path).stdout.strip() == str(other)


@pytest.mark.parametrize("version", ["3.9.18", "3.10.13", "3.15.0"])
def test_find_python_refuses_and_says_what_it_saw(tmp_path: Path, version: str) -> None:
    fake_python(tmp_path, "python3", version)
    answer = find_python(tmp_path)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert f"python3={version}" in answer.stderr
    assert "需要 Python 3.11" in answer.stderr
    assert "needs Python 3.11" in answer.stderr


def test_find_python_looks_only_at_the_one_named(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3.11", "3.11.2")
    old = fake_python(tmp_path, "old", "3.8.1")
    assert find_python(tmp_path, str(old)).returncode == 1


@pytest.mark.parametrize("target", ["run", "test", "install", "check"])
def test_make_knows_its_targets(target: str, tmp_path: Path) -> None:
    plan = run("make", "-n", target, f"VENV={tmp_path / 'venv'}")
    assert plan.returncode == 0, plan.stderr
    assert "pip install -r requirements.txt" in plan.stdout


def test_make_run_installs_once(tmp_path: Path) -> None:
    # With both stamps newer than the requirements, nothing but the program is called.
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for stamp in ("bin/python", ".installed", ".installed-dev"):
        (venv / stamp).touch()
    plan = run("make", "-n", "run", f"VENV={venv}", MAKEFLAGS="", MAKELEVEL="0")  # also where make runs the tests
    assert plan.stdout.split() == [str(venv / "bin" / "python"), "app.py"]


# --- the command line -----------------------------------------------------------------------------------------------


def test_help_names_every_command_and_loads_no_model() -> None:
    answer = python(
        "import sys; from cogvideo.cli.main import main; status = main(['--help']);"
        "assert not {'torch', 'numpy', 'gradio'} & set(sys.modules); sys.exit(status)"
    )
    assert answer.returncode == 0, answer.stderr
    assert all(name in answer.stdout for name in commands.COMMANDS)


def test_unknown_command_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["genrate"]) == 2
    assert "generate?" in capsys.readouterr().err


def test_errors_for_people_come_as_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a_command.py").write_text(
        "from cogvideo.errors import RequestError\ndef main(words):\n    raise RequestError('太长', 'too long')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(commands.COMMANDS, "fail", commands.Command("a_command", "", ""))
    assert main.main(["fail"]) == 2
    assert capsys.readouterr().err == "太长\ntoo long\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    answer = run(sys.executable, "-m", "cogvideo", name, "--help")
    assert answer.returncode == 0, answer.stderr
    assert "usage" in answer.stdout.lower()


# --- imports --------------------------------------------------------------------------------------------------------


def test_transformers_is_not_misled_by_our_folder_called_kernels() -> None:
    # transformers asks which version of a package called `kernels` is there, and would import from it.
    answer = python(
        "from cogvideo import compat; compat.prepare();"
        "import kernels, transformers; from transformers import PreTrainedModel;"
        "from transformers.utils import import_utils;"
        "assert not import_utils.is_kernels_available(); print(kernels.__file__)"
    )
    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.splitlines()[-1]).parent == ROOT / "kernels"


def test_the_other_kernels_package_does_no_harm(tmp_path: Path) -> None:
    # Somebody who installs into an environment that has the package of that name: what we import still works.
    info = tmp_path / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    answer = python(
        "import importlib.metadata as m; assert m.version('kernels') == '0.18.2';"
        "from cogvideo import compat; compat.prepare();"
        "import sat, icetk.text_tokenizer, accelerate, bitsandbytes, gradio, transformers",
        PYTHONPATH=str(tmp_path),
    )
    assert answer.returncode == 0, answer.stderr


WATCH = """
import sys, threading
ROOT = {root!r}
WATCHED = {{"open", "os.mkdir", "os.remove", "os.rename", "socket.connect", "socket.bind", "subprocess.Popen"}}
faults = []

def ours(frame):
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib") or "/importlib/" in name or "site-packages" in name:
            return None
        if name.startswith(ROOT):
            return f"{{name}}:{{frame.f_lineno}}"
        frame = frame.f_back

def hook(event, arguments):
    if event == "open" and str(arguments[0]) == ROOT + "cogvideo/messages.json":
        return  # the sentences, which constants of modules hold
    if event in WATCHED and (place := ours(sys._getframe(1))):
        faults.append(f"{{event}} {{arguments[:1]}} at {{place}}")

sys.addaudithook(hook)
sys.argv = ["program", "--an-argument-of-the-caller"]
import random, numpy, torch, gradio  # what gradio draws at its own import is its own affair
before = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
threads = set(threading.enumerate())
import importlib
for module in {modules!r}:
    importlib.import_module(module)
    after = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    assert after == before, module + " draws random numbers or seeds"
    assert not torch.cuda.is_initialized(), module + " starts CUDA"
    assert not torch.distributed.is_initialized(), module + " opens a process group"
    ours_started = [t for t in set(threading.enumerate()) - threads if t.name.startswith("cogvideo")]
    assert not ours_started, module + " starts a thread"
assert not faults, faults
"""


def test_nothing_happens_at_import() -> None:
    modules = [module for module in MODULES if not module.endswith("__main__")]
    answer = python(WATCH.format(root=str(ROOT) + "/", modules=modules))
    assert answer.returncode == 0, answer.stderr
