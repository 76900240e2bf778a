"""Draw the packages of the code, and which of them imports which, from the import statements themselves.

python scripts/docs/draw_packages.py writes docs/drawings/packages_{en,zh}.svg, the picture in CONTRIBUTING. Rows are
those of the layers contract in pyproject.toml; `kernels`, which imports nothing of the project, is the last row. An
arrow that follows from others is left out: if A imports B and B imports C, none is drawn from A to C.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from scripts.docs.drawing import (  # noqa: E402
    BLUE,
    GREEN,
    GREY,
    INK,
    LINE,
    ORANGE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_ORANGE,
    ROOT,
    SOFT,
    Drawing,
    Language,
    write,
)

WIDTH, TOP, ROW, BOX, HIGH = 980.0, 64.0, 68.0, 224.0, 38.0
Graph = Mapping[str, frozenset[str]]

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "The packages of the code: imports point down",
        "file": "one file",
        "folder": "package",
        "kernels": "package beside cogvideo",
        "cli": "one file per command",
        "web": "Gradio page, HTTP routes, API",
        "jobs": "queue, worker, stored results",
        "evaluation": "quality of generated videos",
        "benchmarks": "time and memory",
        "training": "tasks, trainer, recipes",
        "pipeline": "public entry point",
        "data": "datasets, synthetic world",
        "inference": "decoding, sampling, three stages",
        "runtime": "device, placement, memory",
        "models": "networks, KV cache, loading",
        "tokenizers": "text and image tokenizers",
        "weights": "checkpoints, downloads",
        "media": "video and image files",
        "request": "what a caller asks for",
        "token_layout": "geometry of the tokens",
        "events": "events of a generation",
        "compat": "imports of other packages",
        "config": "sizes, sampling, presets",
        "token_frames": "tokens of a video",
        "errors": "bilingual errors",
        "files": "atomic writes",
        "units": "sizes in words",
        "messages": "sentences in two languages",
        "kernels_box": "fast kernels and plain forms",
    },
    "zh": {
        "title": "代码的各个包：导入只能向下",
        "file": "单个文件",
        "folder": "包",
        "kernels": "与 cogvideo 并列的包",
        "cli": "每个命令一个文件",
        "web": "Gradio 网页、HTTP 路由、API",
        "jobs": "队列、工作线程、结果存储",
        "evaluation": "评估生成的视频",
        "benchmarks": "时间与内存",
        "training": "训练任务、训练器、配置",
        "pipeline": "公开入口",
        "data": "数据集、合成世界",
        "inference": "解码、采样、三个阶段",
        "runtime": "设备、放置、内存",
        "models": "网络、KV 缓存、加载",
        "tokenizers": "文本与图像的 tokenizer",
        "weights": "检查点、下载",
        "media": "视频与图像文件",
        "request": "生成请求",
        "token_layout": "token 的几何",
        "events": "生成过程的事件",
        "compat": "其他包的导入",
        "config": "尺寸、采样、预设",
        "token_frames": "视频的 token",
        "errors": "双语错误",
        "files": "原子写入",
        "units": "大小的写法",
        "messages": "双语文案",
        "kernels_box": "快速内核与普通写法",
    },
}


def layers() -> list[list[str]]:
    """Return the rows of the drawing, top first: those of the layers contract, then `kernels`."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = [one for one in tools["importlinter"]["contracts"] if one["type"] == "layers"]
    return [*([name.strip() for name in row.split("|")] for row in contract["layers"]), ["kernels"]]


def imported(source: str) -> Iterator[str]:
    """Yield the packages of the project that the text of a module imports, also inside functions.

    Imports for the type checker alone do not count.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module] if node.module != "cogvideo" else [f"cogvideo.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "kernels":
                yield first
            elif first == "cogvideo" and rest:
                yield rest.partition(".")[0]


def import_graph(root: Path = ROOT) -> dict[str, frozenset[str]]:
    """Return for every package of the drawing the packages that it imports."""
    graph = {}
    names = {name for row in layers() for name in row}
    for name in names:
        folder = root / name if name == "kernels" else root / "cogvideo" / name
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        found = {target for path in files for target in imported(path.read_text(encoding="utf-8"))}
        graph[name] = frozenset(found & names - {name})
    return graph


def reachable(graph: Graph, start: str) -> set[str]:
    """Return every package that `start` imports, directly or through others."""
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def reduced(graph: Graph) -> dict[str, frozenset[str]]:
    """Return the graph without arrows that follow from others. `graph` has no circle."""
    return {
        name: frozenset(target for target in targets if not any(target in reachable(graph, o) for o in targets))
        for name, targets in graph.items()
    }


def places(rows: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Return the middle of every box. Rows of one box lie left and right in turn, so that long arrows stay visible."""
    found = {}
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            share = (j + 0.5) / len(row) if len(row) > 1 else (0.36, 0.64)[i % 2]
            found[name] = (WIDTH * share, TOP + ROW * i + HIGH / 2)
    return found


def packages(language: Language) -> str:
    """Draw the packages in rows with their imports; returns the text of an SVG."""
    rows, words = layers(), WORDS[language]
    at = places(rows)
    drawing = Drawing(WIDTH, TOP + ROW * len(rows) + 6, words["title"])
    drawing.text(24, 32, words["title"], 16, bold=True)
    kinds = (("folder", PALE_BLUE), ("file", GREY), ("kernels", PALE_GREEN))
    x = WIDTH - 520
    for kind, fill in kinds:
        drawing.rect(x, 21, 12, 12, fill, LINE)
        drawing.text(x + 19, 31.5, words[kind])
        x += 150
    for name, targets in sorted(reduced(import_graph()).items()):
        for target in sorted(targets):
            _arrow(drawing, at[name], at[target])
    for name, (x, y) in at.items():
        fill, edge = (PALE_BLUE, BLUE) if (ROOT / "cogvideo" / name).is_dir() else (GREY, SOFT)
        if name == "kernels":
            fill, edge = PALE_GREEN, GREEN
        if name == "pipeline":
            fill, edge = PALE_ORANGE, ORANGE
        drawing.rect(x - BOX / 2, y - HIGH / 2, BOX, HIGH, fill, edge, 6)
        drawing.text(x, y - 3, name, 13, "middle", bold=True)
        drawing.text(x, y + 13, words["kernels_box" if name == "kernels" else name], 11, "middle", INK)
    return drawing.svg()


def _arrow(drawing: Drawing, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow from the lower edge of a box to the upper edge of another, fanned out by direction."""
    lean = max(-1.0, min(1.0, (end[0] - start[0]) / 400)) * (BOX / 2 - 16)
    drawing.arrow(start[0] + lean, start[1] + HIGH / 2, end[0] - lean, end[1] - HIGH / 2)


DRAWINGS = {"packages": packages}

if __name__ == "__main__":
    write(DRAWINGS)
