"""`python -m cogvideo generate --input-source FILE`: a video for each prompt, with the arguments of the 2022 release.

Prompts come from a text file, from the keyboard, or with keyframes that an earlier call saved. Videos that the output
folder already has are not generated again. Several processes may run the same command, also on machines that share the
folder (`accelerate launch`). Each starts with its own share, continues with those of the others, and generates videos
of processes that died.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogvideo.cli import console
from cogvideo.cli.release_args import INTERACTIVE, batch_sizes, keyframe_request
from cogvideo.config import MAX_SEED
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.request import VideoRequest

if TYPE_CHECKING:
    from cogvideo.cli.output_dir import OutputDirectory
    from cogvideo.pipeline import CogVideoPipeline

SUFFIX = ".safetensors"
"""Of keyframe files. Defined here since `cogvideo.cli.output_dir` imports torch."""


def run(pipeline: CogVideoPipeline, options: argparse.Namespace, base: VideoRequest) -> int:
    """Generate all videos like `base`. Returns 0, 2 if a prompt was rejected, 130 if interrupted."""
    from cogvideo.cli.output_dir import OutputDirectory

    rank = DistributedRank.of_environment()
    max_videos, max_rows = batch_sizes(options)
    if options.input_source == INTERACTIVE and options.stage != "stage-2" and rank.size > 1:
        raise RequestError(*message("generate_batch.typed_with_several_processes"))
    output = OutputDirectory(options.output_path, pipeline.preset.name, options.stage == "stage-1")
    source = RequestSource(pipeline, options, base, output, rank)
    runner = BatchRunner(pipeline, output, rank, max_videos, max_rows, options.quiet)
    try:
        for requests in source:
            runner.generate(requests)
    except KeyboardInterrupt:
        return console.INTERRUPTED
    console.event("result", folder=output.path, refused=source.rejected)
    return console.REQUEST_ERROR if source.rejected else console.DONE


def read_prompts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, prompt) of a file or of the keyboard, without empty lines and comments (#)."""
    if source == INTERACTIVE:
        yield from _typed_prompts()
        return
    try:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(*message("generate_batch.prompt_file_unreadable", source=source, error=error)) from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _typed_prompts() -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        try:
            line = input("请输入一句中文，空行结束 / Enter a prompt, or an empty line to stop: ").strip()
        except EOFError:
            return
        if line in ("", "stop"):
            return
        number += 1
        yield number, line


