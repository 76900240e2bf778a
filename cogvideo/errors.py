"""Errors that are shown to users. Each contains the same message in Chinese and in English."""

from __future__ import annotations

from cogvideo.messages import BilingualText, message


class CogVideoError(Exception):
    """Base of all errors shown to users. `zh` and `en` contain the problem, the limit and the remedy."""

    def __init__(self, zh: str, en: str) -> None:
        super().__init__(f"{zh} / {en}")
        self.zh = zh
        self.en = en

    def message(self, language: str) -> str:
        """Return the message in `language`: "zh" or "en"."""
        return self.zh if language == "zh" else self.en


class RequestError(CogVideoError):
    """An invalid request, which the user can correct. Raised before any work."""


class WeightsError(CogVideoError):
    """A weights file that is missing, damaged or of another model."""


class CapacityError(CogVideoError):
    """Insufficient resources of the machine: memory, queue, disk."""


class OutOfMemoryError(CapacityError):
    """Insufficient memory during generation. Everything was freed; the same seed gives the same video again.

    `next_preset`: name of the memory preset that requires less (`memory_presets.MEMORY_PRESETS`). None if there is
    none.
    """

    def __init__(self, zh: str, en: str, next_preset: str | None) -> None:
        super().__init__(zh, en)
        self.next_preset = next_preset


class Cancelled(Exception):
    """Cancellation on request. Not an error: no message is shown."""


def user_message(error: BaseException) -> BilingualText:
    """Return the message of `error` for users. Messages of libraries are left out."""
    if isinstance(error, CogVideoError):
        return error.zh, error.en
    if isinstance(error, MemoryError):
        return message("errors.out_of_memory")
    kind = type(error).__name__
    return message("errors.unexpected", kind=kind)
