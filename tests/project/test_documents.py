"""What the documents say to type works: every command and every Python block is run, or says what it needs.

A block in a document may have a comment right above it: `<!-- needs: gpu, 43 GB -->` (see `documents.NEEDS`), or
`<!-- run by: tests/test_x.py::test_y -->` where another test, or `.ci/run`, runs it. All others are run here.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest

from cogvideo.cli import commands as cli_commands
from cogvideo.cli import main
from cogvideo.cli.serve import parser as page_parser
from cogvideo.media.metadata import read_metadata
from tests.support.documents import (
    NEEDS,
    ROOT,
    Block,
    blocks,
    documents,
    figures,
    inline_commands,
    links,
    names,
    outline,
    pairs,
    read,
)
from tests.support.ports import free_port

BASH = [block for name in documents() for block in blocks(name, "bash")]
PYTHON = [block for name in documents() for block in blocks(name, "python")]
FREE = sorted({command for block in BASH if block.free for command in block.commands()})
SERVER = ("python", "app.py", "--host", "0.0.0.0")


# --- every command is accounted for ---------------------------------------------------------------------------------


def test_documents_are_found() -> None:
    assert {"README.md", "README_zh.md", "CONTRIBUTING.md", "docs/training.md", "examples/README.md"} <= set(
        documents()
    )
    assert len(BASH) > 20
    assert len(FREE) >= 8


@pytest.mark.parametrize("name", documents())
def test_every_block_says_what_it_is(name: str) -> None:
    text = read(name)
    assert text.count("```") % 2 == 0
    fences = re.findall(r"^ *```(\w*)$", text, flags=re.M)[::2]
    assert set(fences) <= {"", "bash", "python", "bibtex", "json", "toml", "yaml"}, name
    for line in re.findall(r"^<!-- (?:needs|run by):[^\n]*", text, flags=re.M):
        assert re.search(re.escape(line) + r"\n```(bash|python)\n", text), f"{name}: {line} stands above no block"


@pytest.mark.parametrize("block", [b for b in BASH + PYTHON if b.needs], ids=lambda b: f"{b.document}: {b.needs}")
def test_needs_are_known_words_and_the_commands_exist(block: Block) -> None:
    assert set(block.needs) <= NEEDS
    for words in block.commands():
        assert_understood(words)


def runner(where: str, words: Sequence[str], document: str) -> bool:
    """Whether the test (or script) named `where` exists and runs a command: it reads the document, or names it."""
    path, _, function = where.partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    if function:
        names = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
        assert function in names, f"{document}: there is no {where}"
    if words[1] == "-m" and words[2] != "cogvideo":
        return document in source or words[2] in source
    spoken = " ".join(words[:2])
    return document in source or spoken in source or ", ".join(f'"{word}"' for word in words[:2]) in source


@pytest.mark.parametrize("block", [b for b in BASH if b.run_by], ids=lambda b: f"{b.document}: {b.run_by[0]}")
def test_whoever_is_said_to_run_a_block_does(block: Block) -> None:
    for words in block.commands():
        assert_understood(words)
        english = block.document.replace("_zh.md", ".md")  # tests take one of two documents with the same commands
        assert any(runner(where, words, english) for where in block.run_by), (block.document, words)


@pytest.mark.parametrize("name", documents())
def test_commands_in_running_text_exist(name: str) -> None:
    for words in inline_commands(name):
        assert_understood(words)


def assert_understood(words: Sequence[str]) -> None:
    """A command that is not run here has at least a name and options that exist."""
    match words:
        case ["python", "-m", "cogvideo", *rest] | ["cogvideo", *rest]:
            assert not rest or rest[0] in (*cli_commands.COMMANDS, "COMMAND", "--help", "--version"), words
            if rest and rest[0] in cli_commands.COMMANDS:
                known = cli_commands.COMMANDS[rest[0]].parser()._option_string_actions
                unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in known]
                assert not unknown, (words, unknown)
        case ["accelerate" | "torchrun", *rest]:
            if "-m" in rest:  # else it is only spoken of
                assert_understood(["python", *rest[rest.index("-m") :]])
        case ["python", "-m", module, *_]:
            place = ROOT.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), words
        case ["python", "app.py", *rest]:
            assert "--help" in rest or page_parser().parse_args(rest)
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), words
        case ["make", *rest]:
            targets = [word for word in rest if "=" not in word]
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets), words
            if "run" in targets:
                options = [shlex.split(word.removeprefix("ARGS=")) for word in rest if word.startswith("ARGS=")]
                assert all(page_parser().parse_args(some) for some in options)
        case ["pip", "install", *rest]:
            files = [file for option, file in pairwise(rest) if option == "-r"]
            assert all((ROOT / file).is_file() for file in files), words
        case ["docker", *_]:
            assert (ROOT / "Dockerfile").is_file()
        case ["curl", "-s", _, "--json", body]:
            assert json.loads(body)["data"], words
        case [script, *_] if "/" in script:
            assert (ROOT / script).is_file(), words
        case _:
            pytest.fail(f"nobody knows the command {shlex.join(words)}")


# --- the commands run -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place to type in, from which the examples can be seen."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("COGVIDEO_MODEL", "COGVIDEO_MEMORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "nothing"))  # mini, also where the published model is at hand
    return tmp_path


@pytest.mark.parametrize("words", FREE, ids=shlex.join)
def test_the_command_runs(words: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(folder.rglob("*"))
    match words:
        case ["python", "-m", "cogvideo", "serve", *_] | ["python", "app.py", *_]:
            with serving(folder, [sys.executable, *at_home(words[1:])]) as url:
                assert "gradio" in urlopen(url).read().decode()
        case ["python", "-m", "cogvideo", *rest] | ["cogvideo", *rest]:
            assert main.main(rest) == 0
        case ["python", script, *rest]:
            monkeypatch.setattr(sys, "argv", [script, *rest])
            monkeypatch.setattr(sys, "path", [*sys.path])
            assert run_script(ROOT / script) == 0
        case [script, *rest] if script.startswith("scripts/"):
            environment = os.environ | {"PYTHON": sys.executable}
            assert (
                subprocess.run([str(ROOT / script), *rest], env=environment, timeout=300, check=False).returncode == 0
            )
        case _:
            pytest.fail(f"say what {shlex.join(words)} needs, or which test runs it")
    made = {path for path in set(folder.rglob("*")) - before if path.suffix in (".mp4", ".gif")}
    assert made or not {"generate", "examples/ten_lines.py", "examples/batch.py"} & set(words)
    assert all(read_metadata(path) is not None or path.stat().st_size > 1000 for path in made)


def run_script(path: Path) -> int:
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def at_home(words: Sequence[str]) -> list[str]:
    """The words of a command that is run in another folder than the project's."""
    return [str(ROOT / word) if word == "app.py" else word for word in words]


