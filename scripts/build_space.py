"""Build the folder of the Hugging Face Space; with --upload, publish it in one commit.

python scripts/build_space.py [--output build/space] writes what the Space requires: the page, the library, the small
model, and a README.md with the Space's metadata. --upload OWNER/NAME creates the Space if it is missing and replaces
its content. It requires a token: `hf auth login`, or HF_TOKEN. Files over 10 MB need no Git LFS here: huggingface_hub
stores them by LFS or Xet. Exit status 0: done; 2: refused, with the reason.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData, SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

from upload_space import publish, token_for  # noqa: E402

from cogvideo.errors import CogVideoError, RequestError  # noqa: E402

FILES = ("app.py", "requirements.txt", "LICENSE", "NOTICE")
FOLDERS = ("cogvideo", "kernels", "assets", "examples/gallery")
LEFT_OUT = ("assets/bench", "assets/readme")
"""Folders below FOLDERS that only documents use."""
APT_PACKAGES = ("gcc", "libc6-dev")
"""Debian packages that compile the kernels on first use. Without them the page runs, but more slowly."""
GITIGNORE = "/data/\n__pycache__/\n"
"""What running the page in the folder leaves. A .gitignore already on the hub could otherwise hide new files."""
MARKER = ".built-by-build-space"
"""A file that lists what was built, one path a line. It is never uploaded."""
POINTER = b"version https://git-lfs"
"""First bytes of the text that Git LFS leaves in place of a file."""
LARGE_BYTES = 10_000_000
"""Size from which a hub stores a file by LFS or Xet."""

METADATA: dict[str, Any] = {
    "title": "CogVideo for everyone",
    "emoji": "🐼",
    "colorFrom": "green",
    "colorTo": "indigo",
    "sdk": "gradio",
    "sdk_version": "",
    "python_version": "",
    "app_file": "app.py",
    "license": "apache-2.0",
    "suggested_hardware": "cpu-basic",
    "tags": ["text-to-video", "video-generation", "cogvideo", "chinese"],
    "short_description": "A Chinese sentence becomes a video, and you watch it form",
}
"""What the hub reads of a Space, in the order in which it is written. `space_card` fills in the versions."""

CARD = """---
{metadata}
---

# CogVideo for everyone

输入一句中文，小模型 `mini` 生成一段视频，页面上可以看到生成过程。`mini` 只用合成视频训练，只认识有限的事物、场景和
动作，不是 2022 年发布的 94 亿参数模型：见[模型说明](assets/mini/README.md)。

Enter a Chinese sentence; the small model `mini` generates a video, and the page shows it form. `mini` was trained on
synthetic videos only. It covers a limited set of subjects, scenes and motions, and is not the model of 9.4 billion
weights published in 2022: see its [model card](assets/mini/README.md).

