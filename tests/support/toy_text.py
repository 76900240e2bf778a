"""A tiny Chinese text vocabulary for tests, trained in a second by SentencePiece."""

from __future__ import annotations

import itertools
from pathlib import Path

import sentencepiece

SUBJECTS = ("熊猫", "小猫", "汽车", "火箭")
SCENES = ("草地", "雪地", "夜空")
MOTIONS = ("向左跑", "向右跑", "向上飞", "旋转")


def train_text_model(folder: Path) -> Path:
    """Writes `text.model` into `folder`: pieces of a few sentences, with <pad> and <n>."""
    sentences = [f"一只{s}在{p}上{m}" for s, p, m in itertools.product(SUBJECTS, SCENES, MOTIONS)]
    sentences += ["高清摄影", "视频", *(f"{x}秒" for x in ("4.0", "2.0", "1.0", "0.5", "0.25", "0.125", "0.0625"))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 4),
        model_prefix=str(folder / "text"),
        vocab_size=90,
        hard_vocab_limit=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=1,
        pad_piece="<pad>",
        user_defined_symbols=["<n>"],
        minloglevel=2,
        num_threads=1,
    )
    return folder / "text.model"
