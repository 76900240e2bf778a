"""Training of the small text tokenizer: the world's words -> a SentencePiece model for icetk's TextTokenizer."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import sentencepiece

from cogvideo.training.world import DIRECTION_WORDS, MOTIONS, SCENE_PHRASES, SIZE_WORDS, SUBJECTS, verb_phrases

SPECIAL_PIECES = ("<pad>", "<n>")
DURATION_TEXTS = tuple(f"{seconds}秒" for seconds in (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625))
FIXED_TEXTS = ("视频", "高清摄影", *DURATION_TEXTS)


def lexicon() -> list[str]:
    """Every word of the world's captions. Words, not sentences: a piece then never spans two words, and a subject
    keeps its token whatever stands beside it, which is what lets the model combine words in new ways.
    """
    words = {"在", "正在", "有", "，", *FIXED_TEXTS}
    for subject in SUBJECTS:
        words |= {subject.name, subject.measure, *subject.aliases}
        for motion in MOTIONS:
            for verb in verb_phrases(subject, motion):
                direction = next((d for d in DIRECTION_WORDS if verb.startswith(d)), "")
                words |= {direction, verb.removeprefix(direction)}
    for phrases in SCENE_PHRASES.values():
        for phrase in phrases:
            adjective, _, place = phrase.rpartition("的")
            words |= {adjective + "的" if adjective else "", place[:-1], place[-1]}
    words |= {word for group in SIZE_WORDS.values() for word in group}
    return sorted(words - {""})


def train_tokenizer(path: Path, pieces: int) -> None:
    """Write a unigram model of at most `pieces` pieces to `path`, complete or not at all.

    Words of two and more characters are pieces of their own; single characters cover whatever else a person types.
    """
    words = lexicon()
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        split_digits=True,
        add_dummy_prefix=False,
        max_sentencepiece_length=4,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=[*SPECIAL_PIECES, *(w for w in words if len(w) > 1 and not w[0].isdigit())],
        num_threads=1,
        minloglevel=2,
    )
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(model.getvalue())
    os.replace(temporary, path)
