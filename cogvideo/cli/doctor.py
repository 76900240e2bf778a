"""`python -m cogvideo doctor`: check packages, devices, memory presets, files and settings, and suggest remedies.

Requires only Python: a package that cannot be imported is a failed check. Writes nothing, reads no weights, uses no
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Final

from cogvideo import __version__
from cogvideo.cli import console
from cogvideo.cli.doctor_checks import (
    CheckResult,
    CheckStatus,
    describe_device,
    files,
    machines,
    presets,
    settings,
    software,
)
from cogvideo.cli.model_options import add_model_options
from cogvideo.config import load_preset

MARKS: Final[dict[CheckStatus, str]] = {"ok": "✓", "note": "·", "error": "✗"}

DESCRIPTION = """\
检查这台机器：已安装的依赖、可用的设备、放得下的预设、缺失的文件，以及解决办法。
Check this machine: installed packages, devices, presets that fit in memory, missing files, and how to fix problems.

Exit status / 退出码: 0 the model can run / 可以运行; 1 it cannot / 不能运行."""


def main(argv: Sequence[str]) -> int:
    """Print all checks. Returns 0 if the model can run, otherwise 1. Raises RequestError for an unknown model."""
    options = parser().parse_args(argv)
    load_preset(options.model)
    with console.json_output(options.json):
        results = []
        for topic, heading, check in sections(options.model):
            print(heading)
            for result in check():
                results.append(result)
                _print_result(result)
            if not any(result.topic == topic for result in results):
                print("  -")
        errors = [result for result in results if result.status == "error"]
        print(_verdict(options.model, len(errors)))
        console.event("result", model=options.model, version=__version__, able=not errors)
    return console.CHECK_FAILED if errors else console.DONE


def parser() -> console.Parser:
    """Return the parser of this command."""
    root = console.Parser("doctor", description=DESCRIPTION)
    add_model_options(root, ["model"], model="mini")
    console.add_json(root)
    return root


def sections(model: str) -> list[tuple[str, str, Callable[[], Iterator[CheckResult]]]]:
    """Return (topic, heading, check) in printing order."""
    return [
        ("software", "软件 / software", software),
        ("device", "设备 / device", lambda: (describe_device(machine) for machine in machines())),
        ("memory", "放得下的预设 / presets that fit", lambda: presets(model, machines())),
        ("files", "文件 / files", lambda: files(model)),
        ("settings", "设置 / settings", settings),
    ]


def _print_result(result: CheckResult) -> None:
    console.event("check", **asdict(result))
    print(f"  {MARKS[result.status]} {result.fact}")
    for text in (result.zh, result.en):
        if text:
            print(f"      {text}")


def _verdict(model: str, errors: int) -> str:
    if errors:
        return (
            f"{model} 还不能运行：请先解决 {errors} 个问题（✗）。\n{model} cannot run yet: fix {errors} problem(s) (✗)."
        )
    return f"{model} 可以运行。\n{model} can run."
