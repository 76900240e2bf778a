"""`python -m cogvideo doctor`: what is installed, which device there is, what fits on it, what is missing, what to do.

Needs nothing but Python: whatever cannot be imported is a finding. Nothing is written, no weights are read, no network.
Returns 0 where the model that was asked for can run (mini, where none was), 1 where it cannot.
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
from cogvideo.config import PRESETS, load_preset

MARKS: Final[dict[CheckStatus, str]] = {"ok": "✓", "note": "·", "bad": "✗"}

DESCRIPTION = """\
检查这台机器：装了什么、有什么设备、哪些预设放得下、缺哪些文件、该怎么办。
Looks at this machine: what is installed, which device there is, which presets fit, which files are missing, what to do.

Exit status / 退出码: 0 the model can run / 可以运行; 1 it cannot / 不能运行."""


def main(arguments: Sequence[str]) -> int:
    """Prints all findings; 0 or 1. Raises RequestError for a model that does not exist."""
    options = _parser().parse_args(arguments)
    load_preset(options.model)
    with console.json_output(options.json):
        findings = []
        for topic, heading, look in sections(options.model):
            print(heading)
            for finding in look():
                findings.append(finding)
                _tell(finding)
            if not any(finding.topic == topic for finding in findings):
                print("  -")
        bad = [finding for finding in findings if finding.status == "bad"]
        print(_verdict(options.model, len(bad)))
        console.event("done", model=options.model, version=__version__, able=not bad)
    return console.CHECK_FAILED if bad else console.DONE


def _parser() -> console.Parser:
    parser = console.Parser("doctor", description=DESCRIPTION)
    parser.add_argument(
        "--model",
        default="mini",
        metavar="NAME",
        help=f"what should run: {', '.join(PRESETS)} (default: mini) / 要运行的模型",
    )
    console.add_json(parser)
    return parser


def sections(model: str) -> list[tuple[str, str, Callable[[], Iterator[CheckResult]]]]:
    """(topic, heading, its findings), in the order in which they are told."""
    return [
        ("software", "软件 / software", software),
        ("device", "设备 / device", lambda: (describe_device(machine) for machine in machines())),
        ("memory", "放得下的预设 / presets that fit", lambda: presets(model, machines())),
        ("files", "文件 / files", lambda: files(model)),
        ("settings", "设置 / settings", settings),
    ]


def _tell(finding: CheckResult) -> None:
    console.event("finding", **asdict(finding), state=finding.status)  # `state`: its name in version 0.1
    print(f"  {MARKS[finding.status]} {finding.fact}")
    for sentence in (finding.zh, finding.en):
        if sentence:
            print(f"      {sentence}")


def _verdict(model: str, bad: int) -> str:
    if bad:
        return f"{model} 还不能运行：有 {bad} 处问题（✗）。\n{model} cannot run yet: {bad} thing(s) to mend (✗)."
    return f"{model} 可以运行。\n{model} can run."
