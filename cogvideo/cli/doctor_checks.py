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
from cogvideo.messages import message
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.units import format_gigabytes
from cogvideo.weights.catalog import CONVERTED, WeightPaths

CheckStatus = Literal["ok", "note", "error"]

DISTRIBUTION: Final = "cogvideo-for-everyone"
REQUIREMENTS: Final = Path(__file__).resolve().parents[2] / "requirements.txt"
OLDEST, NEWEST = (3, 11), (3, 14)

WEIGHTS: Final = ("backbone", "stage1", "stage2", "superres", "codec")
MINI: Final = (*(f"{name}.safetensors" for name in WEIGHTS), "codec.json", "text.model", "cluster_labels.npy")
POINTER: Final = b"version https://git-lfs"
"""First bytes of a Git LFS pointer, the small text file in place of one that was not downloaded."""

SETTINGS: Final = (
    *("COGVIDEO_MODEL", "COGVIDEO_MEMORY", "COGVIDEO_DATA", "SAT_HOME", "HF_HOME", "HF_ENDPOINT", "OMP_NUM_THREADS"),
    *("CUDA_VISIBLE_DEVICES", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_ROOT_PATH"),
    *("SPACE_ID", "SPACES_ZERO_GPU"),
)
SECRETS: Final = ("HF_TOKEN",)
"""Variables whose values are not printed."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check; `zh` and `en` are the remedy. Only `error` prevents the model from running."""

    topic: str
    fact: str
    status: CheckStatus = "ok"
    zh: str = ""
    en: str = ""


@dataclass(frozen=True)
class DeviceInfo:
    """A device. `free`, `total`: bytes; None if unknown."""

    device: Literal["cuda", "cpu"]
    name: str
    free: int | None
    total: int | None


def software() -> Iterator[CheckResult]:
    """Check Python, the required packages, ffmpeg and the C compiler."""
    fits = OLDEST <= sys.version_info[:2] <= NEWEST
    yield CheckResult(
        "software",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, cogvideo {__version__}",
        "ok" if fits else "error",
        "" if fits else "请使用 Python 3.11（3.12 至 3.14 应当也可以）。",
        "" if fits else "Use Python 3.11 (3.12 to 3.14 should work too).",
    )
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield CheckResult("software", "packages: none", "error", *_install(*message("doctor_checks.no_packages")))
        return
    for line in _required():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)
    yield from _tools()


def _required() -> list[str]:
    """Return lines such as torch==2.13.0 from requirements.txt, or from the installed package."""
    if REQUIREMENTS.is_file():
        lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _package(requirement: Any) -> CheckResult:
    """Compare the installed version with a packaging.Requirement, the tested version."""
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return CheckResult(
            "software",
            f"{requirement.name}: -",
            "error",
            *_install(*message("doctor_checks.package_missing", wanted=wanted)),
        )
    if requirement.specifier.contains(version, prereleases=True):
        return CheckResult("software", f"{requirement.name} {version}")
    if requirement.name == "tensorboardX" and _refused_by_protobuf(version):
        zh = f"tensorboardX {version} 无法与已安装的 protobuf 一起使用，需要 {wanted}"
        en = f"tensorboardX {version} fails with the protobuf installed; {wanted} is needed"
        return CheckResult("software", f"{requirement.name} {version}", "error", *_install(zh, en))
    zh, en = message("doctor_checks.tested_version", wanted=wanted)
    return CheckResult("software", f"{requirement.name} {version}", "note", *_install(zh, en))


def _install(zh: str, en: str) -> tuple[str, str]:
    return message("doctor_checks.install_requirements", zh_value=zh, en_value=en)


def _tools() -> Iterator[CheckResult]:
    try:
        import imageio_ffmpeg

        yield CheckResult("software", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}")
    except (ImportError, RuntimeError) as error:
        yield CheckResult(
            "software",
            f"ffmpeg: {error}",
            "error",
            *_install(*message("doctor_checks.ffmpeg_missing")),
        )
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    yield CheckResult(
        "software",
        f"C: {compiler or '-'}",
        "ok" if compiler else "note",
        "" if compiler else "没有 C 编译器：快速内核不可用，将改用较慢的 PyTorch 实现。请运行 apt install gcc。",
        "" if compiler else "No C compiler: PyTorch replaces the fast kernels and is slower. Run: apt install gcc.",
    )


