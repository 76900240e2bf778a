"""What people and programs may ask for: random prompts and options, through the command line's check and the API's.

What is expected: a checked prompt that the model can read, or a sentence. Never another error, never a control token.
"""

from __future__ import annotations

import inspect
import random
import string
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any

from scripts.faults.report import Counts, Fault, Unexpected, expect
from scripts.faults.victim import KEY, MANY

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
    """Random prompts as `generate` checks them before anything is drawn, with the real vocabulary of mini."""
    import torch
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from cogvideo import generate
    from cogvideo.config import PRESETS
    from cogvideo.device import Place
    from cogvideo.errors import RequestError
    from cogvideo.pipeline import CogVideoPipeline

    counts = Counts()
    pipeline = CogVideoPipeline(PRESETS["mini"], Place(torch.device("cpu"), torch.float32))
    tokenizer = pipeline._part("text").tokenizer
    separator = tokenizer.token("<n>")
    anything = st.text(st.characters(), max_size=60)  # surrogates and control characters too
    chinese = st.text(st.sampled_from("一只熊猫在草地上向右跑夜空中火箭高清視頻，。"), max_size=20)
    wish = st.lists(st.one_of(anything, chinese, st.sampled_from(NASTY)), max_size=4).map("".join)
    seeds = st.one_of(st.integers(), st.sampled_from(["", "x", "1e3", "٣"])).map(str)
    numbers = st.sampled_from(["5", "9", "33", "0", "-5", "4.0", "nan", "999999999999", "x"])

    @settings(max_examples=times, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(wish, seeds, numbers)
    def ask(prompt: str, seed: str, frames: str) -> None:
        try:
            words = [f"--seed={seed}", f"--frames={frames}", "--model=mini", "--", prompt]
            request = generate._request(generate._parser().parse_args(words))
        except RequestError:
            counts["options refused"] += 1
            request = generate._request(generate._parser().parse_args(["--model=mini", "--", prompt]))
        try:
            text = pipeline.check(request).text
        except RequestError:
            counts["prompts refused"] += 1
            return
        counts["prompts taken"] += 1
        ids = tokenizer.encode(text)
        expect(separator not in ids, f"{prompt!r} is read with a control token")
        expect(0 < len(ids) <= PRESETS["mini"].model.text_length, f"{prompt!r} has {len(ids)} tokens")
        hidden = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        expect(text == text.strip() and not hidden, f"{prompt!r} leaves {text!r}")

    ask()
    return counts


def programs(folder: Path, times: int) -> Counts:
    """Random arguments to every endpoint of the API: any type in any place, in any order of calls."""
    import gradio as gr
    from fakes import PRESET, FakePipeline, write_bytes

    import app
    from cogvideo.jobs import Jobs
    from cogvideo.page_api import endpoints

    counts, dice = Counts(), random.Random(8)
    with closing(Jobs(folder, PRESET, lambda: FakePipeline(free=True), write_bytes, MANY)) as jobs:
        calls = [app._for_programs(endpoint) for endpoint in endpoints(jobs)]
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
    from cogvideo.config import VideoRequest

    return VideoRequest("熊猫", seed=seed, frames=5, superres=False)


def names(folder: Path, times: int) -> Counts:
    """Random ids and file names to where clips are served: only what is a job's file is found."""
    from fakes import PRESET, FakePipeline, write_bytes

    from cogvideo.jobs import Jobs

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
    with closing(Jobs(folder, PRESET, lambda: FakePipeline(free=True), write_bytes, MANY)) as jobs:
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
    Fault("random prompts and options", "a prompt the model can read, or a sentence", prompts, 100, 10_000),
    Fault("random calls of the API", "an answer or a sentence, whatever the types", programs, 300, 10_000),
    Fault("random file names", "nothing but a job's own files", names, 300, 20_000),
)
