"""What people and programs may ask for: random prompts and options, through the command line's check and the API's.

What is expected: a checked prompt that the model can read, or a sentence. Never another error, never a control token.
"""

from __future__ import annotations

import inspect
import io
import random
import string
import unicodedata
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from scripts.faults.report import Counts, Fault, Unexpected, expect
from scripts.faults.victim import KEY, MANY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cogvideo.events import VideoCompleted
    from cogvideo.pipeline import CogVideoPipeline
    from cogvideo.request import VideoRequest

NASTY = (
    "<n>", "＜n＞", "<|endoftext|>", "<start_of_image>", "<<n>n>", "&lt;script&gt;", "<script>alert(1)</script>",
    "../../etc/passwd", "'; DROP TABLE jobs;--", "%s%n{0}", "\x00", "\x1b[31m", "\ud800", "\u202e", "\u200b", "\ufeff",
    "👩‍👩‍👧", "🐼", "熊貓", "龘", "\U0002a6a5", "한국어", "ｆｕｌｌ", "--help", "-", "\n", "\t", "\u2028",
    "e\u0301" * 40,
)  # fmt: skip
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**70,
    float("nan"),
    float("inf"),
    "",
    "7",
    [],
    {},
    ["猫"],
    {"猫": 1},
    "\ud800",
]


