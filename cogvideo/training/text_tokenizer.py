"""Training of a small text tokenizer, a model for icetk's TextTokenizer, on the world's words or on captions."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import sentencepiece

from cogvideo.data.synthetic_vocabulary import (
    DIRECTION_WORDS,
    MOTIONS,
    SCENE_PHRASES,
    SIZE_WORDS,
    SUBJECTS,
    verb_phrases,
)
from cogvideo.errors import RequestError
from cogvideo.files import atomic_write

SPECIAL_PIECES = ("<pad>", "<n>")
DURATION_TEXTS = tuple(f"{seconds}秒" for seconds in (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625))
FIXED_TEXTS = ("视频", "高清摄影", *DURATION_TEXTS)


def lexicon() -> list[str]:
    """Return every word of the world's captions, sorted.

    Trained on words instead of sentences, a piece never spans two words. A subject then has the same token in every
    caption, and the model can combine words in new ways.
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


def train_world_tokenizer(path: Path, pieces: int) -> None:
    """Write a model of at most `pieces` pieces for the world's words.

    Words of two and more characters are single pieces. Pieces of one character cover other texts.
    """
    words = lexicon()
    _train(path, pieces, words * 20, [w for w in words if len(w) > 1 and not w[0].isdigit()], max_piece=4)


def train_caption_tokenizer(path: Path, pieces: int, captions: Sequence[str]) -> None:
    """Write a model of at most `pieces` pieces for captions. Raises RequestError if they are too few."""
    try:
        _train(path, pieces, [*captions, *FIXED_TEXTS * 4], ["视频", "高清摄影"], max_piece=8)
    except RuntimeError as error:  # SentencePiece requires a piece for every character
        reason = str(error).strip().splitlines()[-1]
        raise RequestError(
            f"{pieces} 个词元不足以覆盖 {len(captions)} 条说明（{reason}）。请增大 [tokenizer] 的 pieces。",
            f"{pieces} pieces cannot cover {len(captions)} captions ({reason}). Increase pieces in [tokenizer].",
        ) from error


def _train(path: Path, pieces: int, sentences: Sequence[str], whole: Sequence[str], max_piece: int) -> None:
    """Write a unigram model of at most `pieces` pieces; words in `whole` are single pieces.

    The file is complete or not there. Raises RuntimeError if the pieces are too few.
    """
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        split_digits=True,
        add_dummy_prefix=False,
        max_sentencepiece_length=max_piece,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=[*SPECIAL_PIECES, *whole],
        num_threads=1,
        minloglevel=2,
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.getvalue())
