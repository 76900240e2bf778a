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


class OutOfMemoryError(CapacityError):
    """Memory ended while a video was being made; everything was freed, and the same seed gives the same video again.

    `next_preset`: the memory preset that takes less (a name of `config.MEMORY`); None where there is none.
    """

    def __init__(self, zh: str, en: str, next_preset: str | None) -> None:
        super().__init__(zh, en)
        self.next_preset = next_preset


class Cancelled(Exception):
    """Somebody asked for the work to stop. Not an error: no message is shown."""


BilingualText = tuple[str, str]
"""The same sentence in Chinese and in English."""


def user_message(error: BaseException) -> BilingualText:
    """What a person is told of an error; nothing of what a library wrote into it."""
    if isinstance(error, CogVideoError):
        return error.zh, error.en
    if isinstance(error, MemoryError):
        return (
            "内存不足：请关闭其他程序，减少帧数，或关闭超分后再试。",
            "Out of memory: close other programs, ask for fewer frames, or switch super-resolution off, and try again.",
        )
    kind = type(error).__name__
    return (
        f"生成时出现意外错误（{kind}），详情见服务器日志：可以用同样的设置再试一次。",
        f"Something unexpected went wrong ({kind}); the server's log has the details: "
        "you can try the same settings again.",
    )
