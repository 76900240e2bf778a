"""Many sentences: a film for each, once, whatever the sentences are and however often the command is called."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from test_generate import pipe, toy  # noqa: F401

from cogvideo import generate, many
from cogvideo.__main__ import main
from cogvideo.config import PRESETS, VideoRequest
from cogvideo.events import Event
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.video import read_metadata

PANDA, CAR = "一只熊猫在草地上向右跑", "一只汽车在雪地上旋转"
SMALL = ["--frames", "5", "--no-superres", "--quiet"]


def films(folder: str = "films") -> list[Path]:
    return sorted(Path(folder).glob("*.mp4"))


def generate_from(text: str, *words: str) -> int:
    Path("prompts.txt").write_text(text, encoding="utf-8")
    return main(["generate", "--input-source", "prompts.txt", "--output-path", "films", *SMALL, *words])


def test_every_line_becomes_a_film_and_the_index_tells_which() -> None:
    assert generate_from(f"\ufeff# two\n{PANDA}\n\n  {CAR}  \n{PANDA}\n\n") == 0
    told = {line.split("\t")[0]: line.split("\t")[2] for line in Path("films/index.tsv").read_text().splitlines()}
    assert {path.name for path in films()} == set(told)
    assert sorted(told.values()) == sorted([PANDA, CAR])
    for path in films():
        metadata = read_metadata(path)
        assert metadata is not None
        assert metadata["prompt"] == told[path.name]


def test_the_same_command_again_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate_from(PANDA) == 0
    before = films()

    def never(self: CogVideoPipeline, request: VideoRequest) -> Iterator[Event]:
        raise AssertionError(request.prompt)

    with monkeypatch.context() as patch:
        patch.setattr(CogVideoPipeline, "stream", never)
        assert generate_from(PANDA) == 0
    assert generate_from(f"{CAR}\n{PANDA}") == 0  # another order, one more
    assert len(films()) == len(before) + 1


def test_interrupted_it_goes_on_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = CogVideoPipeline.stream

    def interrupted(self: CogVideoPipeline, request: VideoRequest) -> Iterator[Event]:
        if request.prompt == CAR:
            raise KeyboardInterrupt
        yield from stream(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(CogVideoPipeline, "stream", interrupted)
        assert generate_from(f"{PANDA}\n{CAR}") == 130
    assert len(films()) == 1
    assert generate_from(f"{PANDA}\n{CAR}") == 0
    assert len(films()) == 2


def test_a_bad_line_is_named_and_the_others_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_from(f"../../etc/passwd\n{PANDA}\n$(rm -rf .)") == 2
    err = capsys.readouterr().err
    assert "Line 1:" in err
    assert "Line 3:" in err
    assert len(films()) == 1


def test_sentences_are_never_paths() -> None:
    assert generate_from(f"{PANDA}/../../熊猫; 'rm' | \"x\"") == 0
    (film,) = films()
    assert film.stem.replace("-", "").isalnum()
    assert film.stem.isascii()
    assert {path.name for path in Path().iterdir()} == {"films", "prompts.txt"}


def test_copies_have_seeds_of_their_own() -> None:
    assert generate_from(PANDA, "--batch-size", "3", "--max-inference-batch-size", "2", "--seed", "4294967295") == 0
    seeds = {read_metadata(path)["seed"] for path in films()}  # type: ignore[index]
    assert seeds == {4294967295, 0, 1}


def test_what_another_process_draws_is_left_to_it() -> None:
    assert generate_from(PANDA) == 0
    (film,) = films()
    film.unlink()
    taken, over = threading.Event(), threading.Event()

    def other() -> None:
        with FileLock(Path("films/.locks") / film.stem):
            taken.set()
            over.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    taken.wait(60)
    try:
        assert generate_from(f"{PANDA}\n{CAR}") == 0
    finally:
        over.set()
        thread.join()
    assert film not in films()
    assert len(films()) == 1


@pytest.mark.parametrize("typed", [f"{PANDA}\n\n", f"{PANDA}\n"], ids=["empty line", "end of input"])
def test_sentences_can_be_typed(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert main(["generate", "--input-source", "interactive", "--output-path", "films", *SMALL]) == 0
    assert len(films()) == 1


def test_the_releases_words_mean_what_they_say() -> None:
    def like(*words: str) -> VideoRequest:
        options = generate._parser().parse_args(["--input-source", "x", *words])
        return many.request_like(options, PRESETS["mini"].sampling, enlarge=True)

    assert like().sampling.guidance == 1.0  # type: ignore[union-attr]
    assert like("--use-guidance-stage1", "--guidance-alpha", "5").sampling.guidance == 5.0  # type: ignore[union-attr]
    assert (like("--stage-1").frames, like("--stage-1").superres) == (5, False)
    assert (like("--both-stages").frames, like("--stage-2").superres) == (33, True)
    assert like().seed == like().seed


@pytest.mark.parametrize(
    "words, usual, expected", [([], False, False), ([], True, True), (["--superres"], False, True)]
)
def test_films_are_enlarged_where_asked_or_usual(words: list[str], usual: bool, expected: bool) -> None:
    options = generate._parser().parse_args(["--input-source", "x", *words])
    assert many.request_like(options, PRESETS["mini"].sampling, usual).superres is expected


@pytest.mark.parametrize(
    "words, said",
    [
        (["--input-source", "nowhere.txt"], "nowhere.txt"),
        (["--input-source", "interactive", "--batch-size", "0"], "1 or more"),
        (["--input-source", "interactive", PANDA], "one of two"),
        ([], "prompt"),
    ],
)
def test_mistakes_are_told(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["generate", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_releases_script_calls_the_command(tmp_path: Path) -> None:
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\necho "$@"\n')
    echo.chmod(0o755)
    script = Path(__file__).resolve().parent.parent / "scripts" / "inference_cogvideo_pipeline.sh"
    answer = subprocess.run(
        [str(script), "--model", "mini"],
        env={"PYTHON": str(echo), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = answer.stdout.split()
    assert words[:3] == ["-m", "cogvideo", "generate"]
    options = generate._parser().parse_args(words[3:])
    assert (options.model, options.stage, options.seed, options.guidance_alpha) == ("mini", "both-stages", 1234, 3.0)
