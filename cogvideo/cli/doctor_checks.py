"""Checks of `doctor`: software, devices, memory presets, files and settings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cogvideo import __version__
from cogvideo.config import ASSETS, PRESETS, load_preset
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.weights.catalog import CONVERTED, WeightPaths

CheckStatus = Literal["ok", "note", "bad"]

DISTRIBUTION: Final = "cogvideo-for-everyone"
REQUIREMENTS: Final = Path(__file__).resolve().parents[2] / "requirements.txt"
OLDEST, NEWEST = (3, 11), (3, 14)

WEIGHTS: Final = ("backbone", "stage1", "stage2", "superres", "codec")
MINI: Final = (*(f"{name}.safetensors" for name in WEIGHTS), "codec.json", "text.model", "cluster_labels.npy")
POINTER: Final = b"version https://git-lfs"
"""How the small text begins that Git LFS leaves where it did not fetch a file."""

SETTINGS: Final = (
    *("COGVIDEO_MODEL", "COGVIDEO_MEMORY", "COGVIDEO_DATA", "SAT_HOME", "HF_HOME", "HF_ENDPOINT", "OMP_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_ROOT_PATH"),
    *("SPACE_ID", "SPACES_ZERO_GPU"),
)
SECRETS: Final = ("HF_TOKEN",)
"""Of these only that they are set is told."""


@dataclass(frozen=True)
class CheckResult:
    """One fact; where it is not `ok`, what to do about it. Only `bad` keeps the model from running."""

    topic: str
    fact: str
    status: CheckStatus = "ok"
    zh: str = ""
    en: str = ""


@dataclass(frozen=True)
class DeviceInfo:
    """What models compute on. `free`: bytes; None where nobody could tell."""

    device: Literal["cuda", "cpu"]
    name: str
    free: int | None
    total: int | None


def software() -> Iterator[CheckResult]:
    """Whether Python, each required package and the tools beside them are here, in which version, and what to do."""
    fits = OLDEST <= sys.version_info[:2] <= NEWEST
    yield CheckResult(
        "software",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, cogvideo {__version__}",
        "ok" if fits else "bad",
        "" if fits else "请使用 Python 3.11（3.12 至 3.14 应当也可以）。",
        "" if fits else "Use Python 3.11 (3.12 to 3.14 should do as well).",
    )
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield CheckResult(
            "software", "packages: none", "bad", *_install("依赖尚未安装", "The packages are not installed")
        )
        return
    for line in _required():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)
    yield from _tools()


def _required() -> list[str]:
    """Lines such as torch==2.13.0: from the project's folder, or from what was installed."""
    if REQUIREMENTS.is_file():
        lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _package(requirement: Any) -> CheckResult:
    """A packaging.Requirement -> whether what is installed is what this was tested with."""
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return CheckResult(
            "software", f"{requirement.name}: -", "bad", *_install(f"缺少 {wanted}", f"{wanted} is missing")
        )
    if requirement.specifier.contains(version, prereleases=True):
        return CheckResult("software", f"{requirement.name} {version}")
    zh, en = f"测试所用版本为 {wanted}", f"Tested with {wanted}"
    broken = requirement.name == "protobuf" and int(re.split(r"\D", version)[0]) >= 4  # icetk's own limit
    return CheckResult("software", f"{requirement.name} {version}", "bad" if broken else "note", *_install(zh, en))


def _install(zh: str, en: str) -> tuple[str, str]:
    return f"{zh}：请运行 pip install -r requirements.txt。", f"{en}: pip install -r requirements.txt."


