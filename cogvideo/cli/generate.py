"""`python -m cogvideo generate`: generate an mp4 or gif file from a Chinese sentence, with a progress bar."""

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
from cogvideo.messages import message
from cogvideo.request import VideoRequest, request_to_dict
from cogvideo.runtime.memory_estimate import is_slow
from cogvideo.runtime.model_selection import default_model, local_rank_device

if TYPE_CHECKING:
    from cogvideo.media.video import VideoWriter
    from cogvideo.pipeline import CogVideoPipeline


def main(argv: Sequence[str]) -> int:
    """Generate one video or a batch. Returns 0, or 130 if interrupted. Raises CogVideoError."""
    options = parser().parse_args(argv)
    if (options.prompt is None) == (options.input_source is None):
        raise RequestError(*message("generate.prompt_or_file"))
    options.device = options.device or local_rank_device()
    options.model = options.model or default_model(options.device)
    with console.json_output(options.json):
        return _generate_one(options) if options.input_source is None else _generate_batch(options)


def _generate_one(options: argparse.Namespace) -> int:
    from cogvideo.media.video import VideoWriter

    request = _request(options)
    paths = _output_paths(options, request)
    pipeline = _load_pipeline(options)
    checked = pipeline.check_inputs(request)
    request = dataclasses.replace(request, prompt=checked.text)
    if not options.quiet:
        for note in checked.notes:
            console.notice(note.zh, note.en)
        print(f"种子 seed: {request.seed}", file=sys.stderr)
        _print_expectation(pipeline)
    metadata = None if options.no_metadata else metadata_of(pipeline, request)
    with VideoWriter(paths[0], request.num_frames, request.duration, metadata) as writer:
        frames, finished = watch(encoded(pipeline.stream(request), writer), quiet=options.quiet)
        if not finished:
            console.notice(*message("generate.interrupted"))
        if frames is not None:
            _save(paths, frames, request, metadata, writer if finished else None)
    if finished:
        console.event("result", seed=request.seed, frames=request.num_frames, seconds=request.duration)
    return console.DONE if finished else console.INTERRUPTED


def _generate_batch(options: argparse.Namespace) -> int:
    preset, _ = load_preset(options.model)
    sampling = _sampling(options, preset.sampling) or preset.sampling
    base = release_args.base_request(options, sampling, preset.upscale_by_default)
    pipeline = _load_pipeline(options)
    if not options.quiet:
        _print_expectation(pipeline)
    return generate_batch.run(pipeline, options, base)


def _load_pipeline(options: argparse.Namespace) -> CogVideoPipeline:
    from cogvideo.pipeline import CogVideoPipeline

    ensure_weights.ensure_weights(options.model, options.download)
    return CogVideoPipeline.from_pretrained(
        options.model,
        device=options.device,
        previews=False,  # a terminal cannot show them
        memory_preset=options.memory,
        quantization=options.quantization,
        offload="layers" if options.offload else None,
    )


def _print_expectation(pipeline: CogVideoPipeline) -> None:
    """Print the memory preset, and the time of a video if it is long."""
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
    """Return `base` with the given options replaced; None if none was given.

    As in the 2022 release, token options given with --input-source do not apply to the first frame.
    """
    tokens = _given(temperature=options.temperature, top_k=options.top_k)
    within_cluster = _given(within_cluster_temperature=options.coglm_temperature2)
    video = _given(guidance_scale=options.guidance, best_of=options.candidates)
    if not tokens and not within_cluster and not video:
        return None
    return dataclasses.replace(
        base,
        first_frame=base.first_frame if options.input_source else dataclasses.replace(base.first_frame, **tokens),
        video=dataclasses.replace(base.video, **tokens, **within_cluster),
        **video,
    )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _output_paths(options: argparse.Namespace, request: VideoRequest) -> list[Path]:
    """Return the files to write. Raises RequestError, before any work, if they cannot be written."""
    output: Path = options.output or Path(f"cogvideo-{request.seed}.mp4")
    if output.suffix.lower() not in (".mp4", ".gif"):
        raise RequestError(*message("generate.wrong_file_extension", output=output))
    if not output.absolute().parent.is_dir():
        raise RequestError(*message("generate.folder_missing", parent=output.parent))
    return [output, output.with_suffix(".gif")] if options.gif and output.suffix.lower() != ".gif" else [output]


def metadata_of(pipeline: CogVideoPipeline, request: VideoRequest) -> dict[str, Any]:
    """Return the settings that are stored in a video file."""
    return {"app": "CogVideo for everyone", "model": pipeline.preset.name, **request_to_dict(request)}


def _save(
    paths: list[Path],
    frames: Frames,
    request: VideoRequest,
    metadata: dict[str, Any] | None,
    writer: VideoWriter | None,
) -> None:
    """Write all files. `writer`: has encoded the first of them; None if generation was interrupted."""
    from cogvideo.media.video import write_video

    for path in paths:
        if writer and path == paths[0]:
            written = writer.finish()
        else:
            written = write_video(path, frames, request.duration, metadata)
        print(written)
        console.event("file", path=written, seed=request.seed)
