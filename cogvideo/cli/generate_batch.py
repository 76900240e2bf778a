"""`python -m cogvideo generate --input-source FILE`: many sentences -> a film each, with the arguments of the release.

In: a text file with a sentence a line, the keyboard, or keyframes that an earlier call kept. Out: a folder of films.
What is there already is not drawn again. The same command may run several times, one after another or at once, on one
machine or on several that share the folder (`accelerate launch`): each process begins with its share, then helps the
others, and draws what one that died had begun.
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
from typing import TYPE_CHECKING, Any

from cogvideo.cli import console
from cogvideo.cli.release_args import INTERACTIVE, batches, keyframes_like
from cogvideo.config import MAX_SEED
from cogvideo.errors import RequestError
from cogvideo.request import VideoRequest

if TYPE_CHECKING:
    from cogvideo.cli.output_dir import OutputDirectory
    from cogvideo.pipeline import CogVideoPipeline

SUFFIX = ".safetensors"
"""Of keyframes (`cogvideo.cli.output_dir`, which takes torch to import)."""


def run(pipeline: CogVideoPipeline, options: argparse.Namespace, base: VideoRequest) -> int:
    """Draws all films like `base`; 0 where all are there, 2 where a sentence was refused, 130 where interrupted."""
    from cogvideo.cli.output_dir import OutputDirectory

    team = DistributedRank.of_environment()
    rows = batches(options)
    if options.input_source == INTERACTIVE and options.stage != "stage-2" and team.size > 1:
        raise RequestError(
            "多进程运行时不能从键盘输入：请用 --input-source 指定提示词文件。",
            "Several processes cannot share a keyboard: give a file with --input-source.",
        )
    films = OutputDirectory(options.output_path, pipeline.preset.name, options.stage == "stage-1")
    wishes = RequestSource(pipeline, options, base, films, team)
    work = BatchRunner(pipeline, films, team, *rows, options.quiet)
    try:
        for group in wishes:
            work.draw(group)
    except KeyboardInterrupt:
        return console.INTERRUPTED
    console.event("done", folder=films.path, refused=wishes.refused)
    return console.REQUEST_ERROR if wishes.refused else console.DONE


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """(line number, sentence) of a file or of the keyboard, without empty lines and those after #."""
    if source == INTERACTIVE:
        yield from _typed()
        return
    try:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"无法读取提示词文件 {source}（{error}）：需要 UTF-8 文本，每行一句。",
            f"The file of sentences {source} cannot be read ({error}): it should be UTF-8 text, a sentence a line.",
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _typed() -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        try:
            line = input("一句中文，空行结束 / a sentence, an empty line ends: ").strip()
        except EOFError:
            return
        if line in ("", "stop"):
            return
        number += 1
        yield number, line


