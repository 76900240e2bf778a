"""Writes tests/golden/tokens_0a8de33.json with that build: `python make_golden.py CHECKOUT OUT.json`.

It is called once for each way to compute, and adds the frames of its own: the environment chooses the way
(ATEN_CPU_CAPABILITY, COGVIDEO_COMPILE, OMP_NUM_THREADS). Tokens that differ from those found before are an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

CHECKOUT, OUT = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
sys.path.insert(0, str(CHECKOUT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cogvideo.tokens import TokenFrames  # noqa: E402
from cogvideo.view import request_to_dict  # noqa: E402

from cogvideo import batch, sampling  # noqa: E402
from cogvideo.config import PRESETS, TokenSampling, VideoRequest  # noqa: E402
from cogvideo.events import LevelDone  # noqa: E402
from cogvideo.pipeline import CogVideoPipeline  # noqa: E402
from kernels import native  # noqa: E402

OWN = PRESETS["mini"].sampling
FREE = TokenSampling(1.05, 12, 0.89)
FIRST = TokenFrames.of([[(37 * slot * slot + 11 * slot) % 4096 for slot in range(64)]])
WISHES = {
    "enlarged": [VideoRequest("一只熊猫在草地上向右跑", 7, 5, 4.0, True)],
    "without guidance": [VideoRequest("一艘帆船在大海上向左行驶", 2024, 9, 2.0, False, replace(OWN, guidance=1.0))],
    "33 frames, stage 2 with guidance": [
        VideoRequest("一枚火箭在夜空中向上飞", 2**32 - 1, 33, 0.5, False, replace(OWN, between_guidance=2.0), 11)
    ],
    "four drafts": [VideoRequest("一只兔子在雪地里跳", 3, 5, 4.0, False, drafts=4)],
    "given first frame": [VideoRequest("一只蝴蝶在旋转", 5, 17, 1.0, False, first_frame=FIRST)],
    "batch of three, published temperatures": [
        VideoRequest(
            prompt,
            seed,
            9,
            4.0,
            False,
            replace(OWN, candidates=1, first_frame=replace(FREE, temperature=1.0), video=FREE),
        )
        for seed, prompt in enumerate(("一只熊猫在草地上向右跑", "一辆公交车在马路上向左开", "一只猫头鹰在沙漠里变大"))
    ],
}
margins: list[float] = []


def measured(self: sampling.ClusterSampler, logits: Any, keys: Any, options: TokenSampling) -> Any:
    """Draws, and notes by what factor the winner of each race was ahead of the second."""
    ids, probabilities = self.candidates(logits, options)
    race = (probabilities / sampling.exponential_noise(keys, ids)).topk(2, dim=1).values
    margins.append(float((race[:, 0] / race[:, 1]).min()))
    return draw(self, logits, keys, options)


def drawn(pipeline: CogVideoPipeline, requests: list[VideoRequest]) -> tuple[Any, Any]:
    """Tokens and frames of one request; of several the keyframes' tokens and all frames."""
    if len(requests) > 1:
        films = [event for event in batch.draw(pipeline, requests) if isinstance(event, batch.Drawn)]
        return np.stack([film.keyframes.numpy() for film in films]), np.stack([film.frames for film in films])
    *events, done = pipeline.stream(requests[0])
    return [event.tokens for event in events if isinstance(event, LevelDone)][-1], done.frames


def digest(values: Any, kind: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(values.astype(kind)).tobytes()).hexdigest()


draw = sampling.ClusterSampler.draw
sampling.ClusterSampler.draw = measured
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
pipeline = CogVideoPipeline.from_pretrained("mini", device="cpu", previews=False)
written = (
    json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {"build": "0a8de33", "ways": [], "wishes": {}}
)
capability = torch.backends.cpu.get_cpu_capability()
for name, requests in WISHES.items():
    tokens, frames = drawn(pipeline, requests)
    known = written["wishes"].setdefault(name, {"requests": [request_to_dict(request) for request in requests]})
    if known.setdefault("tokens", digest(tokens, "<u2")) != digest(tokens, "<u2"):
        raise SystemExit(f"{name}: other tokens")
    if known.setdefault("frames", {}).setdefault(capability, digest(frames, "u1")) != digest(frames, "u1"):
        raise SystemExit(f"{name}: other frames")
compiled = native.why_not("decode_cpu.c") is None
written["ways"].append(
    {
        "torch": torch.__version__,
        "capability": capability,
        "compiled": f"{Path(os.environ.get('CC', 'cc')).name}" if compiled else "no",
        "threads": torch.get_num_threads(),
        "calls": len(margins),
        "smallest_margin": min(margins) - 1,
    }
)
OUT.write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
