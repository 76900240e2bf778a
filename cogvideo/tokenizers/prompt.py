"""Checks of a prompt, its token ids, and notes on words that the model was not trained on."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from cogvideo.config import DURATIONS, FRAME_COUNTS, Preset
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.tokenizers.text import (
    TextTokenizer,
    first_frame_text,
    interpolation_text,
    round_seconds,
    superres_text,
    video_text,
)

MAX_CHARACTERS: Final = 1000
"""Maximum characters of a prompt, checked before any work. It is far above any model's text length."""

EXAMPLE: Final = "一只熊猫在草地上向右跑"

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# HTML, and names of control tokens such as <n>. The vocabulary treats full-width and small brackets as ASCII ones.
_MARKUP = re.compile("[<＜﹤][^<＜﹤>＞﹥]{0,100}[>＞﹥]")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Note:
    """A remark on a prompt that is accepted."""

    zh: str
    en: str

    def message(self, language: str) -> str:
        """Return the note in `language`: "zh" or "en"."""
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True)
class KnownConcepts:
    """The concepts that a small model was trained on, as Chinese words. Empty: no limit is known."""

    subjects: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()
    motions: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> KnownConcepts:
        """Read a `world.json` with lists of words under "subjects", "scenes", "motions".

        Without the file the lists are empty.
        """
        if not path.is_file():
            return cls()
        lists = json.loads(path.read_text(encoding="utf-8"))
        return cls(*(tuple(lists.get(name, ())) for name in ("subjects", "scenes", "motions")))

    def sentence_zh(self) -> str:
        parts = (("事物", self.subjects), ("场景", self.scenes), ("动作", self.motions))
        return "；".join(f"{name}：{'、'.join(words)}" for name, words in parts if words)

    def sentence_en(self) -> str:
        parts = (("subjects", self.subjects), ("scenes", self.scenes), ("motions", self.motions))
        return "; ".join(f"{name}: {', '.join(words)}" for name, words in parts if words)


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt as the model will read it, and notes about changes and unknown words."""

    text: str
    notes: tuple[Note, ...] = ()


def check_prompt(
    prompt: str, tokenizer: TextTokenizer, preset: Preset, world: KnownConcepts | None = None, superres: bool = True
) -> CheckedPrompt:
    """Check a user's prompt; return the text that the model reads, with notes. Raises RequestError."""
    text, notes = clean_prompt(prompt)
    _check_length(text, tokenizer, preset, superres)
    notes += _unknown_notes(text, tokenizer, world or KnownConcepts())
    return CheckedPrompt(text, tuple(notes))


@dataclass(frozen=True)
class TokenizedPrompt:
    """The pieces of a prompt, each with whether it is in the vocabulary, and the maximum number of pieces."""

    pieces: tuple[tuple[str, bool], ...]
    limit: int


def tokenize_prompt(prompt: str, tokenizer: TextTokenizer, preset: Preset, superres: bool = True) -> TokenizedPrompt:
    """Tokenize a prompt of any length. Raises RequestError if no text is left after cleaning."""
    text, _ = clean_prompt(prompt)
    pieces = tokenizer.pieces(text)
    return TokenizedPrompt(tuple(pieces), len(pieces) - _surplus(text, tokenizer, preset, superres))


def clean_prompt(prompt: str) -> tuple[str, list[Note]]:
    """Clean a prompt; return one line of simplified Chinese, and notes on the changes. No tokenizer is required.

    Raises RequestError.
    """
    if len(prompt) > MAX_CHARACTERS:
        raise RequestError(
            *message("prompt.too_many_characters", num_prompt=len(prompt), max_characters=MAX_CHARACTERS)
        )
    _check_control_characters(prompt)
    notes: list[Note] = []
    text = _remove_invisible(unicodedata.normalize("NFC", prompt), notes)
    text = _remove_markup(text, notes)
    text = _SPACES.sub(" ", text).strip()
    _check_chinese(text)
    return _simplify(text, notes), notes


def _check_control_characters(text: str) -> None:
    for position, character in enumerate(text, start=1):
        # Line breaks and tabs are control characters too, but pasted text often contains them: they count as spaces.
        if unicodedata.category(character) in ("Cc", "Cs") and not character.isspace():
            code = f"U+{ord(character):04X}"
            raise RequestError(*message("prompt.control_character", position=position, code=code))


def _remove_invisible(text: str, notes: list[Note]) -> str:
    """Remove zero-width characters, direction marks and the like. They are invisible, so a note is enough."""
    found = [c for c in text if unicodedata.category(c) == "Cf"]
    if found:
        codes = ", ".join(dict.fromkeys(f"U+{ord(c):04X}" for c in found))
        notes.append(Note(*message("prompt.invisible_characters_removed", codes=codes)))
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def _remove_markup(text: str, notes: list[Note]) -> str:
    plain = text
    while (shorter := _MARKUP.sub(" ", plain)) != plain:  # the text around removed markup may form markup itself
        plain = shorter
    if plain != text:
        notes.append(Note(*message("prompt.markup_removed")))
    return plain


def _check_chinese(text: str) -> None:
    if not text:
        raise RequestError(*message("prompt.empty", example=EXAMPLE))
    if not _CHINESE.search(text):
        raise RequestError(*message("prompt.no_chinese", example=EXAMPLE))


def _simplify(text: str, notes: list[Note]) -> str:
    simplified = _converter().convert(text)
    if simplified != text:
        notes.append(Note(*message("prompt.converted_to_simplified", simplified=simplified)))
    return simplified


@cache
def _converter() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


def _surplus(text: str, tokenizer: TextTokenizer, preset: Preset, superres: bool) -> int:
    """Compute by how many tokens `text` exceeds the limit (negative: tokens left).

    The limit leaves space for suffixes and for every allowed duration.
    """
    texts = [first_frame_text(tokenizer, preset, text)]
    for seconds in DURATIONS:
        texts.append(video_text(tokenizer, preset, text, seconds))
        texts.extend(
            interpolation_text(tokenizer, text, span) for span in round_seconds(seconds, len(FRAME_COUNTS) - 1)
        )
    surplus = max(map(len, texts)) - preset.model.text_length
    if superres:
        surplus = max(surplus, len(superres_text(tokenizer, text)) - preset.model.superres_text_length)
    return surplus


def _check_length(text: str, tokenizer: TextTokenizer, preset: Preset, superres: bool) -> None:
    surplus = _surplus(text, tokenizer, preset, superres)
    if surplus > 0:
        used = len(tokenizer.encode(text))
        raise RequestError(*message("prompt.too_many_tokens", used=used, most=used - surplus, surplus=surplus))


def _unknown_notes(text: str, tokenizer: TextTokenizer, world: KnownConcepts) -> list[Note]:
    unknown = tokenizer.unknown_words(text)
    if not unknown:
        return []
    known_zh, known_en = world.sentence_zh(), world.sentence_en()
    return [
        Note(
            f"模型的训练数据中没有：{'、'.join(unknown)}。仍会生成，但画面可能与描述不符。"
            + (f"可用的词——{known_zh}。" if known_zh else ""),
            f"The model was not trained on: {', '.join(unknown)}. The video may not match this part of the prompt."
            + (f" Supported {known_en}." if known_en else ""),
        )
    ]