def prompts(folder: Path, times: int) -> Counts:
    """Random prompts with random options: typed as `cogvideo generate`, then asked of the API.

    The command line runs whole, with mini's real vocabulary, to the file and what it holds; only drawing is left out.
    """
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from cogvideo.jobs.service import JobService
    from cogvideo.web import page
    from cogvideo.web.api import endpoints
    from tests.support.fakes import PlainFilm

    counts, pipeline = Counts(), _mini_without_drawing()
    anything = st.text(st.characters(), max_size=60)  # surrogates and control characters too
    chinese = st.text(st.sampled_from("一只熊猫在草地上向右跑夜空中火箭高清視頻，。"), max_size=20)
    wish = st.lists(st.one_of(anything, chinese, st.sampled_from(NASTY)), max_size=4).map("".join)
    usual = st.just("7"), st.just("5")
    seeds = st.one_of(*usual[:1] * 3, st.integers().map(str), st.sampled_from(["", "x", "1e3", "٣"]))
    frames = st.one_of(*usual[1:] * 3, st.sampled_from(["9", "33", "0", "-5", "4.0", "nan", "9" * 12, "x"]))

    with closing(JobService(folder / "data", pipeline.preset, lambda: pipeline, PlainFilm, MANY)) as jobs:
        make_video = page.with_gradio_errors(endpoints(jobs)[0])

        @settings(max_examples=times, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(wish, seeds, frames)
        def ask(prompt: str, seed: str, frames: str) -> None:
            film = folder / "film.gif"
            words = [f"--seed={seed}", f"--frames={frames}", "--model=mini", "--quiet", f"--output={film}"]
            drawn = _typed([*words, "--", prompt], pipeline, film)
            counts["command line: film" if drawn is not None else "command line: refused"] += 1
            if drawn is not None:
                _readable(pipeline, prompt, drawn)
            taken = _asked(make_video, prompt, int(seed) if seed.isdecimal() else -1)
            counts["API: taken" if taken else "API: refused"] += 1
            expect(taken or drawn is None, f"the API refuses {prompt!r}, which the command line draws")

        ask()
    return counts


def _mini_without_drawing() -> CogVideoPipeline:
    """mini as it checks and reads prompts; `stream` yields black frames and touches no network."""
    import numpy as np
    import torch

    from cogvideo.config import PRESETS
    from cogvideo.events import VideoCompleted
    from cogvideo.pipeline import CogVideoPipeline
    from cogvideo.runtime.device import DevicePlacement

    pipeline = CogVideoPipeline(PRESETS["mini"], DevicePlacement(torch.device("cpu"), torch.float32))

    def stream(request: VideoRequest, stop: object = None) -> Iterator[VideoCompleted]:
        yield VideoCompleted(np.zeros((request.num_frames, 8, 8, 3), np.uint8), 1.0, request.seed)

    pipeline.stream = stream  # type: ignore[method-assign, assignment]
    return pipeline


def _typed(words: list[str], pipeline: CogVideoPipeline, film: Path) -> str | None:
    """The prompt that stands in the film which `cogvideo generate` made; None where it refused with a sentence."""
    from cogvideo.cli.main import main
    from cogvideo.media.metadata import read_metadata
    from cogvideo.pipeline import CogVideoPipeline

    film.unlink(missing_ok=True)
    said = io.StringIO()
    with (
        patch.object(CogVideoPipeline, "from_pretrained", lambda *_, **__: pipeline),
        redirect_stderr(said),
        redirect_stdout(said),
    ):
        status = main(["generate", *words])
    expect(status in (0, 2) and "Traceback" not in said.getvalue(), f"{words}: {status}, {said.getvalue()[-500:]}")
    if status == 2:
        lines = said.getvalue().splitlines()
        expect(len(lines) >= 2 and not film.exists(), f"{words}: refused with {lines}")
        return None
    kept = read_metadata(film)
    expect(kept is not None, f"{words}: the film holds no settings")
    return str((kept or {})["prompt"])


def _readable(pipeline: CogVideoPipeline, prompt: str, text: str) -> None:
    """What became of a prompt has a length the model can take, no control token and nothing that cannot be seen."""
    tokenizer = pipeline._part("text").tokenizer
    ids = tokenizer.encode(text)
    expect(tokenizer.token("<n>") not in ids, f"{prompt!r} is read with a control token")
    expect(0 < len(ids) <= pipeline.preset.model.text_length, f"{prompt!r} has {len(ids)} tokens")
    hidden = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    expect(text == text.strip() and not hidden, f"{prompt!r} leaves {text!r}")


def _asked(make_video: Any, prompt: str, seed: int) -> bool:
    """Whether the API takes a prompt; False where it refuses with a sentence."""
    import gradio as gr

    try:
        answer = make_video(prompt, seed, 5, 4.0, False, 0.0, KEY)
    except gr.Error:
        return False
    expect(len(answer["id"]) >= 22, f"{prompt!r} got {answer}")
    return True


def programs(folder: Path, times: int) -> Counts:
    """Random arguments to every endpoint of the API: any type in any place, in any order of calls."""
    import gradio as gr

    from cogvideo.jobs.service import JobService
    from cogvideo.web import page
    from cogvideo.web.api import endpoints
    from tests.support.fakes import PRESET, FakePipeline, PlainFilm

    counts, dice = Counts(), random.Random(8)
    with closing(JobService(folder, PRESET, lambda: FakePipeline(free=True), PlainFilm, MANY)) as jobs:
        calls = [page.with_gradio_errors(endpoint) for endpoint in endpoints(jobs)]
        known = [jobs.submit(_request(seed), KEY).id for seed in range(3)]
        sensible: dict[str, list[Any]] = {
            "prompt": ["熊猫", *NASTY],
            "id": [*known, "../jobs.sqlite", "x" * 5000],
            "key": [KEY, "", "short"],
            "change": ["finer", "between", "enlarge", "resume", "next", "again", "finish", "explode"],
            "drafts": ["1,3", "", "0", "-1", "9" * 5000, "1;2"],
            "seed": [-1, 0, 7, 2**32 - 1, 2**32, -2],
            "frames": [5, 9, 17, 33, 6],
            "seconds": [4, 2.0, 1, 0.5, 3],
            "guidance": [0, 1, 3.5, 20.5],
        }
        for _ in range(times):
            call = dice.choice(calls)
            values = {
                name: dice.choice(sensible.get(name, [True, False]) if dice.random() < 0.95 else ODD)
                for name in inspect.signature(call).parameters
            }
            try:
                call(**values)
                counts[f"{call.__name__}: answered"] += 1
            except gr.Error:
                counts["refused with a sentence"] += 1
            except Exception as error:
                raise Unexpected(f"{call.__name__}({values!r:.300}): {type(error).__name__}: {error}") from error
        expect(jobs.submit(_request(9), KEY).active, "a sound request is not taken any more")
    return counts


def _request(seed: int) -> Any:
    from cogvideo.request import VideoRequest

    return VideoRequest("熊猫", seed=seed, num_frames=5, superres=False)


def names(folder: Path, times: int) -> Counts:
    """Random ids and file names to where clips are served: only what is a job's file is found."""
    from cogvideo.jobs.service import JobService
    from tests.support.fakes import PRESET, FakePipeline, PlainFilm

    counts, dice = Counts(), random.Random(9)
    pieces = [
        "..",
        "/",
        "\\",
        "%2e%2e",
        "jobs.sqlite",
        "final.mp4",
        "\x00",
        "猫",
        ".",
        "~",
        "C:",
        *string.ascii_letters,
    ]
    with closing(JobService(folder, PRESET, lambda: FakePipeline(free=True), PlainFilm, MANY)) as jobs:
        (jobs.results / "a").mkdir()
        (jobs.results / "a" / "final.mp4").write_bytes(b"x")
        (jobs.results / "a" / ".hidden").write_bytes(b"x")
        for _ in range(times):
            job, name = ("".join(dice.choices(pieces, k=dice.randrange(4))) for _ in range(2))
            found = jobs.file(job, name)
            expect(found is None or (job, name) == ("a", "final.mp4"), f"{job!r}, {name!r} gave {found}")
            counts["found" if found else "nothing there"] += 1
        expect(jobs.file("a", "final.mp4") and not jobs.file("a", ".hidden"), "the clip is not found")
    return counts


FAULTS = (
    Fault(
        "random prompts and options",
        "a film of what the model can read, or a sentence",
        "模型可读的画成视频，否则一句话",
        prompts,
        small=50,
        full=10_000,
    ),
    Fault(
        "random calls of the API",
        "an answer or a sentence, whatever the types",
        "无论什么类型，都是回答或一句话",
        programs,
        small=300,
        full=10_000,
    ),
    Fault("random file names", "nothing but a job's own files", "只有任务自己的文件", names, small=300, full=20_000),
)