def machines() -> list[DeviceInfo]:
    """Return the GPUs that PyTorch can use, in its order, then the CPU."""
    free, total = _host_memory()
    cpu = DeviceInfo("cpu", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", free, total)
    try:
        import torch

        if not torch.cuda.is_available():
            return [cpu]
        gpus = []
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            name = f"cuda:{index} {about.name}, compute capability {about.major}.{about.minor}"
            gpus.append(DeviceInfo("cuda", name, *torch.cuda.mem_get_info(index)))
    except Exception:  # a broken PyTorch or driver may raise anything; `software` lists the versions
        return [cpu]
    return [*gpus, cpu]


def _host_memory() -> tuple[int | None, int | None]:
    """Return (available bytes, total bytes)."""
    try:
        import psutil
    except ImportError:
        return None, None
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def describe_device(machine: DeviceInfo) -> CheckResult:
    fact = f"{machine.name}: {format_gigabytes(machine.free)} of {format_gigabytes(machine.total)} GB free"
    if machine.device == "cuda" or shutil.which("nvidia-smi") is None:
        return CheckResult("device", fact)
    if any(other.device == "cuda" for other in machines()):
        return CheckResult("device", fact)
    return CheckResult("device", fact, "note", *message("doctor_checks.gpu_unusable"))


def presets(model: str, there: Sequence[DeviceInfo]) -> Iterator[CheckResult]:
    """Compare the predicted peak of each model in each memory preset with the free memory."""
    try:
        from cogvideo.runtime.memory_estimate import peak_bytes
    except ImportError:  # reported by `software`
        return
    available = {kind: max((m.free or 0 for m in there if m.device == kind), default=None) for kind in ("cuda", "cpu")}
    names = [*PRESETS, *([] if model in PRESETS else [model])]
    for name in names:
        fits = False
        for preset in MEMORY_PRESETS.values():
            room = available[preset.device]
            if room is None:
                continue
            need = peak_bytes(load_preset(name)[0].model, preset)
            fact = f"{name} --memory {preset.name}: {format_gigabytes(need)} GB, {preset.about}"
            if need <= room:
                fits = True
                yield CheckResult("memory", fact)
            else:
                yield CheckResult("memory", f"{fact} > {format_gigabytes(room)} GB", "note")
        if not fits and name == model:
            yield CheckResult("memory", f"{name}: -", "error", *message("doctor_checks.no_preset_fits"))


def files(model: str) -> Iterator[CheckResult]:
    """Check the files of mini, of `model` and of the published model, and the data folder."""
    yield from _own_files("mini", ASSETS / "mini", needed=model == "mini")
    if model not in PRESETS:
        yield from _own_files(model, Path(model), needed=True)
    yield from _published_files(needed=model == "cogvideo")
    yield _data_folder()


def _own_files(model: str, folder: Path, needed: bool) -> Iterator[CheckResult]:
    """Check a model in our format for files that are missing, empty or Git LFS pointers."""
    missing = [name for name in MINI if not _is_whole(folder / name)]
    if not missing:
        yield CheckResult("files", f"{model}: {folder}")
        return
    yield CheckResult(
        "files",
        f"{model}: {folder}: {', '.join(missing)}: -",
        "error" if needed else "note",
        *message("doctor_checks.mini_files_missing"),
    )


def _is_whole(path: Path) -> bool:
    """Return whether the file exists, is not empty and is not a Git LFS pointer."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(len(POINTER))
    except OSError:
        return False
    return bool(beginning) and beginning != POINTER


def _published_files(needed: bool) -> Iterator[CheckResult]:
    paths = WeightPaths.usual()
    missing = paths.missing()
    if paths.complete():
        yield CheckResult("files", f"cogvideo: {paths.sat}")
        if not (paths.sat / CONVERTED).is_dir():
            yield CheckResult("files", f"{paths.sat / CONVERTED}: -", "note", *message("doctor_checks.not_converted"))
        return
    gigabytes = format_gigabytes(sum(file.size for file in missing))
    yield CheckResult(
        "files",
        f"cogvideo: {', '.join(str(paths.target(file)) for file in missing)}: -",
        "error" if needed else "note",
        *message(
            "doctor_checks.published_model_missing",
            gigabytes=gigabytes,
            free_disk=format_gigabytes(_free_disk(paths.sat)),
        ),
    )


def _data_folder() -> CheckResult:
    folder = Path(os.environ.get("COGVIDEO_DATA") or "data").absolute()
    parent = _existing(folder)
    if os.access(parent, os.W_OK):
        return CheckResult("files", f"data: {folder}, {format_gigabytes(_free_disk(parent))} GB free")
    return CheckResult("files", f"data: {folder}", "note", *message("doctor_checks.folder_not_writable"))


def _existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _free_disk(path: Path) -> int:
    return shutil.disk_usage(_existing(path.absolute())).free


def settings() -> Iterator[CheckResult]:
    """List the environment variables that are set; values of secrets are masked."""
    for name in SETTINGS:
        if value := os.environ.get(name):
            yield CheckResult("settings", f"{name}={value}")
    for name in SECRETS:
        if os.environ.get(name):
            yield CheckResult("settings", f"{name}: ***")


def _refused_by_protobuf(tensorboardx: str) -> bool:
    """Whether this version of tensorboardX has protobuf modules in the form that protobuf 4 and newer refuse."""
    try:
        protobuf = importlib.metadata.version("protobuf")
    except importlib.metadata.PackageNotFoundError:  # reported in a line of its own
        return False
    numbers = [[int(part) for part in re.findall(r"\d+", version)[:3]] for version in (tensorboardx, protobuf)]
    return numbers[0] < [2, 6, 1] and numbers[1] >= [4]
