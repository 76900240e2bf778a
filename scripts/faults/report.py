"""What a fault is, and the table of what came of it. Each fault says beforehand what is to be expected."""

from __future__ import annotations

import json
import os
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

Counts = Counter[str]

MARKS = "<!-- counts -->", "<!-- /counts -->"

CHINESE = {
    "kills": "强杀",
    "accepted": "接受",
    "lost": "丢失",
    "started twice": "重复开始",
    "killed while starting": "启动中被杀",
    "interrupted": "中断",
    "done": "完成",
    "videos accepted": "接受",
    "said so": "说明",
    "drawn once there was room": "腾出空间后画完",
    "disks filled": "写满的磁盘",
    "became read-only": "变为只读",
    "refused at the start": "启动被拒",
    "second refused": "第二个被拒",
    "next one started": "下一个启动",
    "taken: said": "占用并说明",
    "taken: another one": "占用后另选",
    "impossible: said": "不存在并说明",
    "keyframes": "关键帧",
    "interpolation": "插帧",
    "super-resolution": "超分",
    "codec": "编解码",
    "film": "写视频",
    "said": "说明",
    "without effect": "无影响",
    "jumps": "跳跃",
    "kept": "保留",
    "command line: film": "命令行：视频",
    "command line: refused": "命令行：拒绝",
    "API: taken": "API：接受",
    "API: refused": "API：拒绝",
    "refused with a sentence": "以一句话拒绝",
    "found": "找到",
    "nothing there": "没有",
    "refused": "拒绝",
    "read": "读取",
    "clients that never read": "从不读取的客户端",
    "answers to others": "给其他人的回答",
    "MiB grown": "增加的 MiB",
    "connection closed": "连接关闭",
    "endpoints": "接口",
    "bodies": "请求体",
    "uploads": "上传",
    "places asked for": "索取的位置",
    "too large: refused": "过大被拒",
}
"""What is counted, for the Chinese document."""


class Unexpected(AssertionError):
    """The outcome was not the one that was expected."""


def expect(true: object, words: str) -> None:
    """Raises Unexpected with `words` unless `true`."""
    if not true:
        raise Unexpected(words)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong on purpose.

    `run`: (an empty folder, how many times) -> what was counted; raises Unexpected. `small`: times in the tests;
    `full`: by hand.
    """

    name: str
    expected: str
    expected_zh: str
    run: Callable[[Path, int], Counts]
    small: int
    full: int


@dataclass(frozen=True)
class Outcome:
    """What came of one fault. `wrong` is empty where everything was as expected."""

    name: str
    times: int
    counts: dict[str, int]
    seconds: float
    date: str
    machine: str
    wrong: str = ""


def play(fault: Fault, times: int) -> Outcome:
    """One fault in a folder of its own."""
    from cogvideo.benchmarks.report import processor

    began = time.monotonic()
    counts, wrong = Counts(), ""
    with tempfile.TemporaryDirectory(prefix="cogvideo-fault-") as folder:
        try:
            counts = fault.run(Path(folder), times)
        except Unexpected as error:
            wrong = str(error)
        except Exception:
            wrong = traceback.format_exc(limit=-4)
    seconds = round(time.monotonic() - began, 1)
    machine = f"{processor().rpartition(',')[0]}, {os.cpu_count()} cores"
    return Outcome(fault.name, times, dict(counts), seconds, f"{datetime.now(UTC):%Y-%m-%d}", machine, wrong)


def row(fault: Fault, outcome: Outcome, chinese: bool = False) -> str:
    """One line of a Markdown table."""
    if chinese:
        counts = "，".join(f"{in_chinese(name)} {count:,}" for name, count in outcome.counts.items())
    else:
        counts = ", ".join(f"{count:,} {name}" for name, count in outcome.counts.items())
    said = " ".join(outcome.wrong.split())[-300:].replace("|", "/")
    verdict = f"**{'不符合预期' if chinese else 'unexpected'}**: {said}" if outcome.wrong else counts
    expected = fault.expected_zh if chinese else fault.expected
    return f"| {fault.name} | {expected} | {outcome.times:,} | {verdict} | {outcome.seconds:g} s |"


def heading(chinese: bool = False) -> str:
    words = "故障 | 预期 | 次数 | 计数 | 用时" if chinese else "fault | expected | times | counted | took"
    return f"| {words} |\n|---|---|---|---|---|"


def table(faults: Sequence[Fault], outcomes: Sequence[Outcome], chinese: bool = False) -> str:
    """A Markdown table of what was counted, in the order of `faults`, and on which machine and days."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    rows = [row(fault, by_name[fault.name], chinese) for fault in faults if fault.name in by_name]
    days = sorted({outcome.date for outcome in outcomes})
    machines = "; ".join(sorted({outcome.machine for outcome in outcomes}))
    where = f"{' – '.join(dict.fromkeys((days[0], days[-1])))}, {machines}." if days else ""
    return "\n".join([heading(chinese), *rows, "", where])


def read(record: Path) -> list[Outcome]:
    """What a file of outcomes holds; nothing where there is none."""
    return [Outcome(**values) for values in json.loads(record.read_text("utf-8"))] if record.exists() else []


def write(record: Path, outcomes: Sequence[Outcome]) -> None:
    """Puts outcomes into a file, in place of older ones of the same faults: a long run may come in pieces."""
    all_of_them = {outcome.name: asdict(outcome) for outcome in (*read(record), *outcomes)}
    record.write_text(json.dumps(list(all_of_them.values()), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tell(document: Path, words: str) -> None:
    """Puts a table between the marks of a document."""
    before, rest = document.read_text("utf-8").split(MARKS[0])
    document.write_text(f"{before}{MARKS[0]}\n{words}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def in_chinese(name: str) -> str:
    """What is counted, in Chinese; names of endpoints and stages stay."""
    if name.startswith("status "):
        return name.replace("status", "状态")
    if name.endswith(": answered"):
        return name.replace(": answered", " 回答")
    return CHINESE.get(name.removeprefix("in "), CHINESE.get(name, name))
