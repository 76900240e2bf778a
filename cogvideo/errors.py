"""The errors a user can meet. Each carries the same sentence in Chinese and in English."""

from __future__ import annotations


class CogVideoError(Exception):
    """Base of all errors meant for a person: `zh` and `en` say what is wrong, the limit and the remedy."""

    def __init__(self, zh: str, en: str) -> None:
        super().__init__(f"{zh} / {en}")
        self.zh = zh
        self.en = en

    def message(self, language: str) -> str:
        """The sentence in `language`: "zh" or "en"."""
        return self.zh if language == "zh" else self.en


class RequestError(CogVideoError):
    """The request cannot be carried out as it stands; the user can mend it. Nothing was started."""


class WeightsError(CogVideoError):
    """A weights file is missing, damaged or belongs to another model."""


class CapacityError(CogVideoError):
    """The machine is too small or too busy: memory, queue, disk."""


class OutOfMemory(CapacityError):
    """Memory ended while a video was being made; everything was freed, and the same seed gives the same video again.

    `next_preset`: the memory preset that takes less (a name of `config.MEMORY`); None where there is none.
    """

    def __init__(self, zh: str, en: str, next_preset: str | None) -> None:
        super().__init__(zh, en)
        self.next_preset = next_preset


class Cancelled(Exception):
    """Somebody asked for the work to stop. Not an error: no message is shown."""
