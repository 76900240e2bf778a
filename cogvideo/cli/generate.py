"""`python -m cogvideo generate`: a Chinese sentence -> an mp4 or gif file, with a progress bar."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideo.cli import console, ensure_weights, generate_batch, release_args
from cogvideo.cli.generate_args import parser
from cogvideo.cli.progress import encoded, watch
from cogvideo.config import MAX_SEED, SamplingOptions, load_preset
from cogvideo.errors import RequestError
from cogvideo.events import Frames
from cogvideo.request import VideoRequest, request_to_dict
from cogvideo.runtime.memory_estimate import is_slow
from cogvideo.runtime.model_selection import default_model, local_rank_device

if TYPE_CHECKING:
    from cogvideo.media.video import VideoWriter
    from cogvideo.pipeline import CogVideoPipeline


def main(arguments: Sequence[str]) -> int:
    """Draws one video and returns 0; 130 where it was interrupted. Raises CogVideoError."""
    options = parser().parse_args(arguments)
    if (options.prompt is None) == (options.input_source is None):
        raise RequestError(
            "请给出一句中文（prompt），或用 --input-source 指定提示词文件，二者选一。",
            "Give one of two: a sentence (prompt), or a file of sentences with --input-source.",
        )
    options.device = options.device or local_rank_device()
    options.model = options.model or default_model(options.device)
    with console.json_output(options.json):
        return _one(options) if options.input_source is None else _many(options)


def _one(options: argparse.Namespace) -> int:
    from cogvideo.media.video import VideoWriter

    request = _request(options)
    paths = _outputs(options, request)
    pipeline = _pipeline(options)
    checked = pipeline.check_inputs(request)
    request = dataclasses.replace(request, prompt=checked.text)
    if not options.quiet:
        for note in checked.notes:
            console.notice(note.zh, note.en)
        print(f"种子 seed: {request.seed}", file=sys.stderr)
        _tell_what_to_expect(pipeline)
    metadata = None if options.no_metadata else metadata_of(pipeline, request)
    with VideoWriter(paths[0], request.num_frames, request.duration, metadata) as film:
        frames, finished = watch(encoded(pipeline.stream(request), film), quiet=options.quiet)
        if not finished:
            console.notice("已中断，保留已完成的部分。", "Stopped; what was finished is kept.")
        if frames is not None:
            _save(paths, frames, request, metadata, film if finished else None)
    if finished:
        console.event("done", seed=request.seed, frames=request.num_frames, seconds=request.duration)
    return console.DONE if finished else console.INTERRUPTED


def _many(options: argparse.Namespace) -> int:
    preset, _ = load_preset(options.model)
    sampling = _sampling(options, preset.sampling) or preset.sampling
    base = release_args.request_like(options, sampling, preset.upscale_by_default)
    pipeline = _pipeline(options)
    if not options.quiet:
        _tell_what_to_expect(pipeline)
    return generate_batch.run(pipeline, options, base)


def _pipeline(options: argparse.Namespace) -> CogVideoPipeline:
    from cogvideo.pipeline import CogVideoPipeline

    ensure_weights.ensure_weights(options.model, options.download)
    return CogVideoPipeline.from_pretrained(
        options.model,
        device=options.device,
        previews=False,  # nobody would see them
        eight_bit=options.eight_bit,
        offload=options.offload,
        memory=options.memory,
    )


def _tell_what_to_expect(pipeline: CogVideoPipeline) -> None:
    print(pipeline.memory_summary, file=sys.stderr)
    if is_slow(pipeline.preset.model, pipeline.place.memory, pipeline.place.kind):
        from cogvideo.benchmarks.memory_report import expectation

        console.notice(*expectation(pipeline.preset.model, pipeline.place))


def _request(options: argparse.Namespace) -> VideoRequest:
    preset, _ = load_preset(options.model)
    return VideoRequest(
        prompt=options.prompt,
        seed=secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed,
        num_frames=options.frames,
        duration=options.seconds,
        superres=preset.upscale_by_default if options.superres is None else options.superres,
        sampling=_sampling(options, preset.sampling),
    )


def _sampling(options: argparse.Namespace, base: SamplingOptions) -> SamplingOptions | None:
    """The preset's options with what was asked for on top; None where nothing was.

    As in the release, what is asked for together with --input-source leaves the first frame as it is.
    """
    asked: dict[str, Any] = {"temperature": options.temperature, "top_k": options.top_k}
    token = {name: value for name, value in asked.items() if value is not None}
    inner = {} if options.coglm_temperature2 is None else {"within_cluster_temperature": options.coglm_temperature2}
    whole: dict[str, Any] = {"guidance_scale": options.guidance, "best_of": options.candidates}
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


def metadata_of(pipeline: CogVideoPipeline, request: VideoRequest) -> dict[str, Any]:
    return {"app": "CogVideo for everyone", "model": pipeline.preset.name, **request_to_dict(request)}


def _save(
    paths: list[Path], frames: Frames, request: VideoRequest, metadata: dict[str, Any] | None, film: VideoWriter | None
) -> None:
    """`film`: the first of the files, on its way; None: it has to be written like the others."""
    from cogvideo.media.video import write_video

    for path in paths:
        written = film.finish() if film and path == paths[0] else write_video(path, frames, request.duration, metadata)
        print(written)
        console.event("file", path=written, seed=request.seed)