@contextmanager
def serving(folder: Path, command: Sequence[str]) -> Iterator[str]:
    """A page that was started by a command, with a port and a data folder of its own; its address. Ended afterwards."""
    port = free_port()
    extra = ["--port", str(port), "--data", str(folder / "data"), "--device", "cpu", "--no-browser"]
    if "make" in command[0]:
        words = [*command, f"ARGS={shlex.join(extra)}"]
    else:
        words = [*command, *extra]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout
        said = []
        for line in server.stdout:
            said.append(line)
            if f":{port}" in line and "http" in line:
                break
        else:
            pytest.fail(f"{shlex.join(words)} ended:\n{''.join(said)}")
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.stdout.read()


def test_make_run_opens_the_page(folder: Path) -> None:
    # `make run` with everything installed: an environment whose interpreter is this one.
    (folder / "venv" / "bin").mkdir(parents=True)
    python = folder / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / "venv" / ".installed").touch()
    make = shutil.which("make")
    assert make
    for name in ("MAKEFLAGS", "MAKELEVEL"):
        os.environ.pop(name, None)
    with serving(folder, [make, "-C", str(ROOT), "run", f"VENV={folder / 'venv'}"]) as url:
        assert "gradio" in urlopen(url).read().decode()


# --- Python, here and from another machine --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document", sorted({b.document for b in PYTHON if b.free and b.document not in dict(pairs()).values()})
)
def test_the_python_of_a_document_runs(document: str, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document, "python"):
        if block.free:
            exec(compile(block.text, document, "exec"), names)
    assert any(path.suffix in (".mp4", ".gif") for path in folder.iterdir())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page as the documents start it for other machines."""
    assert SERVER in {command for block in blocks("docs/programs.md", "bash") for command in block.commands()}
    with serving(tmp_path_factory.mktemp("page"), [sys.executable, *at_home(SERVER[1:])]) as url:
        yield url


def test_another_machine_gets_its_film(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [words for block in blocks("examples/README.md", "bash") for words in block.commands()]
    ((_, script, *rest),) = [words for words in commands if words[1] == "examples/api.py"]
    (address,) = [word for word in rest if word.startswith("http")]
    monkeypatch.setattr(sys, "argv", [script, *(page if word == address else word for word in rest)])
    assert run_script(ROOT / script) == 0
    assert (read_metadata(folder / "panda.mp4") or {})["frames"] == 5


def test_the_client_in_the_document_gets_its_film(page: str, folder: Path) -> None:
    (block,) = [block for block in blocks("docs/programs.md", "python") if block.run_by]
    names: dict[str, object] = {}
    exec(compile(block.text.replace("http://127.0.0.1:7860/", page), block.document, "exec"), names)
    mp4 = names["mp4"]
    assert isinstance(mp4, bytes)
    assert mp4[4:8] == b"ftyp"


def test_curl_in_the_document_asks_and_looks(page: str) -> None:
    (block,) = [block for block in blocks("docs/programs.md", "bash") if "curl" in block.text]
    film = {"id": "ID"}
    for _, _, address, _, body in block.commands():
        address, body = address.replace("http://127.0.0.1:7860/", page), body.replace("ID", film["id"])
        answer = httpx.post(address, content=body, headers={"Content-Type": "application/json"}, timeout=300)
        assert answer.status_code == 200, answer.text
        (film,) = answer.json()["data"]
    assert film["status"] in ("queued", "running", "done")


# --- two languages, links, names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("english", "chinese"), pairs())
def test_both_languages_say_to_type_the_same(english: str, chinese: str) -> None:
    for language in ("bash", "python"):
        ours, theirs = blocks(english, language), blocks(chinese, language)
        assert [(list(b.commands()) if language == "bash" else b.text) for b in ours] == [
            (list(b.commands()) if language == "bash" else b.text) for b in theirs
        ]
        assert [(b.needs, b.run_by) for b in ours] == [(b.needs, b.run_by) for b in theirs]
    ours, theirs = ({re.sub(r"_(zh|en)\.", ".", link) for link in links(name)} for name in (english, chinese))
    assert ours == theirs


@pytest.mark.parametrize(("english", "chinese"), pairs())
def test_both_languages_tell_the_same(english: str, chinese: str) -> None:
    assert outline(english) == outline(chinese)
    assert {name for name in names(english) ^ names(chinese) if not name.startswith("This needs")} == set()
    assert figures(english) == figures(chinese)


@pytest.mark.parametrize("name", documents())
def test_every_file_that_is_named_exists(name: str) -> None:
    missing = {link for link in links(name) if not (ROOT / link).exists()}
    written = re.findall(r"`((?:cogvideo|kernels|tests|scripts|examples|docs|assets)/[\w./*-]*\w)`", read(name))
    missing |= {path for path in written if not list(ROOT.glob(path))}
    assert not missing


@pytest.mark.parametrize("name", ["docs/troubleshooting.md", "docs/troubleshooting_zh.md"])
def test_what_people_met_with_the_release_is_found_by_what_they_saw(name: str) -> None:
    rows = re.findall(r"^\| (.+?) \| ", read(name), flags=re.M)
    seen = "\n".join(rows)  # the first column alone: what somebody looks for
    for symptom in (
        *(
            "CUDA out of memory",
            "3090",
            "4090",
            "16 GB",
            "T4",
            "localAttention",
            "nvcc",
            "Descriptors",
            "tkinter",
            "cv2",
        ),
        *("/sharefs", "Could not find a version", "zip file", "ice_text.model", "IndexError"),
        *("Hugging Face", "Colab", "API", "gif", "33"),
    ):
        assert symptom in seen, symptom


@pytest.mark.parametrize("name", [n for n in documents() if n.startswith(("docs/page", "docs/troubleshooting"))])
def test_buttons_that_are_named_are_on_the_page(name: str) -> None:
    buttons = re.findall(r"“(.+?)”", read(name))
    strings = read("cogvideo/messages.json")
    assert buttons
    assert not [button for button in buttons if button not in strings]
