"""The command line as scripts see it: exit statuses, events, completion."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cogvideo.cli import bench, commands, console, convert, evaluate, main

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A command called `odd` whose main has this body."""
    (tmp_path / "an_odd_command.py").write_text(f"from cogvideo.errors import *\ndef main(words):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "an_odd_command", raising=False)
    monkeypatch.setitem(commands.COMMANDS, "odd", commands.Command("an_odd_command", "", ""))


def status_of(words: list[str]) -> int:
    """What the shell sees; `kernels` knows nothing of our errors and ends the process itself."""
    try:
        return main.main(words)
    except SystemExit as end:
        return int(end.code or 0)


def events(text: str) -> list[dict[str, Any]]:
    """Standard output of a command with --json: nothing but objects, a line each."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return None", 0),
        ("return 1", 1),
        ("raise CapacityError('小', 'small')", 2),
        ("raise WeightsError('缺', 'missing')", 2),
        ("raise KeyError('x')", 70),
        ("raise KeyboardInterrupt", 130),
        ("raise Cancelled", 130),
    ],
)
def test_exit_statuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: int) -> None:
    command(tmp_path, monkeypatch, body)
    assert main.main(["odd"]) == status


def test_a_fault_shows_where_it_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path, monkeypatch, "raise KeyError('the thing')")
    main.main(["odd", "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert "the thing" in err
    assert events(out)[-1]["exit"] == 70


def test_a_refusal_is_an_event_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path, monkeypatch, "raise RequestError('太长', 'too long')")
    assert main.main(["odd", "--json"]) == 2
    out, err = capsys.readouterr()
    assert events(out) == [
        {"type": "error", "event": "error", "kind": "RequestError", "zh": "太长", "en": "too long", "exit": 2}
    ]
    assert err == "太长\ntoo long\n"


def test_without_json_standard_output_has_no_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path, monkeypatch, "raise RequestError('太长', 'too long')")
    main.main(["odd"])
    assert capsys.readouterr().out == ""


def test_a_reader_that_goes_away_is_no_fault() -> None:
    # `cogvideo completion bash | head -1`
    code = (
        "import sys; from cogvideo.cli import completion, main as cli\n"
        "completion.main = lambda words: [print('x' * 4096) for _ in range(64)] and 0\n"
        "sys.exit(cli.main(['completion', 'bash']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == console.CLOSED


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_wrong_words_end_in_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([name, "--no-such-option"]) == 2
    zh, en = capsys.readouterr().err.splitlines()
    assert zh.startswith("参数有误")
    assert en.startswith("Wrong arguments")


@pytest.mark.parametrize(("name", "word"), [("generate", "--fram=5"), ("serve", "--por=1"), ("kernels", "--sha=toy")])
def test_options_are_not_abbreviated(name: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([name, word]) == 2
    assert word.split("=")[0] in capsys.readouterr().err


def test_app_py_refuses_as_the_commands_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "--port", "70000"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    assert end.value.code == console.REQUEST_ERROR
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_version() -> None:
    answer = subprocess.run([sys.executable, "-m", "cogvideo", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.split()[0] == "cogvideo"
    assert answer.returncode == 0


def test_generate_speaks_to_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m cogvideo generate ... --json`, as docs/command-line.md has it."""
    monkeypatch.chdir(tmp_path)
    words = [
        "一只熊猫在草地上向右跑",
        "--model",
        "mini",
        "--frames",
        "5",
        "--seed",
        "7",
        "--json",
        "--output",
        "panda.mp4",
    ]
    assert main.main(["generate", *words]) == 0
    heard = events(capsys.readouterr().out)
    progress = [event for event in heard if event["type"] == "progress"]
    assert [event["index"] for event in heard if event["type"] == "keyframe"] == [0, 1, 2, 3, 4]
    (first_round,) = (event for event in heard if event["type"] == "round")
    assert first_round == {"type": "round", "event": "level", "round": 0, "level": 0, "frames": 5}
    assert progress[-1]["done"] == progress[-1]["total"] == 5 * 64
    assert len(progress) <= 101
    assert heard[-2] == {"type": "file", "event": "file", "path": "panda.mp4", "seed": 7}
    assert heard[-1] == {"type": "result", "event": "done", "seed": 7, "frames": 5, "seconds": 4.0}
    assert (tmp_path / "panda.mp4").stat().st_size > 1000


def test_convert_speaks_to_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main([str(GOLDEN), str(tmp_path / "out"), "--json"]) == 0
    (done,) = events(capsys.readouterr().out)
    assert (done["type"], done["event"]) == ("result", "done")
    assert done["folder"] == str(tmp_path / "out")
    assert 0 < done["after"] <= done["before"]


def test_evaluate_speaks_to_scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(evaluate, "EVALUATION_PARTS", {"judge": lambda _: print("a table") or {"all": {"clips": 3}}})
    assert evaluate.main(["--parts", "judge", "--json"]) == 0
    out, err = capsys.readouterr()
    told, done = events(out)
    assert told == {
        "type": "figures",
        "event": "figures",
        "part": "judge",
        "evaluation": "judge",
        "figures": {"all": {"clips": 3}},
    }
    assert done["parts"] == ["judge"]
    assert "a table" in err


def test_bench_takes_a_file_or_speaks_to_scripts() -> None:
    parser = bench.parser()
    assert parser.parse_args([]).json is None
    assert parser.parse_args(["--json"]).json == bench.STREAM
    assert parser.parse_args(["--json", "x.json"]).json == Path("x.json")


@pytest.mark.parametrize(("status", "state"), [("ok", "ok"), ("note", "note"), ("error", "bad")])
def test_check_event_has_the_keys_of_version_0_1(status: str, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    with console.json_output(True):
        console.event("check", topic="files", status=status)
    assert events(capsys.readouterr().out) == [
        {"type": "check", "event": "finding", "topic": "files", "status": status, "state": state}
    ]


def test_progress_is_told_in_whole_percents(capsys: pytest.CaptureFixture[str]) -> None:
    steps = console.Percent()
    with console.json_output(True):
        for done in range(1, 1001):
            steps.progress("keyframes", done, 1000)
        print("for people")
    out, err = capsys.readouterr()
    assert len(events(out)) == 101
    assert err == "for people\n"


@pytest.mark.parametrize(("shell", "syntax"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete -c")])
def test_completion_knows_commands_and_options(shell: str, syntax: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m cogvideo completion SHELL`, as docs/command-line.md has it."""
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert syntax in script
    assert all(name in script for name in commands.COMMANDS)
    assert "input-source" in script


def first_column(heading: str, language: str) -> list[str]:
    """The first cells of the table below a heading of docs/command-line, without marks."""
    text = (ROOT / "docs" / f"command-line{language}.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    rows = re.findall(r"^\| ([^|]+) \|", text.split("\n## ")[0], flags=re.M)
    return [row.strip("`") for row in rows[1:]]


@pytest.mark.parametrize(("heading", "language"), [("Exit status", ""), ("退出码", "_zh")])
def test_every_exit_status_is_told_of(heading: str, language: str) -> None:
    known = (
        console.DONE,
        console.CHECK_FAILED,
        console.REQUEST_ERROR,
        console.FAULT,
        console.INTERRUPTED,
        console.CLOSED,
    )
    assert first_column(heading, language) == [str(status) for status in known]


@pytest.mark.parametrize(("heading", "language"), [("Events for scripts", ""), ("供脚本使用的事件", "_zh")])
def test_every_event_is_told_of(heading: str, language: str) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cogvideo" / "cli").glob("*.py"))
    assert set(first_column(heading, language)) == set(re.findall(r"\bevent\(\s*\"(\w+)\"", code))
