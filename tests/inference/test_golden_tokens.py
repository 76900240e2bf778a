"""The same request and seed gives the tokens and the frames that the build 0a8de33 drew, on every way to compute.

tests/golden/tokens_0a8de33.json has the hashes, the ways on which that build was seen to draw them, and by how little
the closest of its races was won (`smallest_margin`, relative). Rounding on those ways moves that by 0.3 % of itself. A
processor that rounds far worse might draw other tokens, also where a cluster or a token is just about kept or left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogvideo.events import RoundCompleted
from cogvideo.inference.generation import GeneratedVideo
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.request import VideoRequest, request_from_dict
from kernels import cpu_build

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "tokens_0a8de33.json").read_text(encoding="utf-8"))
REQUESTS: dict[str, Any] = GOLDEN["wishes"]


def digest(values: Any, kind: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(values.astype(kind)).tobytes()).hexdigest()


def draw(pipeline: CogVideoPipeline, name: str) -> tuple[Any, Any]:
    """Tokens and frames of one request; of several the keyframes' tokens and all frames."""
    requests = [request_from_dict(old) for old in REQUESTS[name]["requests"]]
    if len(requests) > 1:
        videos = [event for event in pipeline.generate_batch(requests) if isinstance(event, GeneratedVideo)]
        return np.stack([v.keyframes.numpy() for v in videos]), np.stack([v.frames for v in videos])
    *events, done = pipeline.stream(requests[0])
    return [event.tokens for event in events if isinstance(event, RoundCompleted)][-1], done.frames  # type: ignore[union-attr]


def assert_golden(pipeline: CogVideoPipeline, name: str) -> None:
    """Tokens are equal wherever this runs; pixels where the codec was seen to round alike."""
    tokens, frames = draw(pipeline, name)
    assert digest(tokens, "<u2") == REQUESTS[name]["tokens"], name
    known = REQUESTS[name]["frames"].get(torch.backends.cpu.get_cpu_capability())
    assert known in (None, digest(frames, "u1")), name


@pytest.fixture(scope="module", params=["compiled, one thread", "compiled, two threads", "plain"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    """mini in fp32, made once for each way; `plain`: no kernel of ours is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu_build.SWITCH, "0" if request.param == "plain" else "1")
        patch.setenv("OMP_NUM_THREADS", "2" if "two" in request.param else "1")
        before = torch.get_num_threads()
        torch.set_num_threads(2 if "two" in request.param else 1)
        yield CogVideoPipeline.from_pretrained("mini", device="cpu", previews=False)
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_of_0a8de33_draw_the_same_tokens_and_frames(pipeline: CogVideoPipeline, name: str) -> None:
    assert_golden(pipeline, name)


@pytest.mark.parametrize(
    ("capability", "names"),
    [("avx2", list(REQUESTS)), ("default", ["without guidance", "batch of three, published temperatures"])],
)
def test_other_vector_units_draw_the_same(capability: str, names: list[str]) -> None:
    code = (
        "from tests.inference.test_golden_tokens import *\n"
        "pipeline = CogVideoPipeline.from_pretrained('mini', device='cpu', previews=False)\n"
        f"for name in {names}:\n    assert_golden(pipeline, name)\n"
        "print('equal')"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "equal"


def test_every_setting_that_changes_what_is_drawn_has_a_request() -> None:
    requests = [request_from_dict(old) for wish in REQUESTS.values() for old in wish["requests"]]
    usual = VideoRequest("")
    for name in ("num_frames", "duration", "superres", "sampling", "interpolation_seed", "num_drafts", "first_frame"):
        assert {getattr(request, name) for request in requests} - {getattr(usual, name)}, name
