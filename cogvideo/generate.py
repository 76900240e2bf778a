"""`python -m cogvideo generate`: a Chinese sentence -> an mp4 or gif file, with a progress bar."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cogvideo import console, first_use, many, release_words
from cogvideo.choice import default_model, own_device
from cogvideo.config import (
    CLIP_FRAMES,
    CLIP_SECONDS,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_TEMPERATURE,
    MEMORY,
    MIN_TEMPERATURE,
    PRESETS,
    SamplingOptions,
    VideoRequest,
    find_preset,
)
from cogvideo.errors import RequestError
from cogvideo.events import Done, Event, Frames, KeyframeDone, LevelDone, Loading, Progress, SuperResolved

if TYPE_CHECKING:
    from cogvideo.pipeline import CogVideoPipeline
    from cogvideo.video import Film

Shown = TypeVar("Shown")

STAGES = {"keyframes": "关键帧 keyframes", "interpolate": "插帧 in-betweens", "superres": "超分 super-resolution"}

DESCRIPTION = """\
把一句中文变成一段视频。不需要显卡：小模型 mini 随仓库附带，在普通电脑上约十几秒完成。
Turns a Chinese sentence into a video. No graphics card needed: the small model, mini, comes with this repository.

The video is drawn in three steps: five keyframes, then the frames between them (5 -> 9 -> 17 -> 33), then every frame
at three times the size. The same sentence with the same seed always gives the same video."""

EXAMPLES = """\
examples / 例子:
  python -m cogvideo generate "一只熊猫在草地上向右跑"
  python -m cogvideo generate "一只熊猫在草地上向右跑" --seed 7 --frames 33 --out panda.mp4
  python -m cogvideo generate "夜空中一枚火箭向上飞" --frames 9 --seconds 2 --gif
  python -m cogvideo generate --input-source examples/prompts.txt --output-path films --use-guidance-stage1
