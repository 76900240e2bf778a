"""Conversion of text to token ids [L] with icetk's text tokenizer, and the texts that condition each stage.

Image tokens have the first ids: text piece i has the id i + image_tokens. A tokenizer is an instance, never a global.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cogvideo import compat
from cogvideo.config import Preset
from cogvideo.errors import WeightsError
from cogvideo.messages import message


class TextTokenizer:
    """icetk's text tokenizer with one SentencePiece file.

    `path`: the SentencePiece model (icetk's `ice_text.model` or mini's `text.model`). Raises WeightsError.
    """

    def __init__(self, path: Path, image_tokens: int) -> None:
        compat.prepare()
        from icetk.text_tokenizer import TextTokenizer as IcetkTokenizer

        try:
            self._pieces: Any = IcetkTokenizer(str(path))
        except FileNotFoundError:
            raise WeightsError(*message("text.vocabulary_missing", path=path)) from None
        except Exception as error:  # protobuf and SentencePiece raise various types, even RuntimeError
            raise WeightsError(*message("text.vocabulary_damaged", path=path, name__=type(error).__name__)) from error
        self.path = path
        self.image_tokens = image_tokens
        self.unknown = self._pieces.sp.unk_id()

    def encode(self, text: str) -> list[int]:
        """Encode a text as ids [L]. Line breaks are ignored, as in icetk."""
        return [piece + self.image_tokens for piece in self._pieces.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text."""
        return str(self._pieces.decode([i - self.image_tokens for i in ids]))

    def token(self, name: str) -> int:
        """Return the id of a token by its name, such as `<n>` or `<pad>`. Raises WeightsError."""
        piece = self._pieces.convert_token_to_id(name)
        if piece == self.unknown and name != self._pieces.convert_id_to_token(self.unknown):
            raise WeightsError(*message("text.wrong_vocabulary", path=self.path, name=name))
        return int(piece) + self.image_tokens

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Return the pieces of `text` in order, each with whether it is in the vocabulary."""
        numbers = self._pieces.encode(text)
        words = (str(piece).replace("\u2581", " ") for piece in self._pieces.tokenize(text))
        return [(word, number != self.unknown) for word, number in zip(words, numbers, strict=True)]

    def unknown_words(self, text: str) -> list[str]:
        """Return the pieces of `text` that are not in the vocabulary, in order, each once."""
        pieces = zip(self._pieces.tokenize(text), self._pieces.encode(text), strict=True)
        words = (str(piece).replace("\u2581", "").strip() for piece, number in pieces if number == self.unknown)
        return list(dict.fromkeys(word for word in words if word))


def first_frame_text(tokenizer: TextTokenizer, preset: Preset, prompt: str) -> list[int]:
    """Encode the text of the first frame: no duration, "high-definition photography" after the prompt."""
    return tokenizer.encode(prompt + preset.first_frame_suffix)


def video_text(tokenizer: TextTokenizer, preset: Preset, prompt: str, seconds: float) -> list[int]:
    """Encode the text of the other keyframes. `seconds`: duration of the whole five-frame window."""
    return duration_text(tokenizer, seconds) + tokenizer.encode(prompt + preset.video_suffix)


def unconditional_text(tokenizer: TextTokenizer, preset: Preset, seconds: float) -> list[int]:
    """Encode the unconditional text of guidance: a video of that duration, without a prompt."""
    return duration_text(tokenizer, seconds) + tokenizer.encode(preset.unconditional)


def interpolation_text(tokenizer: TextTokenizer, prompt: str, seconds: float) -> list[int]:
    """Encode the text of stage 2 for a block of five frames that spans `seconds`."""
    return duration_text(tokenizer, seconds) + tokenizer.encode(prompt)


def round_seconds(seconds: float, rounds: int) -> list[float]:
    """Return the duration of a block of five frames in each round of a video of `seconds`. It halves each round."""
    return [seconds / 2**r for r in range(1, rounds + 1)]


def superres_text(tokenizer: TextTokenizer, prompt: str) -> list[int]:
    """Encode the text of super-resolution: the prompt alone."""
    return tokenizer.encode(prompt)


def duration_text(tokenizer: TextTokenizer, seconds: float) -> list[int]:
    """Encode the duration: `4.0秒` and the separator `<n>`."""
    return [*tokenizer.encode(f"{float(seconds)}秒"), tokenizer.token("<n>")]