def _tools() -> Iterator[CheckResult]:
    try:
        import imageio_ffmpeg

        yield CheckResult("software", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")
    except (ImportError, RuntimeError) as error:
        yield CheckResult(
            "software",
            f"ffmpeg: {error}",
            "bad",
            *_install("没有 ffmpeg，无法写出视频", "Films cannot be written without it"),
        )
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    yield CheckResult(
        "software",
        f"C: {compiler or '-'}",
        "ok" if compiler else "note",
        "" if compiler else "没有 C 编译器：快速内核不可用，将使用较慢的普通写法（apt install gcc）。",
        ""
        if compiler
        else "Without a C compiler the fast kernels cannot run and plain PyTorch does (apt install gcc).",
    )


def machines() -> list[DeviceInfo]:
    """The cards that PyTorch can use, best first as it counts them, then the processor."""
    free, total = _host_memory()
    cpu = DeviceInfo("cpu", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", free, total)
    try:
        import torch

        if not torch.cuda.is_available():
            return [cpu]
        cards = []
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            name = f"cuda:{index} {about.name}, compute capability {about.major}.{about.minor}"
            cards.append(DeviceInfo("cuda", name, *torch.cuda.mem_get_info(index)))
    except Exception:  # whatever is broken about PyTorch or the driver: `software` says what is installed
        return [cpu]
    return [*cards, cpu]


def _host_memory() -> tuple[int | None, int | None]:
    """(bytes that programs may still take, all of them)."""
    try:
        import psutil
    except ImportError:
        return None, None
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def describe_device(machine: DeviceInfo) -> CheckResult:
    fact = f"{machine.name}: {_gigabytes(machine.free)} of {_gigabytes(machine.total)} GB free"
    if machine.device == "cuda" or shutil.which("nvidia-smi") is None:
        return CheckResult("device", fact)
    if any(other.device == "cuda" for other in machines()):
        return CheckResult("device", fact)
    return CheckResult(
        "device",
        fact,
        "note",
        "有 NVIDIA 驱动，但 PyTorch 用不了显卡：驱动太旧，或安装的是 CPU 版 PyTorch。请更新驱动，或重新安装 torch。",
        "There is an NVIDIA driver, but PyTorch cannot use the card: the driver is too old, or PyTorch was built for "
        "the CPU alone. Update the driver, or install torch again.",
    )


def presets(model: str, there: Sequence[DeviceInfo]) -> Iterator[CheckResult]:
    """Every model in every memory preset: bytes that it is predicted to take against those that are free."""
    try:
        from cogvideo.runtime.memory_estimate import peak_bytes
    except ImportError:  # told among the software
        return
    rooms = {kind: max((m.free or 0 for m in there if m.device == kind), default=None) for kind in ("cuda", "cpu")}
    names = [*PRESETS, *([] if model in PRESETS else [model])]
    for name in names:
        fits = False
        for row in MEMORY_PRESETS.values():
            room = rooms[row.device]
            if room is None:
                continue
            need = peak_bytes(load_preset(name)[0].model, row)
            about = f"{name} --memory {row.name}: {_gigabytes(need)} GB, {row.about}"
            if need <= room:
                fits = True
                yield CheckResult("memory", about)
            else:
                yield CheckResult("memory", f"{about} > {_gigabytes(room)} GB", "note")
        if not fits and name == model:
            yield CheckResult(
                "memory",
                f"{name}: -",
                "bad",
                "没有放得下的预设：请关闭其他程序，换更大的机器，或使用 mini。",
                "No preset fits: close other programs, take a larger machine, or use mini.",
            )


def files(model: str) -> Iterator[CheckResult]:
    yield from _own_files("mini", ASSETS / "mini", needed=model == "mini")
    if model not in PRESETS:
        yield from _own_files(model, Path(model), needed=True)
    yield from _published_files(needed=model == "cogvideo")
    yield _data_folder()


def _own_files(model: str, folder: Path, needed: bool) -> Iterator[CheckResult]:
    """A model in our own format: what is not there, or only a pointer to it."""
    wrong = [name for name in MINI if not _is_whole(folder / name)]
    if not wrong:
        yield CheckResult("files", f"{model}: {folder}")
        return
    yield CheckResult(
        "files",
        f"{model}: {folder}: {', '.join(wrong)}: -",
        "bad" if needed else "note",
        "文件缺失或不完整：请运行 git checkout -- assets/mini，或重新获取本项目。",
        "These files are missing or mere pointers: git checkout -- assets/mini, or fetch the project again.",
    )


def _is_whole(path: Path) -> bool:
    """A file that is there and is no pointer of Git LFS."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(len(POINTER))
    except OSError:
        return False
    return bool(beginning) and beginning != POINTER


def _published_files(needed: bool) -> Iterator[CheckResult]:
    places = WeightPaths.usual()
    missing = places.missing()
    if places.complete():
        yield CheckResult("files", f"cogvideo: {places.sat}")
        if not (places.sat / CONVERTED).is_dir():
            yield CheckResult(
                "files",
                f"{places.sat / CONVERTED}: -",
                "note",
                "转换后加载更快：python -m cogvideo convert。",
                "It loads faster once it is converted: python -m cogvideo convert.",
            )
        return
    gigabytes = _gigabytes(sum(file.size for file in missing))
    yield CheckResult(
        "files",
        f"cogvideo: {', '.join(str(places.target(file)) for file in missing)}: -",
        "bad" if needed else "note",
        f"如需已发布的模型：python -m cogvideo download cogvideo（约 {gigabytes} GB，"
        f"磁盘剩余 {_gigabytes(_free_disk(places.sat))} GB）。",
        f"For the published model: python -m cogvideo download cogvideo (about {gigabytes} GB; "
        f"{_gigabytes(_free_disk(places.sat))} GB of disk are free).",
    )


def _data_folder() -> CheckResult:
    folder = Path(os.environ.get("COGVIDEO_DATA") or "data").absolute()
    there = _existing(folder)
    if os.access(there, os.W_OK):
        return CheckResult("files", f"data: {folder}, {_gigabytes(_free_disk(there))} GB free")
    return CheckResult(
        "files",
        f"data: {folder}",
        "note",
        "此处不可写，网页将把数据放在用户自己的数据文件夹；可用 COGVIDEO_DATA 另行指定。",
        "It cannot be written: the page will use your own data folder instead; COGVIDEO_DATA names another.",
    )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _free_disk(path: Path) -> int:
    return shutil.disk_usage(_existing(path.absolute())).free


def settings() -> Iterator[CheckResult]:
    """Which environment variables count here, with their values; of secrets only that they are set."""
    for name in SETTINGS:
        if value := os.environ.get(name):
            yield CheckResult("settings", f"{name}={value}")
    for name in SECRETS:
        if os.environ.get(name):
            yield CheckResult("settings", f"{name}: ***")


def _gigabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f}"
