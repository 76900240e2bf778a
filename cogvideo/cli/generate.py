"""`python -m cogvideo generate`: a Chinese sentence -> an mp4 or gif file, with a progress bar."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cogvideo.cli import console, ensure_weights, generate_batch, release_args
from cogvideo.cli.generate_args import parser
from cogvideo.config import MAX_SEED, SamplingOptions, VideoRequest, find_preset
from cogvideo.errors import RequestError
from cogvideo.events import Done, Event, Frames, KeyframeDone, LevelDone, Loading, Progress, SuperResolved
from cogvideo.runtime.memory_estimate import takes_long
from cogvideo.runtime.model_selection import default_model, own_device

if TYPE_CHECKING:
    from cogvideo.media.video import Film
    from cogvideo.pipeline import CogVideoPipeline

Shown = TypeVar("Shown")

STAGES = {"keyframes": "关键帧 keyframes", "interpolate": "插帧 in-betweens", "superres": "超分 super-resolution"}


def main(arguments: Sequence[str]) -> int:
    """Draws one video and returns 0; 130 where it was interrupted. Raises CogVideoError."""
    options = parser().parse_args(arguments)
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
    from cogvideo.media.video import Film

    request = _request(options)
    paths = _outputs(options, request)
    pipeline = _pipeline(options)
    checked = pipeline.check(request)
    request = dataclasses.replace(request, prompt=checked.text)
    if not options.quiet:
        for note in checked.notes:
            console.say(note.zh, note.en)
        print(f"种子 seed: {request.seed}", file=sys.stderr)
        _tell_what_to_expect(pipeline)
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
    base = release_args.request_like(options, sampling, preset.enlarge)
    pipeline = _pipeline(options)
    if not options.quiet:
        _tell_what_to_expect(pipeline)
    return generate_batch.run(pipeline, options, base)


def _pipeline(options: argparse.Namespace) -> CogVideoPipeline:
    from cogvideo.pipeline import CogVideoPipeline

    ensure_weights.obtain(options.model, options.download)
    return CogVideoPipeline.from_pretrained(
        options.model,
        device=options.device,
        previews=False,  # nobody would see them
        eight_bit=options.eight_bit,
        offload=options.offload,
        memory=options.memory,
    )


def _tell_what_to_expect(pipeline: CogVideoPipeline) -> None:
    print(pipeline.held, file=sys.stderr)
    if takes_long(pipeline.preset.model, pipeline.place.memory, pipeline.place.kind):
        from cogvideo.benchmarks.memory_report import expectation

        console.say(*expectation(pipeline.preset.model, pipeline.place))


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
    whole: dict[str, Any] = {"guidance": options.guidance, "candidates": options.candidates}
    whole = {name: value for name, value in whole.items() if value is not None}
    if not token and not inner and not whole:
        return None
    return dataclasses.replace(
        base,
        first_frame=base.first_frame if options.input_source else dataclasses.replace(base.first_frame, **token),
        video=dataclasses.replace(base.video, **token, **inner),
        **whole,
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
    from cogvideo.media.video import write_video

    for path in paths:
        written = film.finish() if film and path == paths[0] else write_video(path, frames, request.seconds, metadata)
        print(written)
        console.event("file", path=written, seed=request.seed)