@dataclass(frozen=True)
class DistributedRank:
    """Rank of this process among those that were started together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_environment(cls) -> DistributedRank:
        """Return the rank that `accelerate launch` or torchrun set. No process group is needed, so none is made."""
        size, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
        return cls(int(rank), int(size)) if size.isdigit() and rank.isdigit() else cls()

    def in_order(self, requests: Sequence[VideoRequest], batch_size: int) -> list[VideoRequest]:
        """Return `requests` with the batches of this rank first, then those of the next rank, and so on."""
        shares: list[list[VideoRequest]] = [[] for _ in range(self.size)]
        for start in range(0, len(requests), batch_size):
            shares[start // batch_size % self.size].extend(requests[start : start + batch_size])
        return [request for share in shares[self.rank :] + shares[: self.rank] for request in share]


class RequestSource:
    """Iterable of lists of valid requests that can be one batch; rejected prompts are printed and counted."""

    def __init__(
        self,
        pipeline: CogVideoPipeline,
        options: argparse.Namespace,
        base: VideoRequest,
        output: OutputDirectory,
        rank: DistributedRank,
    ) -> None:
        self._pipeline, self._options, self._base, self._output, self._rank = pipeline, options, base, output, rank
        self._copies = range(options.batch_size)
        self.rejected = 0

    def __iter__(self) -> Iterator[list[VideoRequest]]:
        source, stage2 = self._options.input_source, self._options.stage == "stage-2"
        if source == INTERACTIVE and stage2:  # as in the release: all keyframes of stage 1
            yield from _by_duration(self._from_keyframes(self._output.path))
        elif source == INTERACTIVE:
            for number, prompt in read_prompts(source):
                yield self._from_prompts([(number, prompt)])
        elif stage2 and (Path(source).is_dir() or Path(source).suffix == SUFFIX):
            yield from _by_duration(self._from_keyframes(Path(source)))
        else:
            yield self._from_prompts(read_prompts(source))

    def _from_prompts(self, lines: Iterable[tuple[int, str]]) -> list[VideoRequest]:
        accepted = []
        for number, prompt in lines:
            try:
                text = self._pipeline.check_inputs(replace(self._base, prompt=prompt)).text
                seeds = [(self._base.seed + copy) % (MAX_SEED + 1) for copy in self._copies]
                requests = [replace(self._base, prompt=text, seed=seed) for seed in seeds]
                if self._options.stage == "stage-2":
                    requests = [self._with_keyframes(request) for request in requests]
            except RequestError as error:
                self._reject(*message("generate_batch.line_error", number=number, zh_value=error.zh, en_value=error.en))
                continue
            accepted += requests
        return accepted

    def _with_keyframes(self, request: VideoRequest) -> VideoRequest:
        """Return `request` with the keyframes that --stage-1 saved for it. Raises RequestError."""
        from cogvideo.cli.output_dir import read_keyframes

        path = self._output.keyframes(keyframe_request(request))
        if not path.is_file():
            raise RequestError(*message("generate_batch.seed_keyframes_missing", seed=request.seed, path=path))
        return replace(request, initial_tokens=read_keyframes(path)[1].initial_tokens)

    def _from_keyframes(self, source: Path) -> Iterator[VideoRequest]:
        """Yield requests for the keyframes in a file or folder. Copies differ in the seed of interpolation."""
        from cogvideo.cli.output_dir import read_keyframes

        paths = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]
        if not paths:
            self._reject(*message("generate_batch.no_keyframes", source=source))
        for path in paths:
            try:
                model, saved = read_keyframes(path)
                if model != self._pipeline.preset.name:
                    raise RequestError(*message("generate_batch.other_model_keyframes", model=model))
                request = replace(self._base, prompt=saved.prompt, seed=saved.seed, duration=saved.duration)
                request = replace(request, initial_tokens=saved.initial_tokens)
                request = replace(request, prompt=self._pipeline.check_inputs(request).text)
            except RequestError as error:
                self._reject(f"{path}：{error.zh}", f"{path}: {error.en}")
                continue
            for copy in self._copies:
                seed = (saved.seed + copy) % (MAX_SEED + 1)
                yield replace(request, interpolation_seed=seed if copy else None)

    def _reject(self, zh: str, en: str) -> None:
        self.rejected += 1
        if self._rank.rank == 0:
            console.notice(zh, en)


def _by_duration(requests: Iterable[VideoRequest]) -> list[list[VideoRequest]]:
    """Return groups of one duration each: a batch may differ in prompt, seed and keyframes only."""
    groups: dict[float, list[VideoRequest]] = {}
    for request in requests:
        groups.setdefault(request.duration, []).append(request)
    return list(groups.values())


@dataclass(frozen=True)
class BatchRunner:
    """Generates at most `max_videos` videos per batch; stage 2 processes at most `max_rows` rows per network call."""

    pipeline: CogVideoPipeline
    output: OutputDirectory
    rank: DistributedRank
    max_videos: int
    max_rows: int
    quiet: bool

    def generate(self, requests: Sequence[VideoRequest]) -> None:
        """Return when all videos exist, including those that other processes generate."""
        pending = self.rank.in_order(list(dict.fromkeys(requests)), self.max_videos)
        pending = self._generate_unlocked(pending, self.max_videos, wait=False)
        if pending:
            count = len(pending)
            console.notice(*message("generate_batch.waiting_for_processes", count=count))
            # A process that ends releases its locks, even if it was killed.
            self._generate_unlocked(pending, 1, wait=True)

    def _generate_unlocked(self, pending: list[VideoRequest], limit: int, wait: bool) -> list[VideoRequest]:
        """Generate what no other process has locked; return the rest."""
        locked: list[VideoRequest] = []
        while pending:
            with ExitStack() as locks:
                ours, busy, pending = self.output.lock(locks, pending, limit, wait)
                locked += busy
                if ours:
                    self._generate_batch(ours)
        return locked

    def _generate_batch(self, requests: Sequence[VideoRequest]) -> None:
        from cogvideo.cli.generate import metadata_of
        from cogvideo.cli.progress import shown
        from cogvideo.inference.generation import GeneratedVideo

        writing: deque[tuple[VideoRequest, Future[Path]]] = deque()
        with ThreadPoolExecutor(1, "encoder") as encoder:  # encodes a video while the next one is upscaled
            try:
                for event in shown(self.pipeline.generate_batch(requests, self.max_rows), self.quiet):
                    if isinstance(event, GeneratedVideo) and event.frames is not None:
                        request = requests[event.index]
                        metadata = metadata_of(self.pipeline, request)
                        future = encoder.submit(self.output.put, request, event.frames, event.keyframes, metadata)
                        writing.append((request, future))
                        if len(writing) > 1:
                            _print_path(*writing.popleft())
            finally:
                while writing:
                    _print_path(*writing.popleft())


def _print_path(request: VideoRequest, written: Future[Path]) -> None:
    """Wait for a file and print its path."""
    path = written.result()
    print(path)
    console.event("file", path=path, seed=request.seed)