- 项目 / Project: {project}
- 论文 / Paper: [CogVideo: Large-scale Pretraining for Text-to-Video Generation via Transformers](https://arxiv.org/abs/2205.15868)
- 许可 / Licence: [Apache-2.0](LICENSE), [NOTICE](NOTICE)
"""


def project_table(project: Path) -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def gradio_version(project: Path) -> str:
    """Return the version of gradio that requirements.txt pins. Raises RequestError if it pins none."""
    for line in (project / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("gradio"):
            pins = [pin.version for pin in Requirement(line).specifier if pin.operator == "=="]
            if pins:
                return pins[0]
    raise RequestError(
        "requirements.txt 没有固定 gradio 的版本：请写成 gradio==版本号，Space 使用同一版本。",
        "requirements.txt pins no version of gradio: write gradio==VERSION, which the Space uses as well.",
    )


def oldest_python(project: Path) -> str:
    """Return the lower bound of `requires-python` in pyproject.toml, such as "3.11".

    Raises RequestError if it has none.
    """
    required = project_table(project).get("requires-python", "")
    for bound in SpecifierSet(required):
        if bound.operator == ">=":
            return bound.version
    raise RequestError(
        f"pyproject.toml 的 requires-python（{required!r}）没有下限：请写成 >=3.11 的形式。",
        f"requires-python in pyproject.toml ({required!r}) has no lower bound: write it as >=3.11.",
    )


def space_card(project: Path, hardware: str | None = None, url: str | None = None) -> str:
    """Return the README.md of the Space: metadata, then a short text.

    `url`: address of the project; None: that of pyproject.toml, or a name without a link.
    """
    values = METADATA | {"sdk_version": gradio_version(project), "python_version": oldest_python(project)}
    values |= {"suggested_hardware": hardware} if hardware else {}
    metadata = SpaceCardData(**values).to_yaml(original_order=list(METADATA))
    table = project_table(project)
    name, url = table["name"], url or table.get("urls", {}).get("Repository")
    return CARD.format(metadata=metadata, project=f"[{name}]({url})" if url else name)


def space_files(project: Path) -> tuple[list[str], list[str]]:
    """Return the files to copy, and those left out because git does not track them, as paths from `project`.

    In a git checkout only tracked files are copied, so that no private file is published. Elsewhere every file is
    copied, except hidden ones and caches. Raises RequestError if a file is missing or a pointer of Git LFS.
    """
    tracked = _git_files(project, "--cached")
    found = _walk(project) if tracked is None else tracked
    files = [path for path in found if not path.startswith(tuple(f"{folder}/" for folder in LEFT_OUT))]
    missing = [path for path in (*FILES, *files) if not _is_content(project / path)]
    missing += [f"{folder}/" for folder in FOLDERS if not any(path.startswith(f"{folder}/") for path in files)]
    if missing:
        some = ", ".join(missing[:3])
        raise RequestError(
            f"{len(missing)} 个文件缺失或只是 Git LFS 指针（如 {some}）：请运行 git checkout -- . 和 git lfs pull。",
            f"Missing or mere Git LFS pointers: {len(missing)} files, such as {some}. "
            "Run: git checkout -- . and git lfs pull.",
        )
    return sorted({*FILES, *files}), sorted(_git_files(project, "--others", "--exclude-standard") or [])


def _git_files(project: Path, *which: str) -> list[str] | None:
    """Return the files of FILES and FOLDERS that `git ls-files` lists; None if `project` is no checkout.

    Raises RequestError if git fails: without its list a private file might be published.
    """
    if not (project / ".git").exists():
        return None
    command = ["git", "-C", str(project), "ls-files", "-z", *which, "--", *FILES, *FOLDERS]
    try:
        answer = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.decode(errors="replace").strip() if hasattr(error, "stderr") else error
        raise RequestError(
            f"git 无法列出 {project} 的文件（{said}）：请安装 git 并解决上述问题。",
            f"git cannot list the files of {project} ({said}): install git and solve what it reports.",
        ) from error
    return [path for path in answer.stdout.decode().split("\0") if path]


def _walk(project: Path) -> list[str]:
    paths = (path.relative_to(project) for name in FOLDERS for path in (project / name).rglob("*") if path.is_file())
    hidden = (path for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts))
    return [path.as_posix() for path in hidden if path.suffix not in (".pyc", ".pyo")]


def _is_content(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) != POINTER


def check_output(project: Path, output: Path) -> None:
    """Raise RequestError unless `output` is missing, an empty folder, or one that holds only what this script built."""
    if any(output.is_relative_to(project / folder) for folder in FOLDERS):
        raise RequestError(
            f"{output} 位于要复制的文件夹之内：请用 --output 指定其他文件夹。",
            f"{output} is inside a folder that is copied: choose another with --output.",
        )
    if not output.exists():
        return
    extra = [output.name]
    if output.is_dir():
        marker = output / MARKER
        built = {MARKER, *marker.read_text(encoding="utf-8").splitlines()} if marker.is_file() else set()
        paths = [path for path in output.rglob("*") if not built or not path.is_dir()]
        names = [path.relative_to(output).as_posix() for path in paths if "__pycache__" not in path.parts]
        extra = sorted(set(names) - built)
    if extra:
        some = ", ".join(extra[:3])
        raise RequestError(
            f"{output} 已存在，{some} 不是本脚本生成的：请移走，或用 --output 指定一个新的或空的文件夹。",
            f"{output} exists, and this script did not build {some}: move it away, or choose a new or empty folder "
            "with --output.",
        )


def build(project: Path, output: Path, card: str, files: Sequence[str]) -> list[str]:
    """Write the Space into `output` and return its files, as paths from `output`, without the marker.

    The folder appears whole or not at all: it is built beside `output` and renamed. Raises RequestError if `output` is
    in use for something else or cannot be written.
    """
    check_output(project, output)
    apt_packages = "".join(f"{name}\n" for name in APT_PACKAGES)
    texts = {"README.md": card, "packages.txt": apt_packages, ".gitignore": GITIGNORE}
    built = sorted({*files, *texts})
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as staging:
            new, old = Path(staging) / "new", Path(staging) / "old"
            for path in files:
                (new / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(project / path, new / path)
            for path, text in {**texts, MARKER: "".join(f"{path}\n" for path in built)}.items():
                (new / path).write_text(text, encoding="utf-8")
            if output.exists():
                output.rename(old)
            try:
                new.rename(output)
            except OSError:
                if old.exists():
                    old.rename(output)
                raise
    except OSError as error:
        raise RequestError(
            f"无法写入 {output}（{error.strerror or error}）：请用 --output 指定一个可写的文件夹。",
            f"{output} cannot be written ({error.strerror or error}): choose a writable folder with --output.",
        ) from error
    return built


def parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, default=ROOT / "build" / "space", metavar="DIR", help="build/space")
    options.add_argument("--upload", metavar="OWNER/NAME", help="create or update this Space")
    options.add_argument(
        "--hardware",
        choices=[str(hardware.value) for hardware in SpaceHardware],
        metavar="NAME",
        help="hardware of a new Space, such as cpu-basic, zero-a10g, t4-small (default: cpu-basic); most are paid",
    )
    options.add_argument("--private", action="store_true", help="a new Space is private (requires --upload)")
    options.add_argument(
        "--project-url", type=_web_address, metavar="URL", help="address of the project, for the README.md of the Space"
    )
    return options


def _web_address(text: str) -> str:
    if not text.startswith(("https://", "http://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not start with https:// or http://")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the Space, upload it if asked to, and return the exit status."""
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    if options.private and not options.upload:
        options_parser.error("--private requires --upload OWNER/NAME")
    output = options.output.resolve()
    try:
        token = token_for(options.upload) if options.upload else ""
        files, left_out = space_files(ROOT)
        built = build(ROOT, output, space_card(ROOT, options.hardware, options.project_url), files)
        _print_summary(output, built, left_out)
        if options.upload:
            print(publish(output, built, options.upload, token, private=options.private, hardware=options.hardware))
    except CogVideoError as error:
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
        return 2
    return 0


def _print_summary(output: Path, built: Sequence[str], left_out: Sequence[str]) -> None:
    sizes = {path: (output / path).stat().st_size for path in built}
    print(f"{output}: {len(built)} 个文件 / files, {sum(sizes.values()) / 1e6:.0f} MB")
    for path in left_out:
        print(f"未纳入，因为 git 未跟踪 / left out, since git does not track it: {path}", file=sys.stderr)
    if large := [path for path, size in sizes.items() if size > LARGE_BYTES]:
        print(f"上传时通过 LFS 或 Xet 存储 / stored by LFS or Xet on upload: {', '.join(large)}")


if __name__ == "__main__":
    sys.exit(main())