"""


def main(arguments: Sequence[str]) -> int:
    """Draws one video and returns 0; 130 where it was interrupted. Raises CogVideoError."""
    options = _parser().parse_args(arguments)
    if (options.prompt is None) == (options.input_source is None):
        raise RequestError(
            "请给出一句中文（prompt），或用 --input-source 指定提示词文件，二者选一。",
            "Give one of two: a sentence (prompt), or a file of sentences with --input-source.",
        )
    options.device = options.device or own_device()
    options.model = options.model or default_model(options.device)
    with console.speaking(options.json):
        return _one(options) if options.input_source is None else _many(options)


def _one(options: argparse.Namespace) -> int:
    from cogvideo.video import Film

    request = _request(options)
    paths = _outputs(options, request)
    pipeline = _pipeline(options)
    checked = pipeline.check(request)
    request = dataclasses.replace(request, prompt=checked.text)
    if not options.quiet:
        for note in checked.notes:
            console.say(note.zh, note.en)
        print(f"种子 seed: {request.seed}\n{pipeline.held}", file=sys.stderr)
    metadata = None if options.no_metadata else metadata_of(pipeline, request)
    with Film(paths[0], request.frames, request.seconds, metadata) as film:
        frames, finished = watch(encoded(pipeline.stream(request), film), quiet=options.quiet)
        if not finished:
            console.say("已中断，保留已完成的部分。", "Stopped; what was finished is kept.")
        if frames is not None:
            _save(paths, frames, request, metadata, film if finished else None)
    if finished:
        console.event("done", seed=request.seed, frames=request.frames, seconds=request.seconds)
    return console.DONE if finished else console.INTERRUPTED


def _many(options: argparse.Namespace) -> int:
    preset, _ = find_preset(options.model)
    sampling = _sampling(options, preset.sampling) or preset.sampling
    base = release_words.request_like(options, sampling, preset.enlarge)
    return many.run(_pipeline(options), options, base)


def _pipeline(options: argparse.Namespace) -> CogVideoPipeline:
    from cogvideo.pipeline import CogVideoPipeline

    first_use.obtain(options.model, options.download)
    return CogVideoPipeline.from_pretrained(
        options.model,
        device=options.device,
        previews=False,  # nobody would see them
        eight_bit=options.eight_bit,
        offload=options.offload,
        memory=options.memory,
    )


def _parser() -> console.Parser:
    parser = console.Parser("generate", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("prompt", nargs="?", help="what to show, in Chinese / 用中文描述画面")
    _what_options(parser.add_argument_group("what to draw / 生成什么"))
    _file_options(parser.add_argument_group("the file / 文件"))
    _how_options(parser.add_argument_group("how to draw / 如何生成"))
    release_words.add_options(
        parser.add_argument_group("many sentences, as in the release / 批量生成（与原版参数相同）")
    )
    return parser


def _what_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help=f"0 to {MAX_SEED}; another seed, another video (default: random) / 种子，换一个就换一段视频",
    )
    group.add_argument(
        "--frames",
        type=int,
        default=CLIP_FRAMES[-1],
        metavar="N",
        help=f"{_choices(CLIP_FRAMES)}: more is smoother (default: {CLIP_FRAMES[-1]}) / 帧数，越多越流畅",
    )
    group.add_argument(
        "--seconds",
        type=float,
        default=CLIP_SECONDS[0],
        metavar="S",
        help=f"{_choices(CLIP_SECONDS)}: how long the scene lasts (default: {CLIP_SECONDS[0]:g}) / 时长（秒）",
    )
    group.add_argument(
        "--superres",
        action=argparse.BooleanOptionalAction,
        help="enlarge every frame three times at the end (default: as the model says) / 最后是否做超分，默认依模型而定",
    )


def _file_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", type=Path, metavar="FILE", help=".mp4 or .gif (default: cogvideo-SEED.mp4) / 输出文件名"
    )
    group.add_argument("--gif", action="store_true", help="write a .gif as well / 另存一份 gif")
    group.add_argument(
        "--no-metadata", action="store_true", help="keep prompt and settings out of the file / 文件中不保存提示词和设置"
    )
    group.add_argument("--quiet", action="store_true", help="print the file's name and nothing else / 只输出文件名")
    console.add_json(group)


def _how_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"{_choices(PRESETS)}, or the folder of a trained model (default: $COGVIDEO_MODEL, else cogvideo where "
        "its files are there and a card has room, else mini) / 使用哪个模型",
    )
    group.add_argument(
        "--download",
        action="store_true",
        help="where the files of the model cogvideo are missing, fetch them without asking (43 GB) / 缺少时直接下载",
    )
    group.add_argument(
        "--guidance",
        type=float,
        metavar="X",
        help=f"1 to {MAX_GUIDANCE:g}: how strictly the prompt counts (default: the model's own) / 引导强度",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}: low is tidy, high is wild (default: the model's "
        "own) / 温度，越低越规整，越高越多变",
    )
    group.add_argument(
        "--top-k",
        "--top_k",
        type=int,
        metavar="N",
        help="how many clusters of similar tokens may be drawn from (default: the model's own) / 每步保留多少个候选类",
    )
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where there is one) / 计算设备"
    )
    group.add_argument(
        "--memory",
        metavar="NAME",
        help=f"{_choices(MEMORY)}: how the model is held on the card (default: $COGVIDEO_MEMORY, else the first that "
        "fits by a prediction from the sizes, which was not yet measured on a GPU) / 显存预设",
    )
    group.add_argument(
        "--eight-bit",
        action="store_true",
        help="keep the weights in 8 bits: less memory, slower / 权重用 8 位存放，省内存",
    )
    group.add_argument(
        "--offload",
        action="store_true",
        help="each matrix comes from host memory for its product: least memory, slowest / 逐个矩阵调入，最省也最慢",
    )


def _choices(values: Iterable[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _request(options: argparse.Namespace) -> VideoRequest:
    preset, _ = find_preset(options.model)
    return VideoRequest(
        prompt=options.prompt,
        seed=secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed,
        frames=options.frames,
        seconds=options.seconds,
        superres=preset.enlarge if options.superres is None else options.superres,
        sampling=_sampling(options, preset.sampling),
    )


def _sampling(options: argparse.Namespace, base: SamplingOptions) -> SamplingOptions | None:
    """The preset's options with what was asked for on top; None where nothing was.

    As in the release, what is asked for together with --input-source leaves the first frame as it is.
    """
    asked: dict[str, Any] = {"temperature": options.temperature, "top_k": options.top_k}
    token = {name: value for name, value in asked.items() if value is not None}
    inner = {} if options.coglm_temperature2 is None else {"inner_temperature": options.coglm_temperature2}
    if not token and not inner and options.guidance is None:
        return None
    return dataclasses.replace(
        base,
        first_frame=base.first_frame if options.input_source else dataclasses.replace(base.first_frame, **token),
        video=dataclasses.replace(base.video, **token, **inner),
        guidance=base.guidance if options.guidance is None else options.guidance,
    )


def _outputs(options: argparse.Namespace, request: VideoRequest) -> list[Path]:
    """The files to write; refuses now what would fail after all the work."""
    out: Path = options.out or Path(f"cogvideo-{request.seed}.mp4")
    if out.suffix.lower() not in (".mp4", ".gif"):
        raise RequestError(
            f"文件名 {out} 的后缀应为 .mp4 或 .gif：例如 --out panda.mp4。",
            f"The file name {out} should end in .mp4 or .gif: for example --out panda.mp4.",
        )
    if not out.absolute().parent.is_dir():
        raise RequestError(
            f"文件夹 {out.parent} 不存在：请先创建它，或换一个位置。",
            f"The folder {out.parent} does not exist: make it first, or choose another place.",
        )
    return [out, out.with_suffix(".gif")] if options.gif and out.suffix.lower() != ".gif" else [out]


def watch(events: Iterable[Event], quiet: bool) -> tuple[Frames | None, bool]:
    """Follows a video to its end, or to Ctrl-C: the best frames there are, and whether they are the finished clip."""
    best: Frames | None = None
    try:
        for event in shown(events, quiet):
            if isinstance(event, LevelDone | Done):
                best = event.frames
    except KeyboardInterrupt:
        return best, False
    return best, True


def shown(events: Iterable[Shown], quiet: bool) -> Iterator[Shown]:
    """The same events; on the way they are shown to a person as a bar, and told to a program."""
    from tqdm import tqdm

    steps = console.Percent()
    with tqdm(unit="token", disable=quiet, dynamic_ncols=True) as bar:
        for event in events:
            _show(bar, event)
            _tell(steps, event)
            yield event


def encoded(events: Iterable[Event], film: Film) -> Iterator[Event]:
    """The same events; frames of the finished clip are encoded while later ones are still being enlarged."""
    enlarged = False
    for event in events:
        if isinstance(event, SuperResolved):
            film.add(event.frame[None])
            enlarged = True
        elif isinstance(event, Done) and not enlarged:
            film.add(event.frames)
        yield event


def _show(bar: Any, event: object) -> None:
    if isinstance(event, Loading):
        bar.set_description_str(f"载入 loading {event.part}")
        if event.found and not bar.disable:
            console.say(*event.found)
    elif isinstance(event, Progress):
        bar.total = event.total
        bar.set_description_str(STAGES.get(event.stage, event.stage), refresh=False)
        bar.update(event.done - bar.n)


def _tell(steps: console.Percent, event: object) -> None:
    """The same for a program."""
    match event:
        case Loading():
            console.event("loading", part=event.part, done=event.done, total=event.total)
        case Progress():
            steps.progress(event.stage, event.done, event.total)
        case KeyframeDone():
            console.event("keyframe", index=event.index)
        case LevelDone():
            console.event("level", level=event.level, frames=len(event.frames))


def metadata_of(pipeline: CogVideoPipeline, request: VideoRequest) -> dict[str, Any]:
    return {"app": "CogVideo for everyone", "model": pipeline.preset.name, **dataclasses.asdict(request)}


def _save(
    paths: list[Path], frames: Frames, request: VideoRequest, metadata: dict[str, Any] | None, film: Film | None
) -> None:
    """`film`: the first of the files, on its way; None: it has to be written like the others."""
    from cogvideo.video import write_video

    for path in paths:
        written = film.finish() if film and path == paths[0] else write_video(path, frames, request.seconds, metadata)
        print(written)
        console.event("file", path=written, seed=request.seed)
