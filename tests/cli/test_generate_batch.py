"""Many sentences: a film for each, once, whatever the sentences are and however often the command is called."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from moviepy import VideoFileClip
from safetensors import safe_open
from safetensors.torch import save_file

from cogvideo.cli import console, generate, generate_args, generate_batch, release_args
from cogvideo.cli.main import main
from cogvideo.cli.output_dir import OutputDirectory
from cogvideo.config import PRESETS, TokenSampling
from cogvideo.errors import RequestError
from cogvideo.events import Progress
from cogvideo.inference.generation import GeneratedVideo
from cogvideo.media.metadata import read_metadata
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.token_frames import TokenFrames
from tests.cli.test_generate import pipe, toy  # noqa: F401
from tests.support.dealer import dealt, differ

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


def test_a_film_is_encoded_while_the_next_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put, draw, waited = OutputDirectory.put, CogVideoPipeline.generate_batch, []
    begun, drawn = threading.Event(), threading.Event()

    def slow(self: OutputDirectory, *film: Any) -> Path:
        begun.set()
        waited.append(drawn.wait(300))
        return put(self, *film)

    def both(pipeline: CogVideoPipeline, requests: list[VideoRequest], rows: int) -> Iterator[object]:
        for event in draw(pipeline, requests, rows):
            yield event
            if isinstance(event, GeneratedVideo) and event.index == 0:
                assert begun.wait(300)
        drawn.set()

    monkeypatch.setattr(OutputDirectory, "put", slow)
    monkeypatch.setattr(CogVideoPipeline, "generate_batch", both)
    assert generate_from(f"{PANDA}\n{CAR}", "--batch-size", "2") == 0
    assert waited == [True] * len(films())
    assert sorted(capsys.readouterr().out.split()) == sorted(map(str, films()))


def test_the_same_command_again_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate_from(PANDA) == 0
    before = films()

    def never(pipeline: CogVideoPipeline, requests: list[VideoRequest], rows: int) -> Iterator[object]:
        raise AssertionError(requests)

    with monkeypatch.context() as patch:
        patch.setattr(CogVideoPipeline, "generate_batch", never)
        assert generate_from(PANDA) == 0
    assert generate_from(f"{CAR}\n{PANDA}") == 0  # another order, one more
    assert len(films()) == len(before) + 1


def test_interrupted_it_goes_on_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = CogVideoPipeline.generate_batch

    def interrupted(pipeline: CogVideoPipeline, requests: list[VideoRequest], rows: int) -> Iterator[object]:
        if requests[0].prompt == CAR:
            raise KeyboardInterrupt
        yield from draw(pipeline, requests, rows)

    with monkeypatch.context() as patch:
        patch.setattr(CogVideoPipeline, "generate_batch", interrupted)
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


@pytest.mark.parametrize("other_finishes", [True, False])
def test_what_another_process_draws_is_waited_for_and_drawn_only_where_that_one_died(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, other_finishes: bool
) -> None:
    assert generate_from(PANDA) == 0
    (film,) = films()
    whole = film.read_bytes()
    film.unlink()
    lock = FileLock(Path("films/.locks") / film.stem, thread_local=False)
    lock.acquire()
    drawn: list[str] = []

    def the_other_ends(zh: str, en: str) -> None:
        assert "aiting" in en
        assert len(films()) == 1  # ours is done
        if other_finishes:
            film.write_bytes(whole)
        lock.release()

    def count(pipeline: CogVideoPipeline, requests: list[VideoRequest], rows: int) -> Iterator[object]:
        drawn.extend(request.prompt for request in requests)
        return draw(pipeline, requests, rows)

    draw = CogVideoPipeline.generate_batch
    monkeypatch.setattr(CogVideoPipeline, "generate_batch", count)
    monkeypatch.setattr(console, "notice", the_other_ends)
    assert generate_from(f"{PANDA}\n{CAR}") == 0
    assert drawn == ([CAR] if other_finishes else [CAR, PANDA])
    assert len(films()) == 2


# --- batches --------------------------------------------------------------------------------------------------------

PROMPTS = [PANDA, "小猫旋转", "熊猫"]


def drawn(pipe: CogVideoPipeline, requests: list[VideoRequest], rows: int) -> list[GeneratedVideo]:  # noqa: F811
    return [event for event in pipe.generate_batch(requests, rows) if isinstance(event, GeneratedVideo)]


@pytest.fixture(scope="module")
def requests(pipe: CogVideoPipeline) -> list[VideoRequest]:  # noqa: F811
    return [VideoRequest(prompt, seed, num_frames=9, duration=2.0) for seed, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def alone(pipe: CogVideoPipeline, requests: list[VideoRequest]) -> list[np.ndarray]:  # noqa: F811
    return [pipe(request) for request in requests]


@pytest.mark.parametrize("together, rows", [(1, 1), (2, 3), (3, 32), (3, 4)])
def test_films_are_the_same_whatever_the_batch(
    pipe: CogVideoPipeline,  # noqa: F811
    requests: list[VideoRequest],
    alone: list[np.ndarray],
    together: int,
    rows: int,
) -> None:
    for at in range(0, len(requests), together):
        for number, film in enumerate(drawn(pipe, requests[at : at + together], rows)):
            assert film.index == number
            np.testing.assert_array_equal(film.frames, alone[at + number])


def test_enlarged_films_of_a_batch_are_brought_back_as_those_alone_are(
    pipe: CogVideoPipeline,  # noqa: F811
    requests: list[VideoRequest],
    alone: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipe, "preset", replace(pipe.preset, back_projection=0.5))
    for film, request, as_drawn in zip(drawn(pipe, requests[:2], 32), requests, alone):
        np.testing.assert_array_equal(film.frames, pipe(request))
        assert not np.array_equal(film.frames, as_drawn)


def test_keyframes_of_a_batch_are_where_stage_two_goes_on(
    pipe: CogVideoPipeline,  # noqa: F811
    requests: list[VideoRequest],
    alone: list[np.ndarray],
) -> None:
    small = [replace(request, num_frames=5, superres=False) for request in requests]
    clips = [TokenFrames.of(film.keyframes.tolist()) for film in drawn(pipe, small, 32)]
    onwards = [replace(request, initial_tokens=clip) for request, clip in zip(requests, clips)]
    for film, expected, clip in zip(drawn(pipe, onwards, 3), alone, clips):
        np.testing.assert_array_equal(film.frames, expected)
        assert film.keyframes.tolist() == clip.rows()


def test_guidance_between_keyframes_counts_and_is_the_same_in_a_batch(
    pipe: CogVideoPipeline,  # noqa: F811
    requests: list[VideoRequest],
    alone: list[np.ndarray],
) -> None:
    guided = [
        replace(r, sampling=replace(pipe.preset.sampling, interpolation_guidance_scale=4.0)) for r in requests[:2]
    ]
    for film, request, unguided in zip(drawn(pipe, guided, 3), guided, alone):
        np.testing.assert_array_equal(film.frames, pipe(request))
        np.testing.assert_array_equal(film.frames[::2], unguided[::2])  # the keyframes
    *keyframes, between, _ = (
        differ(one, other) for one, other in zip(dealt(pipe, requests[0]), dealt(pipe, guided[0]), strict=True)
    )
    assert keyframes == [False] * 5
    assert between


def test_a_batch_counts_its_tokens_exactly(pipe: CogVideoPipeline, requests: list[VideoRequest]) -> None:  # noqa: F811
    steps = [event for event in pipe.generate_batch(requests[:2], 5) if isinstance(event, Progress)]
    plan = tokens_per_stage(pipe.preset.model, requests[0])
    assert steps[-1].done == steps[-1].total == 2 * sum(plan.values())
    assert [event.done for event in steps] == sorted(event.done for event in steps)


@pytest.mark.parametrize(
    "words, sizes",
    [
        ([], [1, 1, 1, 1]),
        (["--stage1-max-inference-batch-size", "3"], [3, 1]),
        (["--max-inference-batch-size", "2"], [2, 2]),
        (["--max-inference-batch-size", "9", "--stage1-max-inference-batch-size", "1"], [1, 1, 1, 1]),
    ],
)
def test_batches_are_as_large_as_asked(monkeypatch: pytest.MonkeyPatch, words: list[str], sizes: list[int]) -> None:
    seen = []

    def draw_nothing(pipeline: CogVideoPipeline, requests: list[VideoRequest], rows: int) -> Iterator[object]:
        seen.append(len(requests))
        return iter(())

    monkeypatch.setattr(CogVideoPipeline, "generate_batch", draw_nothing)
    assert generate_from(f"{PANDA}\n{CAR}", "--batch-size", "2", *words) == 0
    assert seen == sizes


# --- stages ---------------------------------------------------------------------------------------------------------

SIZES = ["--frames", "9", "--seed", "5", "--batch-size", "2"]


def frames_of(path: Path) -> bytes:
    """What a film shows: metadata differ between a film drawn at once and in two calls."""
    with VideoFileClip(str(path)) as reader:
        return b"".join(frame.tobytes() for frame in reader.iter_frames())


def test_stage_two_goes_on_from_what_stage_one_kept() -> None:
    assert generate_from(PANDA, *SIZES, "--both-stages") == 0
    whole = [frames_of(film) for film in films()]
    assert generate_from(PANDA, *SIZES, "--stage-1", "--output-path", "two") == 0
    kept = sorted(Path("two").glob("*.safetensors"))
    assert [film.stem for film in films("two")] == [path.stem for path in kept]
    assert generate_from(PANDA, *SIZES, "--stage-2", "--output-path", "two") == 0
    later = [frames_of(film) for film in films("two") if film.stem not in {path.stem for path in kept}]
    assert sorted(later) == sorted(whole)
    before = films("two")
    assert generate_from(PANDA, *SIZES, "--stage-2", "--use-guidance-stage2", "--output-path", "two") == 0
    guided = [film for film in films("two") if film not in before]
    assert len(guided) == 2
    for number, film in enumerate(sorted(guided, key=lambda film: read_metadata(film)["seed"])):  # type: ignore[index]
        metadata = read_metadata(film)
        assert metadata is not None
        assert metadata["seed"] == 5 + number
        assert metadata["sampling"]["between_guidance"] == 3.0


@pytest.mark.parametrize("source", ["folder", "file"])
def test_stage_two_takes_keyframes_from_anywhere(source: str) -> None:
    assert generate_from(f"{PANDA}\n{CAR}", "--stage-1", "--output-path", "one", "--seed", "8") == 0
    kept = sorted(Path("one").glob("*.safetensors"))
    Path("moved").mkdir()
    for path in kept:
        path.rename(Path("moved") / path.name)
    name = "moved" if source == "folder" else f"moved/{kept[0].name}"
    words = ["generate", "--input-source", name, "--output-path", "films", *SMALL, "--frames", "9", "--stage-2"]
    assert main(words) == 0
    assert len(films()) == (2 if source == "folder" else 1)
    for film in films():
        metadata = read_metadata(film)
        assert metadata is not None
        assert metadata["prompt"] in (PANDA, CAR)
        assert (metadata["seed"], metadata["frames"]) == (8, 9)
    assert main([*words, "--batch-size", "2"]) == 0  # others between the same keyframes
    assert len(films()) == (4 if source == "folder" else 2)


def test_stage_two_takes_all_that_stage_one_kept_where_it_was_put() -> None:
    assert generate_from(f"{PANDA}\n{CAR}", "--stage-1") == 0
    before = films()
    words = ["generate", "--input-source", "interactive", "--output-path", "films", *SMALL, "--frames", "9"]
    assert main([*words, "--stage-2"]) == 0  # nobody is asked for a sentence
    assert len(set(films()) - set(before)) == 2


def test_stage_two_without_keyframes_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_from(PANDA, "--stage-2") == 2
    assert "--stage-1 with the same arguments" in capsys.readouterr().err
    Path("empty").mkdir()
    assert main(["generate", "--input-source", "empty", "--output-path", "films", "--stage-2"]) == 2
    assert "Run --stage-1 first" in capsys.readouterr().err


def test_keyframes_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_from(PANDA, "--stage-1", "--output-path", "one") == 0
    (path,) = Path("one").glob("*.safetensors")
    good = path.read_bytes()
    whole = torch.zeros(5, 16, dtype=torch.int32)
    spoils: list[Callable[[], object]] = [
        lambda: path.write_bytes(b"\x80\x04evil"),
        lambda: path.write_bytes(good[:-9]),
        lambda: path.write_bytes(bytes(2**20 + 1)),
        lambda: save_file({"weights": torch.zeros(3)}, path),
        lambda: save_file({"keyframes": whole}, path),
        *(lambda k=k: edit_keyframes(path, k) for k in (whole - 1, whole + 64, whole + 2**20)),  # type: ignore[misc]
        *(lambda k=k: edit_keyframes(path, k) for k in (whole[:, 1:].clone(), whole[1:], whole.float())),  # type: ignore[misc]
        lambda: edit_keyframes(path, whole, model="another"),
        lambda: edit_keyframes(path, whole, request="[]"),
        lambda: edit_keyframes(path, whole, request='{"prompt": 5}'),
        lambda: edit_keyframes(path, whole, request='{"prompt": "x", "unknown": 1}'),
    ]
    for number, spoil in enumerate(spoils):
        path.write_bytes(good)
        spoil()
        capsys.readouterr()
        words = ["--output-path", "films", *SMALL, "--stage-2"]
        assert main(["generate", "--input-source", str(path), *words]) == 2, number
        assert str(path) in capsys.readouterr().err
    assert films() == []


def edit_keyframes(path: Path, keyframes: torch.Tensor, **about: str) -> None:
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({"keyframes": keyframes}, path, metadata | about)


# --- many processes -------------------------------------------------------------------------------------------------


def test_each_process_begins_with_its_share_and_none_is_left_out() -> None:
    requests = [VideoRequest(PANDA, seed) for seed in range(7)]
    orders = [generate_batch.DistributedRank(rank, 3).in_order(requests, 2) for rank in range(3)]
    assert all(sorted(r.seed for r in order) == list(range(7)) for order in orders)
    assert [order[0].seed for order in orders] == [0, 2, 4]
    assert [[r.seed for r in order[:2]] for order in orders] == [[0, 1], [2, 3], [4, 5]]


def test_several_processes_share_no_keyboard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate", "--input-source", "interactive"]) == 2
    assert "--input-source" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [f"{PANDA}\n\n", f"{PANDA}\nstop\n", f"{PANDA}\n"], ids=["empty", "stop", "end"])
def test_sentences_can_be_typed(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert main(["generate", "--input-source", "interactive", "--output-path", "films", *SMALL]) == 0
    assert len(films()) == 1


def test_the_releases_words_mean_what_they_say() -> None:
    def like(*words: str) -> VideoRequest:
        options = generate_args.parser().parse_args(["--input-source", "x", *words])
        return release_args.base_request(options, PRESETS["mini"].sampling, upscale=True)

    assert like().sampling.guidance_scale == 1.0  # type: ignore[union-attr]
    assert like("--use-guidance-stage1", "--guidance-alpha", "5").sampling.guidance_scale == 5.0  # type: ignore[union-attr]
    assert (like("--stage-1").num_frames, like("--stage-1").superres) == (5, False)
    assert (like("--both-stages").num_frames, like("--stage-2").superres) == (33, True)
    assert like().seed == like().seed
    assert like("--guidance-alpha", "5").sampling.interpolation_guidance_scale == 1.0  # type: ignore[union-attr]
    assert like("--use-guidance-stage2").sampling.interpolation_guidance_scale == 3.0  # type: ignore[union-attr]


def test_the_releases_own_command_is_understood() -> None:
    words = """--input-source x --output-path ./output --parallel-size 1 --both-stages --use-guidance-stage1
        --guidance-alpha 3.0 --generate-frame-num 5 --tokenizer-type fake --mode inference --distributed-backend nccl
        --fp16 --model-parallel-size 1 --temperature 1.05 --coglm-temperature2 0.7 --top_k 9 --sandwich-ln --seed 1234
        --num-workers 0 --batch-size 4 --max-inference-batch-size 8 --stage1-max-inference-batch-size -1"""
    options = generate_args.parser().parse_args(words.split())
    usual = PRESETS["cogvideo"].sampling
    sampling = generate._sampling(options, usual)
    assert sampling is not None
    assert sampling.video == TokenSampling(1.05, 9, 0.7)
    assert sampling.first_frame == usual.first_frame  # which the release draws with numbers of its own
    assert release_args.batch_sizes(options) == (8, 8)
    with pytest.raises(RequestError, match="--generate-frame-num"):
        generate_args.parser().parse_args(["--generate-frame-num", "9"])


@pytest.mark.parametrize(
    "words, usual, expected", [([], False, False), ([], True, True), (["--superres"], False, True)]
)
def test_films_are_enlarged_where_asked_or_usual(words: list[str], usual: bool, expected: bool) -> None:
    options = generate_args.parser().parse_args(["--input-source", "x", *words])
    assert release_args.base_request(options, PRESETS["mini"].sampling, usual).superres is expected


@pytest.mark.parametrize(
    "words, said",
    [
        (["--input-source", "nowhere.txt"], "nowhere.txt"),
        (["--input-source", "interactive", "--batch-size", "0"], "1 or more"),
        (["--input-source", "interactive", PANDA], "Exactly one"),
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
    script = Path(__file__).resolve().parents[2] / "scripts" / "inference_cogvideo_pipeline.sh"
    answer = subprocess.run(
        [str(script), "--model", "mini"],
        env={"PYTHON": str(echo), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = answer.stdout.split()
    assert words[:3] == ["-m", "cogvideo", "generate"]
    options = generate_args.parser().parse_args(words[3:])
    assert (options.model, options.stage, options.seed, options.guidance_alpha) == ("mini", "both-stages", 1234, 3.0)
