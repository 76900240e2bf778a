"""Draws how a token is drawn: scores, clusters, the distribution in closed form, the race. From
`cogvideo.inference.sampling`.

python scripts/docs/draw_sampling.py writes docs/drawings/sampling_{en,zh}.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from cogvideo.config import TokenSampling  # noqa: E402
from cogvideo.inference.sampling import ClusterSampler, StageKey, exponential_noise, noise_keys  # noqa: E402
from scripts.docs.drawing import (  # noqa: E402
    BLUE,
    GREEN,
    GREY,
    LINE,
    ORANGE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_ORANGE,
    SOFT,
    Drawing,
    Language,
    write,
)

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
LOGITS = torch.tensor([2.3, 1.7, 0.4, 2.0, 1.9, 1.6, 0.2, -0.3, 0.0, 1.8, 0.1, -0.6])
OPTIONS = TokenSampling(temperature=1.0, top_k=2, within_cluster_temperature=0.6)
SEED = 7

BAR, GAP, WIDE, HIGH = 34.0, 14.0, 780, 92.0
FILLS = ((PALE_BLUE, BLUE), (PALE_GREEN, GREEN), (PALE_ORANGE, ORANGE), (GREY, SOFT))
"""Of each cluster: inside and edge."""


def place(token: int) -> float:
    """x of a token's bar; clusters stand apart."""
    return 250 + token * (BAR + 4) + int(LABELS[token]) * GAP


def bars(drawing: Drawing, y: float, values: Sequence[float], lines: tuple[str, str]) -> None:
    """A row of values from 0 to 1, each above the foot of its token, with two lines of words at the left."""
    drawing.text(20, y - HIGH / 2, lines[0], 13, bold=True)
    drawing.text(20, y - HIGH / 2 + 18, lines[1], 11.5, fill=SOFT)
    drawing.line([(240, y), (WIDE - 20, y)], LINE, 1)
    tallest = max(values)
    for token, value in enumerate(values):
        fill, edge = FILLS[int(LABELS[token])]
        tall = (HIGH - 26) * value / tallest
        if value > 0:
            drawing.rect(place(token), y - tall, BAR, tall, fill, edge, 2)
        drawing.text(place(token) + BAR / 2, y - tall - 5, f"{value:.2f}", 10.5, "middle", SOFT)


def sampling(language: Language) -> str:
    """Four rows: softmax, clusters kept, the closed form, and one draw."""
    words: dict[Language, tuple[tuple[str, str], ...]] = {
        "en": (
            ("One token of twelve, in four clusters", ""),
            ("softmax(scores / T)", "T = 1.0"),
            ("clusters", "the best 2 stay, renormalised"),
            ("the distribution of a draw", "cluster × softmax(scores / T / T2)"),
            ("the draw: p / e, highest wins", "e ~ Exp(1), a hash of the seed"),
        ),
        "zh": (
            ("十二个 token，四个聚类，抽取一个", ""),
            ("softmax(分数 / T)", "T = 1.0"),
            ("聚类", "保留最可能的 2 个，重新归一"),
            ("一次抽取的精确分布", "聚类概率 × softmax(分数 / T / T2)"),
            ("抽取：p / e 最大者胜出", "e ~ Exp(1)，由种子散列而来"),
        ),
    }
    (title, _), *rows = words[language]
    sampler = ClusterSampler(LABELS)
    plain = (LOGITS / OPTIONS.temperature).softmax(-1)
    masses = torch.zeros(4).scatter_add_(0, LABELS, plain)
    kept, best = masses.topk(OPTIONS.top_k)
    shares = torch.zeros(4).scatter_(0, best, kept / kept.sum())
    final = sampler.distribution(LOGITS, OPTIONS)
    keys = noise_keys([SEED], StageKey.KEYFRAMES, [0], 1)[0]
    race = final / exponential_noise(keys, torch.arange(12)[None])[0]
    winner = int(sampler.sample(LOGITS[None], keys, OPTIONS)[0])
    drawing = Drawing(WIDE, 60 + 4 * 108, title)
    drawing.text(20, 30, title, 15, bold=True)
    bars(drawing, 140, plain.tolist(), rows[0])
    _clusters(drawing, 248, shares.tolist(), rows[1])
    bars(drawing, 356, final.tolist(), rows[2])
    bars(drawing, 464, (race / race.max()).tolist(), rows[3])
    drawing.rect(place(winner) - 3, 464 - HIGH, BAR + 6, HIGH + 4, "none", ORANGE, 4)
    return drawing.svg()


def _clusters(drawing: Drawing, y: float, shares: Sequence[float], lines: tuple[str, str]) -> None:
    """A bar as wide as its cluster for each share."""
    drawing.text(20, y - HIGH / 2, lines[0], 13, bold=True)
    drawing.text(20, y - HIGH / 2 + 18, lines[1], 11.5, fill=SOFT)
    drawing.line([(240, y), (WIDE - 20, y)], LINE, 1)
    for cluster, share in enumerate(shares):
        members = torch.nonzero(torch.eq(LABELS, cluster)).flatten()
        first, wide = int(members[0]), len(members) * (BAR + 4) - 4
        tall = (HIGH - 26) * share
        fill, edge = FILLS[cluster]
        if share > 0:
            drawing.rect(place(first), y - tall, wide, tall, fill, edge, 2)
        drawing.text(place(first) + wide / 2, y - tall - 5, f"{share:.2f}", 10.5, "middle", SOFT)


DRAWINGS = {"sampling": sampling}

if __name__ == "__main__":
    write(DRAWINGS)