@dataclass(frozen=True)
class DistributedRank:
    """Processes that were started together to do the same work; `rank` is ours."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_environment(cls) -> DistributedRank:
        """As `accelerate launch` and torchrun tell; no process group is made, since each must do without the others."""
        size, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
        return cls(int(rank), int(size)) if size.isdigit() and rank.isdigit() else cls()

    def in_order(self, requests: Sequence[VideoRequest], together: int) -> list[VideoRequest]:
        """Our own share first, `together` films at a time; then those of the next process, and so on."""
        shares: list[list[VideoRequest]] = [[] for _ in range(self.size)]
        for at in range(0, len(requests), together):
            shares[at // together % self.size].extend(requests[at : at + together])
        return [request for share in shares[self.rank :] + shares[: self.rank] for request in share]


class RequestSource:
    """Groups of requests that may be drawn together, checked; what is refused is told and counted."""

    def __init__(
        self,
        pipeline: CogVideoPipeline,
        options: argparse.Namespace,
        base: VideoRequest,
        films: OutputDirectory,
        team: DistributedRank,
    ) -> None:
        self._pipeline, self._options, self._base, self._films, self._team = pipeline, options, base, films, team
        self._copies = range(options.batch_size)
        self.refused = 0

    def __iter__(self) -> Iterator[list[VideoRequest]]:
        source, second = self._options.input_source, self._options.stage == "stage-2"
        if source == INTERACTIVE and second:  # as the release has it: all that stage 1 kept
            yield from _alike(self._of_saved(self._films.path))
        elif source == INTERACTIVE:
            for number, sentence in sentences(source):
                yield self._of_sentences([(number, sentence)])
        elif second and (Path(source).is_dir() or Path(source).suffix == SUFFIX):
            yield from _alike(self._of_saved(Path(source)))
        else:
            yield self._of_sentences(sentences(source))

    def _of_sentences(self, lines: Iterable[tuple[int, str]]) -> list[VideoRequest]:
        requests = []
        for number, sentence in lines:
            try:
                text = self._pipeline.check_inputs(replace(self._base, prompt=sentence)).text
                seeds = [(self._base.seed + copy) % (MAX_SEED + 1) for copy in self._copies]
                wished = [replace(self._base, prompt=text, seed=seed) for seed in seeds]
                if self._options.stage == "stage-2":
                    wished = [self._go_on(request) for request in wished]
            except RequestError as error:
                self._refuse(f"第 {number} 行：{error.zh}", f"Line {number}: {error.en}")
                continue
            requests += wished
        return requests

    def _go_on(self, request: VideoRequest) -> VideoRequest:
        """`request` with the keyframes that --stage-1 drew for it. Raises RequestError."""
        from cogvideo.cli.output_dir import read_keyframes

        path = self._films.keyframes(keyframes_like(request))
        if not path.is_file():
            raise RequestError(
                f"种子 {request.seed} 的关键帧不在 {path}：请先用相同参数运行 --stage-1，或改用 --both-stages。",
                f"The keyframes of seed {request.seed} are not at {path}: run --stage-1 with the same arguments first, "
                "or use --both-stages.",
            )
        return replace(request, initial_tokens=read_keyframes(path)[1].initial_tokens)

    def _of_saved(self, source: Path) -> Iterator[VideoRequest]:
        """Films from the keyframes in a file or folder; copies differ in what lies between the keyframes."""
        from cogvideo.cli.output_dir import read_keyframes

        paths = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]
        if not paths:
            self._refuse(
                f"文件夹 {source} 中没有关键帧：请先运行 --stage-1。",
                f"The folder {source} has no keyframes: run --stage-1 first.",
            )
        for path in paths:
            try:
                model, saved = read_keyframes(path)
                if model != self._pipeline.preset.name:
                    raise RequestError(
                        f"这些关键帧属于模型 {model}：请加 --model {model}。",
                        f"These keyframes belong to the model {model}: add --model {model}.",
                    )
                request = replace(self._base, prompt=saved.prompt, seed=saved.seed, duration=saved.duration)
                request = replace(request, initial_tokens=saved.initial_tokens)
                request = replace(request, prompt=self._pipeline.check_inputs(request).text)
            except RequestError as error:
                self._refuse(f"{path}：{error.zh}", f"{path}: {error.en}")
                continue
            for copy in self._copies:
                seed = (saved.seed + copy) % (MAX_SEED + 1)
                yield replace(request, interpolation_seed=seed if copy else None)

    def _refuse(self, zh: str, en: str) -> None:
        self.refused += 1
        if self._team.rank == 0:
            console.notice(zh, en)


def _alike(requests: Iterable[VideoRequest]) -> list[list[VideoRequest]]:
    """Groups that differ in sentence, seed and keyframes alone."""
    groups: dict[Any, list[VideoRequest]] = {}
    for request in requests:
        groups.setdefault(request.duration, []).append(request)
    return list(groups.values())


@dataclass(frozen=True)
class BatchRunner:
    """Draws films, at most `together` at a time; in stage 2 networks read `rows` blocks at once."""

    pipeline: CogVideoPipeline
    films: OutputDirectory
    team: DistributedRank
    together: int
    rows: int
    quiet: bool

    def draw(self, requests: Sequence[VideoRequest]) -> None:
        """Returns when all of `requests` are there, whoever drew them."""
        left = self.team.in_order(list(dict.fromkeys(requests)), self.together)
        left = self._pass(left, self.together, wait=False)
        if left:
            count = len(left)
            console.notice(f"另有 {count} 段正由其他进程生成，等待中。", f"Other processes draw {count} more: waiting.")
            self._pass(left, 1, wait=True)  # whoever ends, however it ends, lets go of its films

    def _pass(self, left: list[VideoRequest], most: int, wait: bool) -> list[VideoRequest]:
        """One look at each; returns those that others draw."""
        others: list[VideoRequest] = []
        while left:
            with ExitStack() as held:
                ours, busy, left = self.films.lock(held, left, most, wait)
                others += busy
                if ours:
                    self._draw(ours)
        return others

    def _draw(self, requests: Sequence[VideoRequest]) -> None:
        from cogvideo.cli.generate import metadata_of
        from cogvideo.cli.progress import shown
        from cogvideo.inference.generation import GeneratedVideo

        writing: deque[tuple[VideoRequest, Future[Path]]] = deque()
        with ThreadPoolExecutor(1, "films") as other:  # a film is encoded while the next is enlarged and decoded
            try:
                for event in shown(self.pipeline.generate_batch(requests, self.rows), self.quiet):
                    if isinstance(event, GeneratedVideo) and event.frames is not None:
                        request = requests[event.index]
                        what = (request, event.frames, event.keyframes, metadata_of(self.pipeline, request))
                        writing.append((request, other.submit(self.films.put, *what)))
                        if len(writing) > 1:
                            _tell(*writing.popleft())
            finally:
                while writing:
                    _tell(*writing.popleft())


def _tell(request: VideoRequest, written: Future[Path]) -> None:
    """Waits for a film and names it."""
    path = written.result()
    print(path)
    console.event("file", path=path, seed=request.seed)
