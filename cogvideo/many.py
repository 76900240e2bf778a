"""`python -m cogvideo generate --input-source FILE`: many sentences -> a film each, with the arguments of the release.

In: a text file with a sentence a line, or the keyboard. Out: films in one folder, named after what they were drawn from
and never by a sentence, and `index.tsv`, which says which is which. What is there already is not drawn again, and what
another process is drawing is left to it: the same command may run several times, one after another or at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogvideo import console
from cogvideo.config import CLIP_FRAMES, MAX_SEED, SamplingOptions, VideoRequest
from cogvideo.errors import CapacityError, RequestError

if TYPE_CHECKING:
    from cogvideo.pipeline import CogVideoPipeline

INTERACTIVE = "interactive"
SEED = 1234
"""Where none is given: a fixed one, so that the same command goes on with its own work."""


def add_options(group: argparse._ArgumentGroup) -> None:
    """The release's arguments for many sentences. `stage`: what is drawn; the last of the three words counts."""
    group.add_argument(
        "--input-source",
        metavar="FILE",
        help=f"a sentence a line, or the word {INTERACTIVE} to type them / 提示词文件，每行一句",
    )
    group.add_argument("--output-path", type=Path, default=Path("output"), metavar="DIR", help="default: output")
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="films for each sentence (default: 1) / 每句几段视频"
    )
    group.add_argument(
        "--max-inference-batch-size",
        "--stage1-max-inference-batch-size",
        type=int,
        default=1,
        metavar="N",
        help="taken for the release's sake: films are drawn one after another, so any number does",
    )
    for word, told in (
        ("both-stages", "all of the film (the default) / 完整视频"),
        ("stage-1", "the five keyframes alone, small / 只生成关键帧"),
        ("stage-2", "all of the film; the same seed draws the same keyframes again / 完整视频"),
    ):
        group.add_argument(f"--{word}", dest="stage", action="store_const", const=word, help=told)
    group.add_argument("--use-guidance-stage1", action="store_true", help="keyframes with guidance / 关键帧使用引导")
    group.add_argument("--guidance-alpha", type=float, default=3.0, metavar="X", help="how strong (default: 3)")


def run(pipeline: CogVideoPipeline, options: argparse.Namespace, base: VideoRequest) -> int:
    """Draws all films like `base`; 0 where all are there, 2 where a sentence was refused, 130 where interrupted."""
    if options.batch_size < 1:
        raise RequestError(
            f"--batch-size 不能是 {options.batch_size}：请输入 1 或更大的整数。",
            f"--batch-size cannot be {options.batch_size}: give a whole number, 1 or more.",
        )
    folder = _folder(options.output_path)
    refused = 0
    for number, prompt in sentences(options.input_source):
        try:
            checked = pipeline.check(replace(base, prompt=prompt))
        except RequestError as error:
            refused += 1
            console.say(f"第 {number} 行：{error.zh}", f"Line {number}: {error.en}")
            continue
        for copy in range(options.batch_size):
            request = replace(base, prompt=checked.text, seed=(base.seed + copy) % (MAX_SEED + 1))
            if not _draw(pipeline, folder, request, options.quiet):
                return console.INTERRUPTED
    console.event("done", folder=folder, refused=refused)
    return console.REFUSED if refused else console.DONE


def request_like(options: argparse.Namespace, sampling: SamplingOptions, enlarge: bool) -> VideoRequest:
    """What all films have in common, without a sentence. Raises RequestError.

    `enlarge`: whether super-resolution is on where the options do not say.
    """
    small = options.stage == "stage-1"
    if options.guidance is None:
        guidance = options.guidance_alpha if options.use_guidance_stage1 else 1.0
        sampling = replace(sampling, guidance=guidance)
    return VideoRequest(
        prompt="",
        seed=SEED if options.seed is None else options.seed,
        frames=CLIP_FRAMES[0] if small else options.frames,
        seconds=options.seconds,
        superres=not small and (enlarge if options.superres is None else options.superres),
        sampling=sampling,
    )


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """(line number, sentence) of a file or of the keyboard, without empty lines and those after #."""
    if source == INTERACTIVE:
        yield from _typed()
        return
    try:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"无法读取提示词文件 {source}（{error}）：需要 UTF-8 文本，每行一句。",
            f"The file of sentences {source} cannot be read ({error}): it should be UTF-8 text, a sentence a line.",
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def film_name(request: VideoRequest, model: str) -> str:
    """The same for the same film, and made of digits and letters alone."""
    what = json.dumps([model, asdict(request)], ensure_ascii=False, sort_keys=True)
    return f"{hashlib.sha256(what.encode()).hexdigest()[:16]}-{request.seed}"


def _typed() -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        try:
            line = input("一句中文，空行结束 / a sentence, an empty line ends: ").strip()
        except EOFError:
            return
        if not line:
            return
        number += 1
        yield number, line


def _draw(pipeline: CogVideoPipeline, folder: Path, request: VideoRequest, quiet: bool) -> bool:
    """One film, unless it is there or in work; False where it was interrupted."""
    from filelock import FileLock, Timeout

    from cogvideo.generate import metadata_of, watch
    from cogvideo.video import write_video

    name = film_name(request, pipeline.preset.name)
    path = folder / f"{name}.mp4"
    try:
        with FileLock(folder / ".locks" / name, timeout=0):
            if path.exists():
                return True
            frames, finished = watch(pipeline.stream(request), quiet=quiet)
            if not finished or frames is None:
                return False
            write_video(path, frames, request.seconds, metadata_of(pipeline, request))
            with (folder / "index.tsv").open("a", encoding="utf-8") as index:
                index.write(f"{path.name}\t{request.seed}\t{' '.join(request.prompt.split())}\n")
            print(path)
            console.event("file", path=path, seed=request.seed)
    except Timeout:
        pass
    return True


def _folder(path: Path) -> Path:
    try:
        (path / ".locks").mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path}")
    except OSError as error:
        raise CapacityError(
            f"无法写入文件夹 {path}（{error}）：请换一个 --output-path。",
            f"The folder {path} cannot be written ({error}): choose another --output-path.",
        ) from error
    return path
